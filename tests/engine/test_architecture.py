"""What the paged engine cannot serve is refused by name, before any weight is read."""

from __future__ import annotations

import json
from types import MethodType

import pytest
import torch
from transformers import AutoConfig

from lightthinker import LLM
from lightthinker.cli.app import main
from lightthinker.engine import architecture, llm, loading
from lightthinker.engine.architecture import check_architecture, check_config
from lightthinker.engine.runner import ModelRunner
from lightthinker.errors import CheckpointError
from lightthinker.testing.models import FAMILIES, tiny_config, tiny_model

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
DYNAMIC_ROPE = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}

REFUSED = {
    # Recurrent layers alone, in place of some attention layers, or beside attention in each.
    "mamba": ({}, r"layers 0-3 \(MambaMixer\) keep a recurrent state"),
    "mamba2": (
        {"num_heads": 8, "head_dim": 8, "n_groups": 1},
        r"layers 0-3 \(Mamba2Mixer\) keep a recurrent state",
    ),
    "falcon_mamba": ({}, r"\(FalconMambaMixer\) keep a recurrent state"),
    "rwkv": ({"attention_hidden_size": 32}, r"\(RwkvSelfAttention\) keep a recurrent state"),
    "xlstm": ({"num_heads": 4}, r"\(xLSTMLayer\) keep a recurrent state"),
    "jamba": (
        {**EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1},
        r"layers 0, 2 \(JambaMambaMixer\) keep a recurrent state",
    ),
    "bamba": (
        {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
        r"layers 0, 2-3 \(BambaMixer\) keep a recurrent state",
    ),
    "falcon_h1": (
        {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1},
        r"\(FalconH1DecoderLayer\) keep a recurrent state beside attention",
    ),
    "qwen3_next": (EXPERTS, r"layers 0-2 \(Qwen3NextGatedDeltaNet\) keep a recurrent state"),
    "recurrent_gemma": (
        {"lru_width": 32, "block_types": ["recurrent", "recurrent", "attention"]},
        r"\(RecurrentGemmaRecurrentBlock\) keep a recurrent state",
    ),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"] * 2},
        r"layers 0, 2 \(Lfm2ShortConv\) do not call the registered attention",
    ),
    "minimax": (
        {**EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2},
        r"layers 0, 2 \(MiniMaxLightningAttention\) do not call the registered attention",
    ),
    # Biases and masks on attention scores.
    "bloom": ({}, "ALiBi"),
    "mpt": ({}, "ALiBi"),
    "falcon": ({"alibi": True}, "ALiBi"),
    "falcon+rope": ({"alibi": False}, "its attention cannot be replaced"),
    "gpt_oss": (EXPERTS, "its attention has sinks"),
    "inkling_text": (
        {**EXPERTS, "n_routed_experts": 4, "head_dim": 8},
        "its attention has a relative position bias",
    ),
    "doge": ({}, "its attention has a mask or a bias of the model's own"),
    "bert": ({}, "its attention sees later tokens"),
    "llama4_text": (
        {**EXPERTS, "head_dim": 8, "intermediate_size_mlp": 48},
        "layers 0-2 of type 'chunked_attention'",
    ),
    "deepseek_v32": (
        {**LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2},
        "layers 0-3 of type 'deepseek_sparse_attention'",
    ),
    # More of a token than one pair of key and value per layer.
    "t5": ({}, "an encoder and a decoder with cross-attention"),
    "bart": ({}, "an encoder and a decoder with cross-attention"),
    "mllama": ({}, "it has cross-attention"),
    "diffllama": ({}, "layer 0 attends more than once for each token"),
    # Positions and functions that are not the engine's to choose.
    "codegen": ({"rotary_dim": 4}, r"\(CodeGenAttention\) do not call the registered attention"),
    "roformer": ({"is_decoder": True}, "it counts positions itself"),
    "llama": (DYNAMIC_ROPE, "its RoPE type 'dynamic'"),
    "vit": ({}, "transformers has no causal language model"),
}


def config_of(name):
    return AutoConfig.for_model(name.split("+")[0], **{**TINY, **REFUSED[name][0]})


@pytest.fixture
def no_loading(monkeypatch):
    """Loading a tokenizer or weights, or starting processes, fails the test."""

    def loaded(*args, **kwargs):
        raise AssertionError("something was loaded before the architecture was checked")

    for name in ("load_engine", "load_tokenizer", "ParallelEngine"):
        monkeypatch.setattr(llm, name, loaded)
    for name in ("load_checkpoint", "load_tokenizer"):
        monkeypatch.setattr(loading, name, loaded)


@pytest.mark.parametrize("name", REFUSED)
def test_the_message_names_the_feature(name, tmp_path, no_loading):
    config_of(name).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=REFUSED[name][1]) as refusal:
        LLM(tmp_path, device="cpu")
    assert f"models of type '{name.split('+')[0]}'" in str(refusal.value)


@pytest.mark.parametrize("size", ["tensor_parallel_size", "data_parallel_size"])
def test_no_process_is_started_for_it(size, tmp_path, no_loading):
    config_of("mamba").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="MambaMixer"):
        LLM(tmp_path, device="cpu", **{size: 2})


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "{}"],
        ["chat", "{}"],
        ["generate", "{}", "hello"],
        ["eval", "{}", "--output", "{}/out"],
    ],
)
def test_every_command_says_so(command, tmp_path, capsys):
    config_of("jamba").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(SystemExit) as ended:
        main([word.format(tmp_path) for word in command])
    assert ended.value.code == 2
    assert "JambaMambaMixer" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_tested_families_are_served(family, monkeypatch):
    probed = []
    probe = architecture.probe_layers
    monkeypatch.setattr(architecture, "probe_layers", lambda m: probed.append(probe(m)))
    config = tiny_config(family)
    before = config.to_dict()
    check_architecture(config)
    assert config.to_dict() == before
    # The loaded model shows what the one without weights has shown.
    assert probed == [ModelRunner(tiny_model(family)).probe()]


def test_a_forward_that_only_the_meta_device_cannot_run_refuses_nothing(monkeypatch):
    def fails(model):
        raise NotImplementedError("no data")

    monkeypatch.setattr(architecture, "probe_layers", fails)
    check_architecture(tiny_config("qwen2"))
    with pytest.raises(CheckpointError, match="chunked_attention"):
        check_architecture(config_of("llama4_text"))


def wrap(module, wrapper):
    """Let `wrapper(forward, *args)` stand for a module's forward."""
    forward = module.forward
    module.forward = MethodType(lambda self, *args, **kw: wrapper(forward, *args, **kw), module)


def shifted(forward, x):
    """Add what the token before gave, as a short convolution does."""
    y = forward(x)
    return y + y.roll(1, dims=1)


def test_a_loaded_model_must_not_mix_tokens_besides_attention():
    model = tiny_model("qwen2")
    wrap(model.model.embed_tokens, shifted)
    with pytest.raises(CheckpointError, match="input of layer 0's attention depends on other"):
        ModelRunner(model).probe()
    model = tiny_model("qwen2")
    wrap(model.model.norm, shifted)
    with pytest.raises(CheckpointError, match="its logits depend on other tokens"):
        ModelRunner(model).probe()


def test_a_loaded_model_must_use_the_positions_it_is_given():
    model = tiny_model("qwen2")

    def own(forward, x, position_ids):
        return forward(x, torch.arange(x.shape[1])[None])

    wrap(model.model.rotary_emb, own)
    with pytest.raises(CheckpointError, match="positions that the model counts itself"):
        ModelRunner(model).probe()


def test_a_loaded_model_is_checked_where_its_config_could_not_be():
    with pytest.raises(CheckpointError, match="its RoPE type 'dynamic'"):
        ModelRunner(tiny_model("llama", **DYNAMIC_ROPE))
    with pytest.raises(CheckpointError, match="chunked_attention"):
        check_config(config_of("llama4_text"))


def test_a_type_that_transformers_does_not_know_is_named(tmp_path, no_loading, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "no")
    settings = {"model_type": "no_such_type"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="model type `no_such_type`"):
        LLM(tmp_path, device="cpu")
    settings["auto_map"] = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "model_x.X"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"No remote code is run\."):
        LLM(tmp_path, device="cpu")
