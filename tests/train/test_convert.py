"""Converting upstream's checkpoints: the same weights, our settings, ready for the engine."""

from __future__ import annotations

import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.train.convert import convert


@pytest.fixture
def upstream(tmp_path):
    """A folder as upstream's training leaves it: its tokens, no settings, no chat template."""
    folder = tmp_path / "upstream"
    tokenizer, model = byte_tokenizer(), tiny_model("qwen2")
    tokens = ["<|splitter|>", "<|continue|>", "<|recover|>", "<|end_of_thought|>"]
    tokenizer.add_tokens([*tokens, *(f"<|o_{i}|>" for i in range(9))], special_tokens=True)
    tokenizer.chat_template = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_converted_checkpoint_runs_and_keeps_the_weights(upstream, tmp_path):
    folder, model, tokenizer = upstream
    settings = convert(folder, tmp_path / "ours")
    assert settings.num_gists == 9
    assert settings.gist_ids == tuple(
        tokenizer.convert_tokens_to_ids(f"<|o_{i}|>") for i in range(9)
    )
    assert settings.compress_answer
    llm = LLM(tmp_path / "ours", device="cpu", num_kv_tokens=512)
    assert llm.compression == settings
    for name, weight in llm.engine.runner.model.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name])
    params = SamplingParams(max_tokens=20, max_thought_tokens=5, ignore_eos=True)
    output = llm.chat([{"role": "user", "content": "hi"}], params)[0].outputs[0]
    assert output.stats.num_gist_tokens % 10 == 0
    assert output.stats.num_thoughts == 3


def test_bad_sources_and_targets_are_refused(upstream, tmp_path):
    folder, _, _ = upstream
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        convert(folder, tmp_path / "used")
    plain = tmp_path / "plain"
    tiny_model("qwen2").save_pretrained(plain)
    byte_tokenizer().save_pretrained(plain)
    with pytest.raises(CheckpointError, match="no gist tokens"):
        convert(plain, tmp_path / "out")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        convert(folder, tmp_path / "out")
