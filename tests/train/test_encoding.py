"""Traces longer than a row, parallel encoding, GGUF's special tokens: nothing is lost uncounted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import lightthinker.train.encoding as encoding
from lightthinker.bundled import bundled_model_path
from lightthinker.compression import CompressionConfig
from lightthinker.data.sources import read_traces
from lightthinker.encode import Encoder
from lightthinker.errors import CheckpointError, ConfigError, DataError
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.testing.training import tiny_recipe
from lightthinker.tokens import resolve_tokens
from lightthinker.train.card import write_card
from lightthinker.train.checkpoint import load_model, load_tokenizer, plan_config
from lightthinker.train.datasets import TaskRows
from lightthinker.train.prepare import ROWS_FILE, SUMMARY_FILE, fingerprint, prepare
from lightthinker.train.recipe import DataConfig, ModelSource, TaskSource
from lightthinker.train.task_tokenizer import build_task_tokenizer


def write_traces(file, lengths):
    rows = [
        {
            "question": f"Question {number}?",
            "reasoning": "\n\n".join(f"Step {i} of {number}." for i in range(length)),
            "answer": f"Answer {number}.",
        }
        for number, length in enumerate(lengths)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def trace_recipe(tmp_path, name, **data):
    source = {"path": str(tmp_path / "traces.jsonl")}
    return tiny_recipe(
        tmp_path / name, data={"row_length": 96, "full_cot_share": 0.0, "sources": [source]} | data
    )


def prepared(recipe):
    folder = prepare(recipe)
    return json.loads((folder / SUMMARY_FILE).read_text()), load_file(folder / ROWS_FILE)


def test_long_traces_are_dropped_cut_at_a_thought_or_an_error(tmp_path):
    write_traces(tmp_path / "traces.jsonl", [2, 3, 60])
    dropped, _ = prepared(trace_recipe(tmp_path, "drop"))
    assert dropped["dropped"] == {"longer than data.row_length": 1}
    assert (dropped["num_examples"], dropped["truncated"]) == (2, 0)
    cut, rows = prepared(trace_recipe(tmp_path, "cut", too_long="truncate", packing="none"))
    assert cut["dropped"] == {}
    assert (cut["num_examples"], cut["truncated"]) == (3, 1)
    assert 0 < cut["thoughts_cut"] < 60
    recipe = trace_recipe(tmp_path, "cut", too_long="truncate")
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.add_tokens(list(recipe.compression.special_tokens), special_tokens=True)
    text = tokenizer.decode(rows["input_ids"][-1]).replace(tokenizer.pad_token, "")
    kept = 60 - cut["thoughts_cut"]
    assert text.endswith(f"Step {kept - 1} of 2.<|trigger|><|gist_1|><|gist_2|><|continue|>")
    assert "Answer" not in text
    with pytest.raises(DataError, match=r"data\.too_long"):
        prepare(trace_recipe(tmp_path, "error", too_long="error"))


def test_the_summary_shows_a_compressed_example_and_says_where_nothing_is_saved(tmp_path, capsys):
    write_traces(tmp_path / "traces.jsonl", [3] * 12)
    summary, _ = prepared(trace_recipe(tmp_path, "mixed", full_cot_share=0.9))
    assert 0 < summary["num_full_cot"] < 12
    printed = capsys.readouterr().out
    assert "<|trigger|><|gist_1|><|gist_2|><|continue|>" in printed
    assert "one single thought" not in printed
    assert summary["thoughts_per_trace"] == {"p10": 3, "p50": 3, "p90": 3, "max": 3}
    prepared(trace_recipe(tmp_path, "full", full_cot_share=1.0))
    assert "model sees it (full chain-of-thought)" in capsys.readouterr().out
    write_traces(tmp_path / "traces.jsonl", [1, 1, 1, 4])
    prepared(trace_recipe(tmp_path, "whole"))
    assert "one single thought" in capsys.readouterr().out


def test_the_ninth_decile_is_not_above_the_largest_value(tmp_path):
    write_traces(tmp_path / "traces.jsonl", [2, 9])
    summary, _ = prepared(trace_recipe(tmp_path, "two", row_length=256))
    for name in ("thoughts_per_trace", "thought_tokens", "peak_tokens", "full_cot_tokens"):
        assert summary[name]["p90"] <= summary[name]["max"], name


def test_rows_belong_to_the_tokenizer_that_encoded_them(tmp_path):
    write_traces(tmp_path / "traces.jsonl", [2, 3])
    folder = tmp_path / "tokenizer"
    build_task_tokenizer().save_pretrained(folder)
    recipe = trace_recipe(tmp_path, "run")
    model = dataclasses.replace(recipe.model, tokenizer=str(folder))
    recipe = dataclasses.replace(recipe, model=model)
    before = fingerprint(recipe)
    assert before == fingerprint(recipe)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert before != fingerprint(recipe)


@pytest.mark.parametrize("method", ["full", "token"])
def test_a_cut_trace_fills_its_row_as_far_as_thoughts_allow(tmp_path, method):
    write_traces(tmp_path / "traces.jsonl", [60])
    recipe = trace_recipe(tmp_path, method, too_long="truncate")
    recipe = tiny_recipe(
        tmp_path / method, **{**recipe.to_dict(), "compression": {"method": method, "num_gists": 2}}
    )
    summary, rows = prepared(recipe)
    assert summary["truncated"] == 1
    assert 75 <= rows["counts"][0, 0] <= 96


def test_without_packing_each_trace_has_a_row(tmp_path):
    write_traces(tmp_path / "traces.jsonl", [2] * 7)
    packed, _ = prepared(trace_recipe(tmp_path, "packed", row_length=256))
    alone, rows = prepared(trace_recipe(tmp_path, "alone", row_length=256, packing="none"))
    assert alone["num_rows"] == 7
    assert packed["num_rows"] < 7
    assert (rows["counts"][:, 3] == 1).all()
    assert rows["counts"][:, 0].sum() == alone["num_tokens"] == packed["num_tokens"]


def test_processes_do_not_change_what_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "PARALLEL_FROM", 8)
    write_traces(tmp_path / "traces.jsonl", [1 + i % 5 for i in range(60)])
    chance = {"full_cot_share": 0.4, "retain_thoughts": [0, 1]}
    _, alone = prepared(trace_recipe(tmp_path, "one", num_proc=1, **chance))
    _, together = prepared(trace_recipe(tmp_path, "two", num_proc=2, **chance))
    for name, array in alone.items():
        np.testing.assert_array_equal(together[name], array, name)


def test_counts_are_what_the_rows_hold(tmp_path):
    write_traces(tmp_path / "traces.jsonl", [3, 4])
    summary, rows = prepared(trace_recipe(tmp_path, "run", row_length=200))
    (row,) = rows["counts"]
    tokens, inserted, thoughts, documents, attended = row.tolist()
    assert tokens == summary["num_tokens"]
    assert (thoughts, documents, inserted) == (7, 2, 7 * 3)
    index, expires = np.arange(200), rows["expires"][0]
    visible = (index[None] <= index[:, None]) & (index[:, None] < expires[None])
    assert attended == visible[:tokens].sum()


def test_upstreams_pieces_of_the_answer_are_its_thoughts(tmp_path):
    pieces = ["<|begin_of_thought|>", "One.", "<|end_of_thought|>", "The sum.", "It is 2."]
    row = {"question": "1+1?", "gt_output": "\n\n".join(pieces), "thoughts_list": pieces}
    (tmp_path / "up.jsonl").write_text(json.dumps(row) + "\n")
    (trace,) = read_traces(tmp_path / "up.jsonl")
    assert trace.answer_pieces == ("The sum.\n\n", "It is 2.")


def test_a_tokenizer_that_does_not_match_the_checkpoint_is_refused(tmp_path):
    tiny_model("llama", vocab_size=300).save_pretrained(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<new_{i}>" for i in range(100)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = {"path": str(tmp_path / "model"), "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_model(tiny_recipe(tmp_path / "run", model=source), seed=0)
    other = {**source, "architecture": {"model_type": "llama", "num_hidden_layers": 99}}
    with pytest.raises(ConfigError, match="num_hidden_layers is 99"):
        load_model(tiny_recipe(tmp_path / "run", model=other), seed=0)


def test_demo_is_the_bundled_model_in_a_recipe_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # No folder of this name is near.
    folder = bundled_model_path()
    settings = json.loads((folder / "config.json").read_text())
    recipe = tiny_recipe(tmp_path / "run", model={"path": "demo"}, compression={"num_gists": 4})
    model, tokenizer, compression = load_model(recipe, seed=0)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    assert compression.gist_ids == tuple(settings["lightthinker"]["gist_ids"])
    assert len(tokenizer) == settings["vocab_size"]
    assert plan_config(recipe.model).num_hidden_layers == settings["num_hidden_layers"]
    by_name = ModelSource(config={"model_type": "llama"}, tokenizer="demo")
    assert len(load_tokenizer(by_name)) == len(tokenizer)
    write_card(tmp_path, recipe, [])
    card = (tmp_path / "README.md").read_text()
    assert "Trained from: demo" in card
    assert "base_model" not in card, "the hub knows no such model"


def test_special_tokens_are_the_ones_the_gguf_file_names(tmp_path, monkeypatch):
    """transformers read SmolLM2's bos token as its eos."""
    from gguf import GGUFWriter
    from transformers import AutoTokenizer

    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    misread = byte_tokenizer()
    misread.eos_token = "<|im_start|>"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **kwargs: misread)
    source = ModelSource(path=str(tmp_path), gguf_file="tiny.gguf")
    assert load_tokenizer(source).eos_token == "<|im_end|>"


def test_rows_of_several_difficulties_hold_long_traces_beside_short_ones():
    config = CompressionConfig(num_gists=4)
    tokenizer = build_task_tokenizer()
    tokenizer.add_tokens(list(config.special_tokens), special_tokens=True)
    encoder = Encoder(tokenizer, resolve_tokens(tokenizer, config))
    families = {"programs": 1.0, "word_problems": 1.0}
    tasks = TaskSource(families=families, difficulty={"mixed": 1, "8k": 1}, seed=1)
    data = DataConfig(row_length=16_384, full_cot_share=0.5, tasks=tasks)
    rows = TaskRows(encoder, tasks, data=data, num_rows=3)
    lengths = []
    for row in (rows[0], rows[1], rows[2]):
        begins = np.flatnonzero(row["position_ids"] == 0)
        lengths += np.diff([*begins, 16_384]).tolist()
        assert (row["expires"] > np.arange(16_384)).all()
    assert any(8_000 < length < 12_500 for length in lengths)
    assert sum(50 < length < 1_500 for length in lengths) > 3
    assert all(np.array_equal(rows[1][name], array) for name, array in rows[1].items())


def test_a_checkpoint_gets_more_positions_for_longer_rows(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    model = {"path": str(tmp_path / "m"), "max_position_embeddings": 16_384}
    recipe = tiny_recipe(tmp_path / "run", model=model)
    loaded, _, _ = load_model(recipe, seed=0)
    assert loaded.config.max_position_embeddings == 16_384
    with pytest.raises(ConfigError, match="of its own"):
        ModelSource(config={"model_type": "llama"}, tokenizer="tasks", max_position_embeddings=9)
