"""What a sample cost, counted again from its raw trace: the obvious and slow oracle.

Two ways that share nothing with `TokenLayout`. `recount_roles` walks over the tokens with a list of
what is live, and knows only the protocol: when a thought has been compressed, it and its trigger
go. `recount_curve` knows only how much KV was in the pool after each step, whatever the method.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightthinker.evals.records import SampleRecord

VISIBLE = ("thought", "trigger", "answer")


@dataclass(frozen=True, kw_only=True)
class Recount:
    """Costs as `CompressionStats` names them; None where the trace does not tell."""

    peak_tokens: int
    mean_live_tokens: float
    dep_paper: int
    dep_full: int | None
    num_visible_tokens: int


def recount_roles(record: SampleRecord, *, anchor: bool = False) -> Recount:
    """Count from the roles; for full chain-of-thought, LightThinker and AnLLM without variants.

    Args:
        record: The sample.
        anchor: Whether a thought ends at a gist that sees nothing else (AnLLM).
    """
    tokens = [role for role, count in record.roles for _ in range(count)]
    live: list[str] = []
    peak = dep_full = 0
    seen: list[int] = []
    for at, role in enumerate(tokens):
        live.append(role)
        peak = max(peak, len(live))
        thought = sum(token in ("thought", "trigger") for token in live)
        sees = len(live)
        if role == "continue":
            sees -= thought
        elif role == "gist" and anchor:
            sees = thought + 1
        if role in VISIBLE:
            seen.append(sees)
        if role != "prompt":
            dep_full += sees
        ends = role == "gist" if anchor else role == "continue"
        if ends and (at + 1 == len(tokens) or tokens[at + 1] != role):
            live = [token for token in live if token not in ("thought", "trigger")]
    return Recount(
        peak_tokens=peak,
        mean_live_tokens=sum(seen) / len(seen) if seen else float(peak),
        dep_paper=sum(seen),
        dep_full=dep_full,
        num_visible_tokens=len(seen),
    )


def recount_curve(record: SampleRecord) -> Recount:
    """Count from the KV in the pool; a token that was sampled is written on top of it."""
    after: dict[int, int] = {}
    for (x0, y0), (x1, y1) in zip(record.kv_curve, record.kv_curve[1:]):
        for x in range(x0, x1 + 1):
            after[x] = y1 if x0 == x1 else y0 + (x - x0) * (y1 - y0) // (x1 - x0)
    sampled = [role for role, count in record.roles for _ in range(count) if role in VISIBLE]
    assert len(sampled) == record.stats.num_sampled_tokens, "AnLLM samples its gists"
    written = [after[x] + 1 for x in range(1, len(sampled) + 1)]
    return Recount(
        peak_tokens=max([y for _, y in record.kv_curve] + written),
        mean_live_tokens=sum(written) / len(written),
        dep_paper=sum(written),
        dep_full=None,
        num_visible_tokens=len(written),
    )
