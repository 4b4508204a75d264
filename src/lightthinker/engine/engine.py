"""LLMEngine: requests in, steps, outputs out (vLLM's names).

A step: the scheduler picks tokens and pages, the model runs over all rows at once, sequences whose
pending tokens are all forwarded sample one token; a trigger makes the gists pending; what expired
is freed. One step may hold prefills, decodes and gist rows of different sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch

from lightthinker.attention.batch import SequenceRows
from lightthinker.attention.torch_backend import TorchBackend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.detokenizer import Detokenizer
from lightthinker.engine.outputs import (
    RequestOutput,
    ThoughtStats,
)
from lightthinker.engine.reporting import EngineStats, completion, engine_stats
from lightthinker.engine.runner import ModelRunner, paged_batch
from lightthinker.engine.sampler import Sampler, TokenSampler
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.scheduler import Scheduled, Scheduler
from lightthinker.engine.sequence import Sequence
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import PagePool
from lightthinker.layout import Role


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine.

    Attributes:
        max_num_seqs: Most sequences running at once.
        max_num_batched_tokens: Most tokens forwarded in one step.
        page_size: Tokens per KV page.
        num_kv_tokens: Tokens the KV pool holds.
        poison_freed_pages: Fill freed KV with NaN (for tests).
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096
    page_size: int = 16
    num_kv_tokens: int = 65_536
    poison_freed_pages: bool = False

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "page_size", "num_kv_tokens"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass
class _Request:
    prompt: str | None
    prompt_ids: list[int]
    sequences: list[Sequence]
    detokenizers: list[Detokenizer]
    stream: bool
    thought_begins: list[int]


class LLMEngine:
    """Continuous batching over one model on one device.

    Args:
        model: A Hugging Face causal LM; its attention implementation is switched to the engine's.
        tokenizer: Its tokenizer.
        compression: The checkpoint's settings; None for a checkpoint without.
        config: Sizes.
        sampler: Replaces the ordinary sampler (scripted outputs in tests and benchmarks).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        compression: CompressionConfig | None,
        *,
        config: EngineConfig | None = None,
        sampler: TokenSampler | None = None,
    ):
        self.config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.compression = compression
        self.runner = ModelRunner(model)
        text_config = model.config.get_text_config()
        self.max_model_len = int(getattr(text_config, "max_position_embeddings", None) or 2**31 - 1)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        size = self.config.page_size
        self.pool = PagePool(
            self.runner.probe(),
            num_pages=max(1, self.config.num_kv_tokens // size),
            page_size=size,
            dtype=self.runner.dtype,
            device=self.runner.device,
            poison=self.config.poison_freed_pages,
        )
        self.backend = TorchBackend(self.pool)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
        )
        self.sampler = sampler or Sampler(compression.never_sampled if compression else ())
        self.eos_ids = _eos_ids(model, tokenizer)
        self.on_compress: Callable[[Sequence, list[int]], None] | None = None
        self._requests: dict[str, _Request] = {}

    def add_request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
    ) -> None:
        """Queue a request.

        Args:
            request_id: Its name, unique among unfinished requests.
            prompt: Text (the tokenizer adds its special tokens, such as a bos), or token ids.
            params: How to sample.
            stream: Whether `step` reports it at every step or only when it is finished.

        Raises:
            RequestError: The prompt is empty or too long, or compression is asked of a checkpoint
                without it.
        """
        params = params or SamplingParams()
        if request_id in self._requests:
            raise RequestError(f"Request id {request_id!r} is in use.")
        text = prompt if isinstance(prompt, str) else None
        prompt_ids: list[int] = (
            self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        )
        if not prompt_ids:
            raise RequestError("The prompt is empty.")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab_size:
            raise RequestError(
                f"The prompt has token ids outside the model's vocabulary of {self.vocab_size}."
            )
        compression = self._request_compression(params)
        sequences = [
            self._sequence(request_id, i, prompt_ids, params, compression) for i in range(params.n)
        ]
        longest = max(sequences[0].builder.position) + 1
        if longest >= self.max_model_len:
            raise RequestError(
                f"The prompt takes {longest} positions, and the model has {self.max_model_len}: "
                "none is left to answer."
            )
        if len(prompt_ids) >= self.pool.num_slots:
            raise RequestError(
                f"The prompt has {len(prompt_ids)} tokens and the KV pool holds "
                f"{self.pool.num_slots}; raise num_kv_tokens."
            )
        detokenizers = [Detokenizer(self.tokenizer, self.compression) for _ in sequences]
        self._requests[request_id] = _Request(
            text, prompt_ids, sequences, detokenizers, stream, [0] * params.n
        )
        for sequence in sequences:
            self.scheduler.add(sequence)

    def has_unfinished_requests(self) -> bool:
        """Whether a request still waits or runs."""
        return bool(self._requests)

    def num_prompt_tokens(self, request_id: str) -> int:
        """Return the prompt length of an unfinished request."""
        return len(self._requests[request_id].prompt_ids)

    def num_sampled_tokens(self, request_id: str) -> int:
        """Return how many tokens an unfinished request has sampled, over its samples."""
        return sum(len(s.sampled_ids) for s in self._requests[request_id].sequences)

    def is_scheduled(self, request_id: str) -> bool:
        """Whether any token of an unfinished request has been forwarded."""
        return any(s.num_forwarded for s in self._requests[request_id].sequences)

    def stats(self) -> EngineStats:
        """Return what the engine holds and has done."""
        return engine_stats(self.scheduler)

    def abort_request(self, request_id: str) -> None:
        """End a request and free what it holds.

        Unknown ids are ignored (it may just have finished).
        """
        request = self._requests.pop(request_id, None)
        for sequence in request.sequences if request else ():
            if sequence.finish_reason is None:
                self.scheduler.finish(sequence, "abort")

    def step(self) -> list[RequestOutput]:
        """Run one step over everything scheduled.

        Return the requests that changed and stream, or finished.
        """
        scheduled = self.scheduler.schedule()
        if scheduled:
            try:
                self._forward_and_sample(scheduled)
            except BaseException:
                for s in scheduled:
                    self.abort_request(s.sequence.request_id)
                raise
        outputs = []
        for request_id, request in list(self._requests.items()):
            finished = all(s.finish_reason is not None for s in request.sequences)
            if finished or request.stream:
                outputs.append(self._output(request_id, request, finished))
            if finished:
                del self._requests[request_id]
        return outputs

    def _forward_and_sample(self, scheduled: list[Scheduled]) -> None:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[SequenceRows] = []
        wanted: list[int] = []
        sampling: list[Sequence] = []
        for sequence, num_tokens in ((s.sequence, s.num_tokens) for s in scheduled):
            begin = sequence.num_forwarded
            step_rows = sequence.rows(num_tokens)
            num_live = len(sequence.live) + num_tokens
            slots += self.scheduler.slots(sequence, range(len(sequence.live), num_live))
            indices = list(range(begin, begin + num_tokens))
            rows.append(SequenceRows(step_rows, indices, list(sequence.pages), num_live))
            token_ids += sequence.token_ids[begin : begin + num_tokens]
            positions += sequence.builder.position[begin : begin + num_tokens]
            sequence.forwarded(num_tokens)
            if sequence.num_pending == 0:
                wanted.append(len(token_ids) - 1)
                sampling.append(sequence)
        batch = paged_batch(rows, slots, self.runner.device)
        logits = self.runner.run(self.backend, batch, token_ids, positions, wanted or [0])
        if sampling:
            for sequence, token in zip(
                sampling, self.sampler.sample(logits, sampling), strict=True
            ):
                self._take(sequence, token)
        ran = [s.sequence for s in scheduled if s.sequence.finish_reason is None]
        groups = [(s, self._fresh_gists(s)) for s in ran] if self.on_compress else []
        self.scheduler.compact(ran)
        for sequence, gists in groups:
            if gists and self.on_compress:
                live = [i for i, k in enumerate(sequence.live) if k in gists]
                self.on_compress(sequence, self.scheduler.slots(sequence, live))

    def _take(self, sequence: Sequence, token: int) -> None:
        """Write a sampled token; end the sequence or, after a thought, insert its gists."""
        params, request = sequence.params, self._requests[sequence.request_id]
        if self._must_end_thought(sequence):
            assert sequence.trigger_id is not None
            token = sequence.trigger_id
        is_anchor = sequence.is_anchor(token)
        num_tokens = sequence.thought_length + (not is_anchor)
        ends_thought = sequence.append(token)
        detokenizer = request.detokenizers[sequence.index]
        is_eos = token in self.eos_ids and not params.ignore_eos
        if is_eos or token in params.stop_token_ids:
            detokenizer.flush()
            sequence.stop_reason = None if is_eos else token
            self.scheduler.finish(sequence, "stop")
            return
        detokenizer.push(token)
        if len(sequence.sampled_ids) >= params.max_tokens:
            detokenizer.flush()
        if self._hit_stop_string(sequence, detokenizer):
            self.scheduler.finish(sequence, "stop")
            return
        inserted = sequence.num_inserted_positions() if ends_thought else 0
        if (
            len(sequence.sampled_ids) >= params.max_tokens
            or sequence.builder.next_position + inserted > self.max_model_len
        ):
            detokenizer.flush()
            self.scheduler.finish(sequence, "length")
            return
        ended_plainly = sequence.compression is None and token == sequence.trigger_id
        if ends_thought or ended_plainly or is_anchor:
            self._note_thought(sequence, request, num_tokens)
        if ends_thought:
            sequence.insert_gists()
        elif ended_plainly:
            sequence.builder.thought_start = len(sequence.builder)

    def _must_end_thought(self, sequence: Sequence) -> bool:
        limit = sequence.params.max_thought_tokens
        return (
            limit is not None
            and sequence.trigger_id is not None
            and not sequence.in_answer
            and sequence.thought_length >= limit
        )

    def _note_thought(self, sequence: Sequence, request: _Request, num_tokens: int) -> None:
        text = request.detokenizers[sequence.index].text
        begin = request.thought_begins[sequence.index]
        request.thought_begins[sequence.index] = len(text)
        compressed = sequence.compression is not None
        num_gists = sequence.builder.rules.gists_for(num_tokens) if compressed else 0
        freed = num_tokens if compressed else 0
        sequence.thoughts.append(ThoughtStats(text[begin:].strip(), num_tokens, num_gists, freed))

    @staticmethod
    def _hit_stop_string(sequence: Sequence, detokenizer: Detokenizer) -> bool:
        text = detokenizer.text
        found = [(text.find(stop), stop) for stop in sequence.params.stop_strings if stop in text]
        if found:
            at, sequence.stop_reason = min(found)
            detokenizer.truncate(at)
            return True
        return False

    @staticmethod
    def _fresh_gists(sequence: Sequence) -> set[int]:
        """Indices of the newest gists, if their thought is about to expire."""
        gists = {k for k in sequence.live if sequence.builder.role[k] == Role.GIST}
        newest = {
            k for k in gists if sequence.builder.thought[k] == sequence.builder.num_thoughts - 1
        }
        return newest if sequence.expired() else set()

    def _request_compression(self, params: SamplingParams) -> CompressionConfig | None:
        available = (
            self.compression if self.compression and self.compression.method != "full" else None
        )
        if params.compression and available is None:
            raise RequestError(
                "This checkpoint has no compression settings; ask with compression=False."
            )
        return None if params.compression is False else available

    def _sequence(
        self,
        request_id: str,
        index: int,
        prompt_ids: list[int],
        params: SamplingParams,
        compression: CompressionConfig | None,
    ) -> Sequence:
        generator = torch.Generator()
        if params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(params.seed + index)
        trigger_id = self.compression.trigger_id if self.compression else None
        if params.max_thought_tokens is not None and trigger_id is None:
            raise RequestError(
                "max_thought_tokens needs a checkpoint whose thoughts end with a trigger."
            )
        return Sequence(
            request_id,
            index,
            prompt_ids,
            params,
            compression,
            self._end_detector(params, compression),
            trigger_id,
            generator,
        )

    def _end_detector(
        self, params: SamplingParams, compression: CompressionConfig | None
    ) -> Callable[[list[int]], bool] | None:
        """Return a check for the end marker in what was sampled, if anything depends on it.

        It looks at decoded text: a tokenizer may merge the marker's end with what follows.
        """
        settings = self.compression
        marker = settings.reasoning_end.strip() if settings else ""
        token_level = compression is not None and compression.method == "token"
        if not marker or settings is None or settings.compress_answer:
            return None
        if not token_level and params.max_thought_tokens is None:
            return None
        window = len(marker) + 8

        def reasoning_over(sampled_ids: list[int]) -> bool:
            return marker in self.tokenizer.decode(sampled_ids[-window:])

        return reasoning_over

    def _output(self, request_id: str, request: _Request, finished: bool) -> RequestOutput:
        bytes_per_token = self.pool.bytes_per_token
        completions = [
            completion(sequence, detokenizer, bytes_per_token)
            for sequence, detokenizer in zip(request.sequences, request.detokenizers, strict=True)
        ]
        return RequestOutput(request_id, request.prompt, request.prompt_ids, completions, finished)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
