"""A GGUF file as a plain Hugging Face folder, for the engine and for several trainings of it.

    python scripts/unpack_gguf.py model-q4_k_m.gguf models/model --tie-from-head

Weights are dequantized, special tokens are those that the file names (transformers may read them
wrongly), the chat template is the file's. `--tie-from-head` is for a model whose embedding and head
are one matrix, of which the file has two copies, as llama.cpp writes them: the head's, which is the
more precise one, becomes both. Tokens that only fill the vocabulary up (`[PAD151665]`) are left out
of the tokenizer, so that new ones take their rows, as with the original. A recipe can also read a
GGUF file itself (`model.gguf_file`), but does so anew for each training. Needs
`pip install -e ".[gguf]"`. Knows nothing of compression.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.nn.functional import cosine_similarity

from lightthinker.errors import ConfigError, LightThinkerError
from lightthinker.train.checkpoint import load_pretrained, load_tokenizer, save_checkpoint
from lightthinker.train.recipe import ModelSource

ALIKE = 0.99
"""Least cosine of two copies of a row, on average: those of unrelated matrices are near 0."""


def unpack(file: Path, folder: Path, *, dtype: str, tie_from_head: bool) -> int:
    """Write the folder; returns the number of parameters.

    Args:
        file: The GGUF file.
        folder: Folder to write.
        dtype: Of the weights.
        tie_from_head: Make the head's matrix the embedding too.

    Raises:
        ConfigError: Embedding and head are not copies of one matrix.
    """
    source = ModelSource(path=str(file.parent), gguf_file=file.name)
    tokenizer = load_tokenizer(source)
    model = load_pretrained(source, tokenizer)
    if tie_from_head:
        head = model.get_output_embeddings().weight
        embedding = model.get_input_embeddings().weight
        alike = float(cosine_similarity(head.detach(), embedding.detach()).mean())
        if alike < ALIKE:
            raise ConfigError(
                f"{file} has an embedding and a head that are no copies of one matrix (the mean "
                f"cosine of their rows is {alike:.3f}); leave --tie-from-head out."
            )
        model.get_input_embeddings().weight = head
        model.config.get_text_config().tie_word_embeddings = True
    save_checkpoint(model, tokenizer, folder, dtype=dtype, max_shard_size="5GB")
    _leave_out(_fillers(file), folder / "tokenizer.json")
    return int(model.num_parameters())


def _fillers(file: Path) -> set[str]:
    """Return the tokens at the end of the vocabulary that the file says are not used."""
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    used = max(i for i, kind in enumerate(types) if kind != TokenType.UNUSED)
    return set(tokens[used + 1 :])


def _leave_out(tokens: set[str], file: Path) -> None:
    """Take tokens out of a saved tokenizer whose vocabulary maps tokens to ids."""
    saved = json.loads(file.read_text("utf-8"))
    vocabulary = saved["model"]["vocab"]
    if tokens and isinstance(vocabulary, dict):
        saved["model"]["vocab"] = {t: i for t, i in vocabulary.items() if t not in tokens}
        file.write_text(json.dumps(saved, ensure_ascii=False), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="GGUF file")
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tie-from-head", action="store_true", help="one matrix, the head's")
    options = parser.parse_args(arguments)
    try:
        if options.folder.exists():
            raise ConfigError(f"{options.folder} exists; choose another folder.")
        number = unpack(
            options.file, options.folder, dtype=options.dtype, tie_from_head=options.tie_from_head
        )
    except (LightThinkerError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"folder": str(options.folder), "parameters": number}))


if __name__ == "__main__":
    main()
