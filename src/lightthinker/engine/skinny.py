"""The matmuls of a compiled model, by our kernels where a step has few rows.

`use_skinny_linears` rewrites a traced graph: matmuls with plain weights become one operator, and a
merged gate and up with their activation and product become another (`gated_linear`). An operator
decides at each call, by the number of rows: a decode step waits for weights, which our kernels read
faster; everything else is what torch computed before. A CUDA graph holds what was decided for its
size.

Invariant: with more rows, on another device or in another dtype the model is what it was; with few
rows every result is rounded where torch rounds it, so the two differ as two matmul libraries do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from lightthinker.attention.triton.launch import pdl_supported
from lightthinker.attention.triton.linear_launch import NUM_ROWS, linear_config


def _skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    num_rows = x.shape[:-1].numel()
    config = linear_config(num_rows, *weight.shape)
    if config is None:
        return F.linear(x, weight, bias)
    from lightthinker.attention.triton.linear import skinny_linear

    rows = x.reshape(num_rows, -1).contiguous()
    return skinny_linear(rows, weight, bias, config).view(*x.shape[:-1], -1)


def _gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    num_rows = x.shape[:-1].numel()
    config = linear_config(num_rows, *weight.shape, gated=True)
    if config is None and not x.is_cuda:
        gate, up = F.linear(x, weight, bias).chunk(2, dim=-1)
        return _ACTIVATIONS[activation](gate) * up
    from lightthinker.attention.triton.linear import gated_linear, gated_product

    if config is None:
        y = _skinny_linear(x, weight, bias)
        product = gated_product(y.view(num_rows, -1), activation)
        return product.view(*x.shape[:-1], -1)
    rows = x.reshape(num_rows, -1).contiguous()
    return gated_linear(rows, weight, bias, activation, config).view(*x.shape[:-1], -1)


def _skinny_linear_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _gated_linear_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
}


_LIBRARY: Any = torch.library.Library("lightthinker", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _more, _kernel, _fake in (
    ("skinny_linear", "", _skinny_linear, _skinny_linear_fake),
    ("gated_linear", ", str activation", _gated_linear, _gated_linear_fake),
):
    # Calling a `custom_op` takes longer, which steps without a graph would feel.
    _LIBRARY.define(f"{_name}(Tensor x, Tensor weight, Tensor? bias{_more}) -> Tensor")
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lightthinker::{_name}", _fake, lib=_LIBRARY)


def is_half_on_cuda(weight: torch.Tensor) -> bool:
    """Whether our kernels take such a weight: float32 is left to the library."""
    return weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16)


def use_skinny_linears(
    module: fx.GraphModule, takes: Callable[[torch.Tensor], bool] = is_half_on_cuda
) -> tuple[int, int]:
    """Replace matmuls, and gated pairs of them, with operators that know few rows.

    Args:
        module: A graph as dynamo traces it, projections merged; changed in place.
        takes: Which weights.

    Returns:
        How many matmuls became a `skinny_linear`, and how many a `gated_linear`.
    """
    graph, num_plain, num_gated = module.graph, 0, 0
    for linear in graph.find_nodes(op="call_function", target=F.linear):
        if not _is_plain(linear, takes):
            continue
        inputs = (*linear.args, None)[:3]
        gated = _gated_product(linear)
        if not _wins_somewhere(linear.args[1].meta["example_value"].shape, gated is not None):
            continue
        with graph.inserting_before(linear):
            if gated is None:
                operator_ = torch.ops.lightthinker.skinny_linear.default
                ours, replaced = graph.call_function(operator_, inputs), linear
                num_plain += 1
            else:
                operator_ = torch.ops.lightthinker.gated_linear.default
                replaced, activation = gated
                ours = graph.call_function(operator_, (*inputs, activation))
                num_gated += 1
        ours.meta = dict(replaced.meta)
        replaced.replace_all_uses_with(ours)
        _erase(replaced, linear)
    module.recompile()
    return num_plain, num_gated


def _is_plain(linear: fx.Node, takes: Callable[[torch.Tensor], bool]) -> bool:
    """Whether the weight is a parameter as it lies in memory, not a computed or quantised one."""
    weight = linear.args[1] if len(linear.args) > 1 else None
    if linear.kwargs or not isinstance(weight, fx.Node) or weight.op != "placeholder":
        return False
    value = weight.meta.get("example_value")
    return (
        type(value) is FakeTensor
        and value.dim() == 2
        and value.is_contiguous()
        and all(isinstance(size, int) for size in value.shape)
        and takes(value)
    )


def _wins_somewhere(shape: torch.Size, gated: bool) -> bool:
    return any(linear_config(num_rows, *shape, gated=gated) for num_rows in NUM_ROWS)


def _gated_product(linear: fx.Node) -> tuple[fx.Node, str] | None:
    """Return the product `act(first half) * second half`, if that is all the matmul is for."""
    halves = _halves(linear)
    if halves is None:
        return None
    gate, up = halves
    if len(gate.users) != 1 or len(up.users) != 1:
        return None
    activated, product = next(iter(gate.users)), next(iter(up.users))
    activation = _activation(activated)
    if activation is None or len(activated.users) != 1:
        return None
    if product.target is not operator.mul or set(product.args) != {activated, up}:
        return None
    return product, activation


def _halves(linear: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    users = list(linear.users)
    keys: list[Any]
    if len(users) == 1 and (users[0].op, users[0].target) == ("call_method", "chunk"):
        chunk = users[0]
        if (*chunk.args[1:], *chunk.kwargs.values()) != (2, -1):
            return None
        users, keys = list(chunk.users), [0, 1]
    else:
        num_outputs = linear.args[1].meta["example_value"].shape[0]  # type: ignore[union-attr]
        middle = num_outputs // 2
        keys = [(..., slice(0, middle)), (..., slice(middle, num_outputs))]
    if len(users) != 2 or any(user.target is not operator.getitem for user in users):
        return None
    by_start = users if users[0].args[1] == keys[0] else users[::-1]
    if [user.args[1] for user in by_start] != keys:
        return None
    return by_start[0], by_start[1]


def _activation(node: fx.Node) -> str | None:
    others = (*node.args[1:], *sorted(node.kwargs.items()))
    if node.target is F.silu and others in ((), (False,), (("inplace", False),)):
        return "silu"
    if node.target is F.gelu and others in ((), (("approximate", "none"),)):
        return "gelu"
    if node.target is F.gelu and others == (("approximate", "tanh"),):
        return "gelu_tanh"
    return None


def _erase(node: fx.Node, first: fx.Node) -> None:
    """Take away a node that nothing uses, and what was only for it, back to the first one."""
    inputs = [] if node is first else node.all_input_nodes
    node.graph.erase_node(node)
    for earlier in inputs:
        if not earlier.users:
            _erase(earlier, first)


def dependent_launch() -> AbstractContextManager[None]:
    """Let Inductor launch its kernels while the ones before them end, where it knows how.

    Its kernels between ours would otherwise wait for the end of each, and ours for theirs.
    """
    has_option = "triton.enable_pdl" in torch._inductor.config.get_config_copy()
    if not (has_option and torch.cuda.is_available() and pdl_supported(torch.device("cuda"))):
        return nullcontext()
    patch: AbstractContextManager[None] = torch._inductor.config.patch({"triton.enable_pdl": True})
    return patch
