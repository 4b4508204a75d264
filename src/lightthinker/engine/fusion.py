"""What a compiled model computes together: q, k, v as one matmul, gate and up as one, RoPE once.

A decode step waits for weights, and two small matmuls take longer than one with the rows of both.
The weights of such a group become views of one tensor, so nothing is stored twice, and eagerly each
projection is what it was. Under torch.compile it is a matmul with its rows of the shared tensor,
and `merge_projections` makes one of those in a group that have the same input.

Invariant: a traced model is right without the merge, too. What is merged follows from the graph,
never from the order of calls, and no state outlives a forward.
"""

from __future__ import annotations

import operator
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from lightthinker.engine.skinny import dependent_launch, use_skinny_linears

PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling modules that get the same input, in transformers' models."""


class ProjectionSlice(nn.Linear):
    """A projection whose weight and bias are rows of tensors that it shares with its siblings.

    Attributes:
        fused_weight: [sum of out_features, in_features], the rows of all siblings.
        fused_bias: [sum of out_features], or None.
        rows: Which of them are its own.
    """

    fused_weight: torch.Tensor
    fused_bias: torch.Tensor | None
    rows: slice

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        # Gradients belong to the parameters.
        if not torch.compiler.is_compiling() or torch.is_grad_enabled():
            return super().forward(input)
        bias = None if self.fused_bias is None else self.fused_bias[self.rows]
        return F.linear(input, self.fused_weight[self.rows], bias)

    @property
    def is_current(self) -> bool:
        """Whether the parameters are still views of the shared tensors."""
        pairs = [(self.weight, self.fused_weight)]
        if self.fused_bias is not None:
            pairs.append((self.bias, self.fused_bias))
        return all(
            part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            for part, whole in pairs
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Become a plain `nn.Linear` again: a parameter that is moved or cast leaves the others."""
        self.__class__ = nn.Linear  # type: ignore[assignment]
        del self.fused_weight, self.fused_bias, self.rows
        return self._apply(fn, recurse)


def fuse_projections(model: nn.Module) -> int:
    """Lay the weights of projections that share an input side by side; twice is as good as once.

    Only plain `nn.Linear` children with the names in `PROJECTIONS` are touched: adapters, quantised
    and distributed weights stay as they are. Parameters keep their identity, names and values. From
    then on they must be changed in place: after `load_state_dict(assign=True)`, a deep copy or
    `model.to`, fuse again.

    Args:
        model: Any module. At most one group's weights are held twice on the way.

    Returns:
        How many groups were fused.
    """
    fused: list[list[Any]] = []
    for module in model.modules():
        children = dict(module.named_children())
        for names in PROJECTIONS:
            group = [children[name] for name in names if name in children]
            if len(group) == len(names) and _can_fuse(group):
                _fuse(group)
                fused.append(group)
    if any(group[0].weight.is_cuda for group in fused):
        torch.cuda.empty_cache()  # The blocks of the former weights are too small for new ones.
    return len(fused)


def _can_fuse(group: list[Any]) -> bool:
    if not all(type(linear) in (nn.Linear, ProjectionSlice) for linear in group):
        return False
    if all(type(linear) is ProjectionSlice and linear.is_current for linear in group):
        return False
    kinds = {
        (name, type(parameter), parameter.shape[1:], parameter.dtype, parameter.device)
        for linear in group
        for name, parameter in linear.named_parameters()
    }
    num_parameters = {len(list(linear.parameters())) for linear in group}
    return (
        len(num_parameters) == 1
        and len(kinds) == num_parameters.pop()
        and all(kind is nn.Parameter for _, kind, *_ in kinds)
    )


@torch.no_grad()
def _fuse(group: list[Any]) -> None:
    weight = torch.cat([linear.weight for linear in group])
    bias = None if group[0].bias is None else torch.cat([linear.bias for linear in group])
    start = 0
    for linear in group:
        rows = slice(start, start + linear.out_features)
        linear.weight.data = weight[rows]
        if bias is not None:
            linear.bias.data = bias[rows]
        linear.__class__ = ProjectionSlice
        linear.fused_weight, linear.fused_bias, linear.rows = weight, bias, rows
        start = rows.stop
    for whole in (weight, bias):
        if whole is not None:  # Of one shape, like a parameter, whatever was compiled before.
            torch._dynamo.mark_static(whole)


def merge_projections(module: fx.GraphModule) -> int:
    """Make one matmul of those that give one input to all the rows of one weight.

    Args:
        module: A graph as dynamo traces it; changed in place.

    Returns:
        How many groups were merged.
    """
    groups: dict[tuple[fx.Node | None, ...], list[_Part]] = defaultdict(list)
    for node in module.graph.find_nodes(op="call_function", target=F.linear):
        part = _part(node)
        if part is not None:
            groups[part.inputs].append(part)
    mergeable = [parts for parts in groups.values() if _are_all_rows(parts) and _may_merge(parts)]
    for parts in mergeable:
        _merge(module.graph, parts)
    module.recompile()
    return len(mergeable)


def compile_merged(module: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
    """Inductor with merged projections and our matmuls, a backend for `torch.compile`.

    Small kernels that do not need each other, such as RoPE of queries and of keys, become one;
    LIGHTTHINKER_COMBO_KERNELS=0 in the environment keeps them apart.
    """
    merge_projections(module)
    use_skinny_linears(module)
    combine = os.environ.get("LIGHTTHINKER_COMBO_KERNELS", "1") != "0"
    options = {"combo_kernels": True} if combine else None
    with dependent_launch():
        compiled: Callable[..., Any] = torch._inductor.compile(module, example_inputs, options)
    return compiled


@dataclass(frozen=True)
class _Part:
    """A matmul with some rows of a weight.

    Attributes:
        linear: Its node.
        inputs: What it is given: input, whole weight, whole bias or None.
        start: First row.
        stop: Behind the last row.
    """

    linear: fx.Node
    inputs: tuple[Any, Any, Any]
    start: int
    stop: int


def _part(linear: fx.Node) -> _Part | None:
    if len(linear.args) != 3:
        return None
    input, weight, bias = linear.args
    rows = _slice(weight)
    if rows is None or not isinstance(rows.start, int) or not isinstance(rows.stop, int):
        return None
    if rows.step is not None or (bias is not None and _slice(bias) != rows):
        return None
    whole_weight, whole_bias = (
        p.args[0] if isinstance(p, fx.Node) else None for p in (weight, bias)
    )
    return _Part(linear, (input, whole_weight, whole_bias), rows.start, rows.stop)


def _slice(node: Any) -> slice | None:
    is_item = isinstance(node, fx.Node) and node.target is operator.getitem
    return node.args[1] if is_item and isinstance(node.args[1], slice) else None


def _are_all_rows(parts: list[_Part]) -> bool:
    runs = sorted((part.start, part.stop) for part in parts)
    starts, stops = zip(*runs)
    num_rows = parts[0].inputs[1].meta["example_value"].shape[0]
    return bool((*starts, num_rows) == (0, *stops))


def _may_merge(parts: list[_Part]) -> bool:
    """Whether nothing else uses the input in between; it could write to it."""
    linears = [part.linear for part in parts]
    others = parts[0].inputs[0].users.keys() - set(linears)
    return len(parts) > 1 and not any(linears[0] < user < linears[-1] for user in others)


def _merge(graph: fx.Graph, parts: list[_Part]) -> None:
    with graph.inserting_before(parts[0].linear):
        merged = graph.call_function(F.linear, parts[0].inputs)
        for part in parts:
            columns: Any = (..., slice(part.start, part.stop))
            own = graph.call_function(operator.getitem, (merged, columns))
            part.linear.replace_all_uses_with(own)
    for part in parts:
        graph.erase_node(part.linear)


@torch.library.custom_op("lightthinker::materialize", mutates_args=())
def materialize(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy, which Inductor does not compute anew in each kernel that reads it."""
    return tensor.clone()


@materialize.register_fake
def _materialize_fake(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor)


def materialize_rotary(model: nn.Module) -> None:
    """Let a compiled model compute RoPE's cosines and sines once a step, not once a layer.

    Args:
        model: Its modules named `...RotaryEmbedding` get a hook, which does nothing when eager.
    """
    for module in model.modules():
        is_rotary = type(module).__name__.endswith("RotaryEmbedding")
        if is_rotary and _materialize_output not in module._forward_hooks.values():
            module.register_forward_hook(_materialize_output)


def _materialize_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    if not torch.compiler.is_compiling():
        return output
    return tree_map_only(torch.Tensor, materialize, output)
