"""LLMEngine: requests in, steps, outputs out (vLLM's names).

A step: the scheduler picks tokens and pages, the model runs over all rows at once, sequences whose
pending tokens are all forwarded sample one token; a trigger makes the gists pending; what expired
is freed. One step may hold prefills, decodes and gist rows of different sequences. With
asynchronous scheduling a step is launched before the samples of the one before it are looked at: a
sequence that has just ended, or ended a thought, then takes part once more, and that sample is
thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from time import monotonic
from typing import Any

from lightthinker.attention.torch_backend import TorchBackend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.intake import Intake, Request
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reporting import EngineStats, engine_stats
from lightthinker.engine.runner import ModelRunner, paged_batch
from lightthinker.engine.sampler import Sampler, TokenSampler, token_logprob
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.scheduler import Scheduled, Scheduler
from lightthinker.engine.sequence import Sequence, Status
from lightthinker.engine.step import InFlight, plan_step
from lightthinker.engine.writer import TokenWriter
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import PagePool
from lightthinker.layout import Role

__all__ = ["EngineConfig", "LLMEngine"]


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
            share_prompts=self.config.enable_prefix_caching,
        )
        self.sampler = sampler or Sampler(compression.never_sampled if compression else ())
        self.on_compress: Callable[[Sequence, list[int]], None] | None = None
        text_config = model.config.get_text_config()
        self.max_model_len = int(getattr(text_config, "max_position_embeddings", None) or 2**31 - 1)
        self._intake = Intake(
            tokenizer,
            compression,
            self.max_model_len,
            int(model.get_input_embeddings().weight.shape[0]),
            self.pool.num_slots,
        )
        self._writer = TokenWriter(self.scheduler, _eos_ids(model, tokenizer), self.max_model_len)
        on_gpu = self.runner.device.type == "cuda"
        asked = self.config.async_scheduling
        self._is_async = on_gpu if asked is None else asked
        self._in_flight: InFlight | None = None
        self._requests: dict[str, Request] = {}

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
        if request_id in self._requests:
            raise RequestError(f"Request id {request_id!r} is in use.")
        params = params or SamplingParams()
        request = self._intake.request(request_id, prompt, params, stream=stream)
        self._requests[request_id] = request
        for sequence in request.sequences:
            self.scheduler.add(sequence)

    def has_unfinished_requests(self) -> bool:
        """Whether a request still waits or runs."""
        return bool(self._requests)

    def num_prompt_tokens(self, request_id: str) -> int:
        """Return the prompt length of an unfinished request."""
        return len(self._requests[request_id].prompt_ids)

    def num_sampled_tokens(self, request_id: str) -> int:
        """Return how many tokens an unfinished request has sampled, over its samples."""
        return sum(len(s.known_ids) for s in self._requests[request_id].sequences)

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
        self._end_overdue()
        previous, self._in_flight = self._in_flight, None
        if previous and self._must_know_tokens():
            self._settle(previous)
            previous = None
        if previous:
            self._extend(previous)
        scheduled = self.scheduler.schedule()
        launched = None
        if scheduled:
            try:
                launched = self._launch(scheduled, previous)
                if not self._is_async:
                    self._settle(launched)
            except BaseException:
                for s in scheduled:
                    self.abort_request(s.sequence.request_id)
                raise
            self._compact([s.sequence for s in scheduled])
        if previous:
            self._settle(previous, launched)
        self._in_flight = launched if self._is_async else None
        return self._outputs()

    def _must_know_tokens(self) -> bool:
        """Whether the next step depends on the ids of tokens that are still being sampled."""
        return self.on_compress is not None or any(
            s.needs_known_tokens for s in self.scheduler.running
        )

    def _extend(self, previous: InFlight) -> None:
        """Write the tokens that are being sampled, ids unknown, so that they can be forwarded."""
        sequences = [s for s in previous.place if s.finish_reason is None]
        for sequence in sequences:
            if self._writer.may_extend(sequence):
                self._writer.extend(sequence)
        self.scheduler.compact(s for s in sequences if s.status is Status.RUNNING)

    def _launch(self, scheduled: list[Scheduled], previous: InFlight | None) -> InFlight:
        """Send a step's rows through the model and sample."""
        plan = plan_step(scheduled, self.scheduler, previous)
        batch = paged_batch(plan.sequences, plan.slots, self.runner.device)
        known = previous.tokens if previous and plan.unknown_rows else None
        logits = self.runner.run(self.backend, batch, plan, known)
        self.scheduler.publish(s.sequence for s in scheduled)
        tokens = self.sampler.sample(logits, plan.sampling) if plan.sampling else []
        wants_logits = any(s.params.logprobs is not None for s in plan.sampling)
        place = {sequence: i for i, sequence in enumerate(plan.sampling)}
        return InFlight(place, tokens, logits if wants_logits else None)

    def _settle(self, step: InFlight, later: InFlight | None = None) -> None:
        """Look at a step's samples and act on them.

        Args:
            step: The step.
            later: One that was launched since; what it samples after the end of a thought counts
                for nothing.
        """
        tokens = step.token_list()
        for sequence, place in step.place.items():
            request = self._requests.get(sequence.request_id)
            if request is None or sequence.finish_reason == "abort":
                continue
            if self._writer.settle(sequence, request, tokens[place]) and later:
                later.place.pop(sequence, None)
            if step.logits is not None and sequence.params.logprobs is not None:
                # Read back: what was forced is reported too, with its own probability.
                token, num_top = sequence.sampled_ids[-1], sequence.params.logprobs
                sequence.logprobs.append(token_logprob(step.logits[place], token, num_top))

    def _compact(self, sequences: list[Sequence]) -> None:
        """Free what expired, and show fresh gists to whoever wants to see them."""
        ran = [s for s in sequences if s.status is Status.RUNNING]
        groups = [(s, self._fresh_gists(s)) for s in ran] if self.on_compress else []
        self.scheduler.compact(ran)
        for sequence, gists in groups:
            if gists and self.on_compress:
                live = [i for i, k in enumerate(sequence.live) if k in gists]
                self.on_compress(sequence, self.scheduler.slots(sequence, live))

    def _outputs(self) -> list[RequestOutput]:
        outputs = []
        for request_id, request in list(self._requests.items()):
            finished = request.finished
            if finished or request.stream:
                outputs.append(request.output(self.pool.bytes_per_token))
            if finished:
                del self._requests[request_id]
        return outputs

    def _end_overdue(self) -> None:
        now = monotonic()
        overdue = [r for r in self._requests.values() if now >= r.deadline]
        if overdue and self._in_flight:
            self._settle(self._in_flight)
            self._in_flight = None
        for request in overdue:
            for sequence, detokenizer in zip(request.sequences, request.detokenizers, strict=True):
                if sequence.finish_reason is None:
                    detokenizer.flush()
                    self.scheduler.finish(sequence, "abort")
                    sequence.stop_reason = "timeout"

    @staticmethod
    def _fresh_gists(sequence: Sequence) -> set[int]:
        """Indices of the newest gists, if their thought is about to expire."""
        gists = {k for k in sequence.live if sequence.builder.role[k] == Role.GIST}
        newest = {
            k for k in gists if sequence.builder.thought[k] == sequence.builder.num_thoughts - 1
        }
        return newest if sequence.expired() else set()


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
