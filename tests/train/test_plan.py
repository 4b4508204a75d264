"""The memory plan: what a layer is said to keep is what it saves; when a step is fullest."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightthinker.testing.training import tiny_recipe
from lightthinker.train.flops import ModelSize
from lightthinker.train.plan import _layer_bytes, _layer_weights, make_plan, print_plan
from lightthinker.train.prepare import prepare
from lightthinker.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]

LENGTH = 192
SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "tie_word_embeddings": True,
}


def saved_bytes(model, *, compiled):
    """Count what the second of three layers saves: activations, and other tensors."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, counting = {}, False

    def count(tensor):
        if counting and tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    layers = model.model.layers
    for layer in layers:
        if compiled:  # the partitioner that chooses what is kept, without code generation
            layer.compile(dynamic=False, backend="aot_eager_decomp_partition")

    def switched(call, is_on):
        def run(*args, **kwargs):
            nonlocal counting
            counting = is_on
            return call(*args, **kwargs)

        return run

    for index, is_on in ((1, True), (2, False)):
        layer = layers[index]
        if compiled:
            layer._compiled_call_impl = switched(layer._compiled_call_impl, is_on)
        else:
            layer.forward = switched(layer.forward, is_on)
    ids = torch.randint(0, 300, (1, LENGTH))
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model.model(input_ids=ids, use_cache=False)
    sizes = [(t.untyped_storage().nbytes(), LENGTH in t.shape) for t in kept.values()]
    return sum(n for n, mine in sizes if mine), sum(n for n, mine in sizes if not mine)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_keeps_what_the_plan_says(tmp_path, dtype, compiled):
    config = AutoConfig.for_model(**SHAPE)
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).train()
    torch._dynamo.reset()
    activations, others = saved_bytes(model, compiled=compiled)
    recipe = tiny_recipe(tmp_path / "run")
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, dtype=dtype, compile=compiled)
    )
    size = ModelSize.of(model)
    planned = _layer_bytes(recipe, size, sharded=False) * LENGTH
    assert planned == pytest.approx(activations, rel=0.05)
    if dtype == "float32":
        assert 2 * _layer_weights(size) == pytest.approx(others, rel=0.02)


def test_gradients_and_activations_are_not_there_at_once_unless_accumulated(tmp_path):
    once = make_plan(tiny_recipe(tmp_path / "a", trainer__per_device_train_batch_size=4))
    twice = tiny_recipe(tmp_path / "b", trainer__per_device_train_batch_size=4)
    twice.trainer["gradient_accumulation_steps"] = 2
    assert make_plan(twice).memory_gb == pytest.approx(once.memory_gb + once.gradients_gb)
    fixed = once.weights_gb + once.optimizer_gb
    loss = once.activations_gb + max(once.logits_gb, once.backward_gb)
    assert once.memory_gb == pytest.approx(fixed + loss)


@pytest.mark.parametrize(
    ("strategy", "offload", "dtype", "lora", "at_once"),
    [
        ("fsdp2", False, "float32", None, "read"),
        ("fsdp2", False, "bfloat16", None, "read"),
        ("fsdp2", True, "float32", None, "offloaded"),
        ("fsdp2", False, "bfloat16", {"rank": 4}, "read"),
        ("ddp", False, "float32", None, "read by each"),
        ("deepspeed_zero3", False, "float32", None, "read by each"),
        ("deepspeed_zero3", True, "float32", None, "offloaded twice"),
    ],
)
def test_host_memory_is_that_of_one_model_where_one_process_reads_it(
    tmp_path, strategy, offload, dtype, lora, at_once
):
    recipe = tiny_recipe(
        tmp_path / "run", model__dtype=dtype, lora=lora, save={"dtype": "bfloat16"},
        distributed={"strategy": strategy, "cpu_offload": offload},
    )  # fmt: skip
    one, four = (make_plan(recipe, num_gpus=n) for n in (1, 4))
    model = getattr(torch, dtype).itemsize * one.size.num_parameters
    trained = one.size.num_trainable
    expected = {
        "read": model + (4 - getattr(torch, dtype).itemsize) * trained,  # float32 where trained
        "read by each": 4 * model,
        "offloaded": (16 + 2) * one.size.num_parameters,  # at the end, the final model beside it
        "offloaded twice": (16 + 2 + 2) * one.size.num_parameters,  # DeepSpeed has bf16 copies
    }
    assert one.host_gb * 1e9 == pytest.approx(model)
    assert four.host_gb * 1e9 == pytest.approx(expected[at_once])


def test_weights_under_deepspeed_are_bf16_and_float32_where_trained(tmp_path):
    for lora in (None, {"rank": 4}):
        recipe = tiny_recipe(
            tmp_path / "run", distributed={"strategy": "deepspeed_zero3"}, lora=lora
        )
        one, four = (make_plan(recipe, num_gpus=n) for n in (1, 4))
        every, trained = one.size.num_parameters, one.size.num_trainable
        gathered = 2 * every
        assert four.weights_gb * 1e9 == pytest.approx((2 * every + 4 * trained) / 4 + gathered)
        assert one.weights_gb * 1e9 == pytest.approx(4 * every)


def test_the_documented_plans_are_those_of_the_recipes():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+\.yaml)` \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(listed) == 9
    for name, num_gpus, memory in listed:
        plan = make_plan(load_recipe(ROOT / "recipes" / name), num_gpus=int(num_gpus))
        assert round(plan.memory_gb) == int(memory), name


def test_steps_are_planned_from_rows_of_this_recipe_only(tmp_path, capsys):
    file = tmp_path / "traces.jsonl"
    file.write_text('{"question": "a", "reasoning": "b\\n\\nc", "answer": "d"}\n' * 9)
    data = {"row_length": 64, "sources": [{"path": str(file)}], "packing": "none"}
    settings = {"data": data, "trainer__max_steps": -1, "trainer__num_train_epochs": 2}
    prepare(tiny_recipe(tmp_path / "run", **settings))
    recipe = tiny_recipe(tmp_path / "run", **settings)
    assert make_plan(recipe).num_steps == 10  # 2 epochs of 9 rows, 2 rows a step.
    other = tiny_recipe(tmp_path / "run", **settings, compression={"num_gists": 3})
    assert make_plan(other).num_steps is None
    capsys.readouterr()
    print_plan(recipe, make_plan(recipe))
    assert "the final one only" in capsys.readouterr().out
    recipe.trainer["save_steps"] = 20
    print_plan(recipe, make_plan(recipe))
    assert "every 20 steps" in capsys.readouterr().out
