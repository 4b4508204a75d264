"""scripts/unpack_gguf.py: a GGUF file becomes the folder that transformers and the engine load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightthinker.compression import CompressionConfig
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "unpack_gguf.py"
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
PROMPT = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def unpack():
    spec = importlib.util.spec_from_file_location("unpack_gguf", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gguf_name(name):
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight":
                "output_norm.weight", "lm_head.weight": "output.weight"}[name]  # fmt: skip
    _, _, layer, *rest, kind = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest)]}.{kind}"


def write_gguf(path, model, *, coarse_embedding):
    """Write a Qwen2 with a head of its own, eos `<|im_end|>`."""
    config, tokenizer = model.config, byte_tokenizer()
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    tokens += ["<|endoftext|>", "Ġa", "th"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    kinds = {"<": TokenType.CONTROL, "[": TokenType.UNUSED}
    writer.add_token_types([kinds.get(t[0] if len(t) > 1 else "", 1) for t in tokens])
    writer.add_token_merges(["Ġ a", "t h"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if coarse_embedding and name == "model.embed_tokens.weight":
            kind = GGMLQuantizationType.Q5_0
            writer.add_tensor(gguf_name(name), quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original():
    return tiny_model("qwen2", tie_word_embeddings=False, hidden_size=64, vocab_size=272)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 40)[None], use_cache=False).logits


def test_a_folder_has_the_files_weights_tokens_and_template(unpack, original, tmp_path, capsys):
    write_gguf(tmp_path / "tiny.gguf", original, coarse_embedding=False)
    arguments = [str(tmp_path / "tiny.gguf"), str(tmp_path / "folder"), "--dtype", "float32"]

    unpack.main(arguments)

    assert json.loads(capsys.readouterr().out)["parameters"] == original.num_parameters()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(logits(model), logits(original))
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == model.generation_config.eos_token_id
    assert model.config.eos_token_id == byte_tokenizer().eos_token_id
    expected = byte_tokenizer().apply_chat_template(PROMPT, tokenize=False)
    assert tokenizer.apply_chat_template(PROMPT, tokenize=False) == expected
    assert len(tokenizer) == 262  # Not 272: new tokens take the rows of those that fill up.
    add_tokens(model, tokenizer, CompressionConfig(num_gists=2))
    assert tokenizer.convert_tokens_to_ids("<|trigger|>") == 262
    assert model.get_input_embeddings().weight.shape[0] == 272
    with pytest.raises(SystemExit, match="exists; choose another"):
        unpack.main(arguments)
    with pytest.raises(SystemExit, match="no copies of one matrix"):
        unpack.main([arguments[0], str(tmp_path / "tied"), "--tie-from-head"])


def test_of_two_copies_of_one_matrix_the_heads_is_kept(unpack, original, tmp_path):
    head = original.get_output_embeddings().weight
    original.get_input_embeddings().weight.data.copy_(head.data)
    write_gguf(tmp_path / "tiny.gguf", original, coarse_embedding=True)
    arguments = [str(tmp_path / "tiny.gguf"), str(tmp_path / "folder"), "--dtype", "float32"]

    unpack.main([*arguments, "--tie-from-head"])

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.testing.assert_close(logits(model), logits(original))
