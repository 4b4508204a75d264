"""Traces -> encoded examples, in parallel and in order.

What chance decides (full chain-of-thought or not, retention, reconstruction) is drawn here, one
trace after the other, before the work is handed out: the result does not depend on the number of
processes. Traces longer than a row follow `data.too_long`, and each is counted.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from lightthinker.data.trace import Trace
from lightthinker.encode import Encoder, Example
from lightthinker.errors import DataError
from lightthinker.segment import segment
from lightthinker.train.recipe import DataConfig, Recipe

PARALLEL_FROM = 256
"""Traces below which a pool of processes costs more than it saves."""
CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What chance decided for one example; the fields are arguments of `Encoder.encode`."""

    compress: bool
    retain_thoughts: int | None = None
    recover: bool = False


@dataclass(frozen=True)
class Encoded:
    """One encoded trace.

    Attributes:
        example: None if the trace was dropped.
        source: Where the trace came from.
        variant: What chance decided.
        num_cut: Thoughts cut off at the end.
    """

    example: Example | None
    source: str
    variant: Variant
    num_cut: int = 0


def draw_variant(rng: Random, data: DataConfig, *, can_compress: bool = True) -> Variant:
    """Draw one example's variant; one number for the share, others only where asked for."""
    compress = rng.random() >= data.full_cot_share and can_compress
    retain = rng.choice(data.retain_thoughts) if data.retain_thoughts else None
    recover = bool(data.recover_share) and rng.random() < data.recover_share
    return Variant(compress=compress, retain_thoughts=retain, recover=recover)


def encode_traces(recipe: Recipe, encoder: Encoder, traces: Iterable[Trace]) -> Iterator[Encoded]:
    """Encode traces in order, in `data.num_proc` processes."""
    rng = Random(f"full-cot/{recipe.trainer.get('seed', 0)}")
    can_compress = recipe.compression.method != "full"
    jobs = ((trace, draw_variant(rng, recipe.data, can_compress=can_compress)) for trace in traces)
    first = list(itertools.islice(jobs, PARALLEL_FROM))
    num_proc = recipe.data.num_proc or min(16, os.cpu_count() or 1)
    if len(first) < PARALLEL_FROM or num_proc == 1:
        for trace, variant in itertools.chain(first, jobs):
            yield encode_trace(encoder, recipe.data, trace, variant)
        return
    # Forked processes inherit the encoder; handing it over with each chunk would cost more than
    # the encoding.
    context = multiprocessing.get_context("fork")
    shared = (encoder, recipe.data)
    with _no_tokenizer_threads(), context.Pool(num_proc, _start_worker, shared) as pool:
        yield from pool.imap(_encode_job, itertools.chain(first, jobs), chunksize=CHUNK)


def encode_trace(encoder: Encoder, data: DataConfig, trace: Trace, variant: Variant) -> Encoded:
    """Segment and encode one trace; one longer than a row is cut or dropped.

    Raises:
        DataError: It is longer than a row, and `data.too_long` is `error`.
    """
    thoughts = trace.thoughts or _segment(encoder, data, trace.reasoning)
    pieces: tuple[str, ...] | list[str] = ()
    if encoder.config.compress_answer:
        pieces = trace.answer_pieces or _segment(encoder, data, trace.answer)

    def encode(num_thoughts: int, answer: str | None) -> Example:
        return encoder.encode(
            trace.messages,
            thoughts[:num_thoughts],
            answer,
            compress=variant.compress,
            answer_pieces=pieces,
            retain_thoughts=variant.retain_thoughts,
            recover=variant.recover,
        )

    example = encode(len(thoughts), trace.answer)
    if len(example) <= data.row_length:
        return Encoded(example, trace.source, variant)
    if data.too_long == "error":
        raise DataError(
            f"{trace.source}: {len(example)} tokens do not fit data.row_length = "
            f"{data.row_length}. Raise it, or set data.too_long to truncate or drop."
        )
    if data.too_long == "drop":
        return Encoded(None, trace.source, variant)
    first_word = next(i for i, text in enumerate(thoughts) if text.strip())
    fitting, too_many = first_word, len(thoughts) + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if len(encode(middle, None)) <= data.row_length:
            fitting = middle
        else:
            too_many = middle
    if fitting == first_word:
        return Encoded(None, trace.source, variant)
    return Encoded(encode(fitting, None), trace.source, variant, len(thoughts) - fitting)


_worker: tuple[Encoder, DataConfig] | None = None


def _start_worker(encoder: Encoder, data: DataConfig) -> None:
    global _worker
    _worker = encoder, data


def _encode_job(job: tuple[Trace, Variant]) -> Encoded:
    assert _worker is not None, "only runs in a process that _start_worker prepared"
    return encode_trace(*_worker, *job)


def _segment(encoder: Encoder, data: DataConfig, text: str) -> list[str]:
    tokenizer = encoder.tokenizer
    return segment(
        text,
        data.segment,
        count=lambda piece: len(tokenizer(piece, add_special_tokens=False)["input_ids"]),
        offsets=lambda piece: tokenizer(
            piece, add_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"],
    )


@contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """Tokenizer threads do not survive a fork; processes replace them."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
