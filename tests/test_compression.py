"""CompressionConfig.

Round trip through config.json, and errors that name field, value and what is allowed.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightthinker.compression import CompressionConfig
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.testing.models import byte_tokenizer, tiny_checkpoint, tiny_model
from lightthinker.tokens import add_tokens, gist_description, resolve_tokens


@pytest.mark.parametrize(
    "config",
    [
        CompressionConfig(),
        CompressionConfig(method="token", num_gists=2, segment_tokens=6),
        CompressionConfig(method="anllm", num_gists=1),
        CompressionConfig(
            num_gists=3, tokens_per_gist=8.0, retain_thoughts=2, position_mode="spread"
        ),
        CompressionConfig(method="full"),
    ],
)
def test_round_trip_through_config_json(config, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", compression=config)
    loaded = CompressionConfig.from_pretrained(folder)
    assert loaded.is_resolved
    assert {k: v for k, v in loaded.to_dict().items() if not k.endswith(("_id", "_ids"))} == {
        k: v for k, v in config.to_dict().items() if not k.endswith(("_id", "_ids"))
    }
    assert CompressionConfig.from_dict(loaded.to_dict()) == loaded


def test_stock_transformers_loads_the_folder(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()
    assert AutoConfig.from_pretrained(folder).lightthinker["num_gists"] == 2


def test_new_rows_are_means_of_their_descriptions():
    for tied in (True, False):
        model, tokenizer = tiny_model("qwen2", tie_word_embeddings=tied), byte_tokenizer()
        before = [
            w.weight.detach().clone()
            for w in (model.get_input_embeddings(), model.get_output_embeddings())
        ]
        config = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
        ids = tokenizer(gist_description(1), add_special_tokens=False)["input_ids"]
        for old, layer in zip(
            before, (model.get_input_embeddings(), model.get_output_embeddings())
        ):
            torch.testing.assert_close(layer.weight[config.gist_ids[1]], old[ids].mean(0))
            torch.testing.assert_close(
                layer.weight[: tokenizer.vocab_size], old[: tokenizer.vocab_size]
            )


def test_existing_tokens_keep_their_ids_and_rows():
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer()
    first = add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    with torch.no_grad():
        model.get_input_embeddings().weight[first.trigger_id] = 7.0
    again = add_tokens(model, tokenizer, CompressionConfig(num_gists=3))
    assert again.trigger_id == first.trigger_id
    assert again.gist_ids[:2] == first.gist_ids
    assert (model.get_input_embeddings().weight[again.trigger_id] == 7.0).all()


def test_embeddings_grow_when_the_tokenizer_outgrows_them():
    model, tokenizer = tiny_model("qwen2", vocab_size=260), byte_tokenizer()
    config = add_tokens(model, tokenizer, CompressionConfig(num_gists=20))
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) > 260
    assert model.config.vocab_size == len(tokenizer)
    assert max(config.gist_ids) < len(tokenizer)


def test_unknown_setting_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"num_gist.*'num_gists'"):
        CompressionConfig.from_dict({"num_gist": 3})


def test_gist_count_not_matching_the_checkpoint():
    with pytest.raises(ConfigError, match="gist_ids has 2 ids"):
        CompressionConfig(num_gists=3, gist_ids=(1, 2))
    with pytest.raises(ConfigError, match="gist_tokens has 2"):
        CompressionConfig(num_gists=3, gist_tokens=("a", "b"))


def test_checkpoint_without_our_settings(tmp_path):
    with pytest.raises(CheckpointError, match=r"No config.json"):
        CompressionConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(CheckpointError, match="was not trained with LightThinker"):
        CompressionConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"trigger_token": "<|gist_1|>"}, "trigger_token .*gist_tokens"),
        ({"continue_token": "<|trigger|>"}, "continue_token .*trigger_token"),
        ({"recover_token": "<|continue|>"}, "recover_token .*continue_token"),
        ({"trigger_token": ""}, "trigger_token is empty"),
    ],
)
def test_a_token_has_one_role(settings, named):
    with pytest.raises(ConfigError, match=named):
        CompressionConfig(num_gists=2, **settings)


def test_tokens_that_a_method_does_not_have_may_have_any_name():
    CompressionConfig(method="anllm", num_gists=1, trigger_token="<|gist_1|>")
    CompressionConfig(method="token", trigger_token="<|continue|>")
    CompressionConfig(method="full", trigger_token="<|continue|>")


def test_the_token_that_ends_a_text_cannot_compress():
    tokenizer = byte_tokenizer()
    config = CompressionConfig(num_gists=1, trigger_token=tokenizer.eos_token)
    tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
    with pytest.raises(CheckpointError, match="eos token"):
        resolve_tokens(tokenizer, config)
