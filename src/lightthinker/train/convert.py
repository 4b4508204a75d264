"""Upstream's published checkpoints (zjunlp/LightThinker) into our format.

Weights are copied as they are. What is added: our settings in config.json, with the ids that
upstream's tokens have (`<|splitter|>`, `<|o_0|>` ..., `<|continue|>`), and a chat template if there
is none. Upstream compresses the answer's pieces too, and the model writes its reasoning markers
itself.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoTokenizer

from lightthinker.compression import CONFIG_KEY, CompressionConfig
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.layout import Method
from lightthinker.tokens import resolve_tokens

SPLITTER, CONTINUE = "<|splitter|>", "<|continue|>"
_GIST = re.compile(r"<\|o_(\d+)\|>")
_COPIED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def convert(
    source: str | Path, output: str | Path, *, method: Method = "thought", overwrite: bool = False
) -> CompressionConfig:
    """Convert a checkpoint of upstream's.

    Args:
        source: Upstream's checkpoint, with safetensors weights: a folder or a hub name.
        output: Folder to write.
        method: What it was trained as: `thought`, `token` or `anllm` (upstream saves no trace of
            it).
        overwrite: Replace files in `output`.

    Returns:
        The settings written.

    Raises:
        CheckpointError: No safetensors weights, or no tokens of upstream's in the tokenizer.
        ConfigError: `output` is not empty.
    """
    target = Path(output)
    folder = Path(source) if Path(source).exists() else _download(str(source))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"No config.json in {folder}: is it a Hugging Face checkpoint folder?"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no *.safetensors weights. Load it once with transformers in a place you "
            "trust and save_pretrained it; pickled weights are not read here."
        )
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise ConfigError(f"{target} is not empty; choose another folder or pass --overwrite.")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings = resolve_tokens(tokenizer, _settings(tokenizer, method, folder))
    model_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _COPIED:
        for file in folder.glob(pattern):
            shutil.copyfile(file, target / file.name)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _LLAMA3 if model_config["model_type"] == "llama" else _CHATML
        tokenizer.save_pretrained(target)
    model_config[CONFIG_KEY] = settings.to_dict()
    text = json.dumps(model_config, indent=2, ensure_ascii=False)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    return settings


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(_COPIED)))
    except (OSError, HFValidationError) as error:
        raise CheckpointError(f"{name} is no folder here and cannot be fetched: {error}") from error


def _settings(tokenizer: Any, method: Method, folder: Path) -> CompressionConfig:
    found = {int(m[1]): t for t in tokenizer.get_vocab() if (m := _GIST.fullmatch(t))}
    if not found or sorted(found) != list(range(len(found))):
        raise CheckpointError(
            f"The tokenizer in {folder} has no gist tokens <|o_0|>, <|o_1|>, ...: this is not "
            "one of upstream's LightThinker checkpoints."
        )
    return CompressionConfig(
        method=method,
        num_gists=len(found),
        gist_tokens=tuple(found[i] for i in range(len(found))),
        trigger_token=SPLITTER,
        continue_token=CONTINUE,
        reasoning_begin="",
        reasoning_end="<|end_of_thought|>",
        compress_answer=True,
    )
