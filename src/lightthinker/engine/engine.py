"""LLMEngine: requests in, steps, outputs out (vLLM's names).

A step: the scheduler picks tokens and pages, the model runs over all rows at once, sequences whose
pending tokens are all forwarded sample one token; a trigger makes the gists pending; what expired
is freed. One step may hold prefills, decodes and gist rows of different sequences. With
asynchronous scheduling a step is launched before the samples of the one before it are looked at: a
sequence that has just ended, or ended a thought, then takes part once more, and that sample is
thrown away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

from lightthinker.attention.observation import AttentionObserver
from lightthinker.attention.selection import make_backend, resolve_backend
from lightthinker.compression import CompressionConfig
from lightthinker.engine.config import EngineConfig
from lightthinker.engine.eviction import check_policy
from lightthinker.engine.intake import Intake, Submission, eos_ids
from lightthinker.engine.launch import launch
from lightthinker.engine.memory import num_kv_tokens_that_fit, start_beside
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.reporting import EngineStats, engine_stats
from lightthinker.engine.reports import Reports
from lightthinker.engine.runner import ModelRunner
from lightthinker.engine.sampler import Sampler, TokenSampler, token_logprob
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.engine.scheduler import Scheduled, Scheduler
from lightthinker.engine.sequence import Sequence, Status
from lightthinker.engine.step import InFlight
from lightthinker.engine.unfinished import UnfinishedRequests
from lightthinker.engine.writer import TokenWriter
from lightthinker.errors import RequestError
from lightthinker.kvcache.pool import PagePool, bytes_per_token

if TYPE_CHECKING:
    from lightthinker.engine.boarding import Boarding
    from lightthinker.engine.graphs import GraphRunner

__all__ = ["EngineConfig", "LLMEngine"]


class LLMEngine:
    """Continuous batching over one model on one device.

    Args:
        model: A Hugging Face causal LM; its attention implementation is switched to the engine's.
        tokenizer: Its tokenizer.
        compression: The checkpoint's settings; None for a checkpoint without.
        config: Sizes.
        sampler: Replaces the ordinary sampler (scripted outputs in tests and benchmarks).
        tensor_parallel: This process holds a slice of the model, and others the rest.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        compression: CompressionConfig | None,
        *,
        config: EngineConfig | None = None,
        sampler: TokenSampler | None = None,
        tensor_parallel: bool = False,
    ):
        self.config = config or EngineConfig()
        self.tokenizer = tokenizer
        self.compression = compression
        self.runner = ModelRunner(model)
        on_gpu = self.runner.device.type == "cuda"
        may_compile = on_gpu and not self.config.enforce_eager and not tensor_parallel
        if may_compile and self.config.fuse_projections:
            self.runner.fuse()
        size = self.config.page_size
        backend = resolve_backend(self.config.attention_backend, self.runner.device)
        self.shapes = self.runner.probe()
        num_kv_tokens = self.config.num_kv_tokens or num_kv_tokens_that_fit(
            self.runner,
            self.config,
            bytes_per_token(self.shapes, self.runner.dtype),
            all_ranks=tensor_parallel,
        )
        self.pool = PagePool(
            self.shapes,
            num_pages=max(1, num_kv_tokens // size),
            page_size=size,
            dtype=self.runner.dtype,
            device=self.runner.device,
            poison=self.config.poison_freed_pages,
            kernels=backend == "triton",
        )
        self.backend = make_backend(backend, self.pool)
        self.observer = AttentionObserver(self.pool, kernels=backend == "triton")
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            share_prompts=self.config.enable_prefix_caching,
        )
        never_sampled = compression.never_sampled if compression else ()
        self.host_sampler = sampler or Sampler(never_sampled)
        self.sampler: TokenSampler = self.host_sampler
        self.graphs: GraphRunner | None = None
        if sampler is None and backend == "triton":
            from lightthinker.engine.graphs import device_steps

            self.sampler, self.graphs = device_steps(
                self.runner, self.backend, compression, self.config
            )
        self.on_compress: Callable[[Sequence, list[int]], None] | None = None
        text_config = model.config.get_text_config()
        self.max_model_len = int(getattr(text_config, "max_position_embeddings", None) or 2**31 - 1)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self._intake = Intake(
            tokenizer,
            compression,
            self.max_model_len,
            self.vocab_size,
            self.pool.num_slots,
        )
        self._writer = TokenWriter(self.scheduler, eos_ids(model, tokenizer), self.max_model_len)
        asked = self.config.async_scheduling
        self._is_async = on_gpu if asked is None else asked
        self._in_flight: InFlight | None = None
        self._unfinished = UnfinishedRequests(Reports(self.config.max_stream_updates_per_s))
        self._requests = self._unfinished.by_id
        self._boarding = self._open_lane()
        self._is_closed = False

    def use_compression(self, compression: CompressionConfig | None) -> None:
        """Let requests from now on follow other rules over the same tokens (retention, controls).

        Args:
            compression: Settings with the token ids of the checkpoint's own.

        Raises:
            RequestError: Requests are unfinished.
        """
        if self._requests:
            raise RequestError("Compression settings cannot change while requests are unfinished.")
        self.compression = compression
        self._intake = dataclasses.replace(self._intake, compression=compression)
        self._boarding = self._open_lane()

    def _open_lane(self) -> Boarding | None:
        """Return what carries plain decode steps, where graphs run them asynchronously."""
        if self.graphs is None or not self._is_async:
            return None
        from lightthinker.engine.boarding import open_lane

        return open_lane(self.graphs, self.scheduler, self._writer, self._requests, self._intake)

    def warm_up(self, on_phase: Callable[[str], None] | None = None) -> None:
        """Compile the model and capture the graphs, where there are any to capture.

        Args:
            on_phase: Told in words what begins.

        Raises:
            RequestError: There is no memory left for them.
        """
        if self.graphs is not None:
            with start_beside(self.pool, self.config):
                self.graphs.warm_up(on_phase or (lambda words: None))

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
            stream: Whether `step` reports it as it grows or only when it is finished.

        Raises:
            RequestError: The prompt is empty or too long, compression is asked of a checkpoint
                without it, or the cache policy cannot serve this prompt or model.
        """
        if self._is_closed:
            raise RequestError("This engine was shut down.")
        if request_id in self._requests:
            raise RequestError(f"Request id {request_id!r} is in use.")
        params = params or SamplingParams()
        request = self._intake.request(request_id, prompt, params, stream=stream)
        if params.policy is not None:
            check_policy(params.policy, len(request.prompt_ids), self.shapes)
            if params.policy.observation is not None:
                self.pool.keep_scores()
        self._unfinished.add(request)
        for sequence in request.sequences:
            self.scheduler.add(sequence)

    def add_requests(self, requests: SequenceOf[Submission], *, stream: bool = True) -> None:
        """Queue several requests; see `add_request`.

        Raises for the first that is refused; others may have been taken, and stay until aborted.
        """
        for request_id, prompt, params in requests:
            self.add_request(request_id, prompt, params, stream=stream)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one live token takes."""
        return self.pool.bytes_per_token

    def has_unfinished_requests(self) -> bool:
        """Whether a request still waits or runs."""
        return bool(self._requests)

    def num_prompt_tokens(self, request_id: str) -> int:
        """Return the prompt length of an unfinished request."""
        return len(self._requests[request_id].prompt_ids)

    def write_back(self) -> None:
        """Tell the sequences of the scheduler their newest tokens, before somebody reads them.

        Plain decode steps are kept apart (`FastLane`); outputs and statistics know them anyway.
        """
        if self._boarding is not None:
            self._boarding.lane.write_back()

    def num_sampled_tokens(self, among: Iterable[str] | None = None) -> dict[str, int]:
        """Return how many tokens each unfinished request has sampled, over its samples.

        Args:
            among: Look at these requests only; what is finished is left out.
        """
        unwritten = self._boarding.lane.num_unwritten() if self._boarding else {}
        names = self._requests if among is None else self._requests.keys() & among
        return {
            name: sum([s.num_known + unwritten.get(s, 0) for s in self._requests[name].sequences])
            for name in names
        }

    def is_scheduled(self, request_id: str) -> bool:
        """Whether any token of an unfinished request has been forwarded."""
        return any(s.num_forwarded for s in self._requests[request_id].sequences)

    def stats(self) -> EngineStats:
        """Return what the engine holds and has done."""
        unwritten = self._boarding.lane.num_unwritten() if self._boarding else {}
        return engine_stats(self.scheduler, sum(unwritten.values()))

    def close(self) -> None:
        """Abort everything and let go of the KV pool and the graphs; no request is taken again."""
        for request_id in list(self._requests):
            self.abort_request(request_id)
        self._in_flight = self.graphs = self._boarding = None
        self._is_closed = True
        self.pool.free()

    def abort_request(self, request_id: str) -> None:
        """End a request and free what it holds.

        Unknown ids are ignored (it may just have finished).
        """
        request = self._unfinished.remove(request_id)
        for sequence in request.sequences if request else ():
            if sequence.finish_reason is None:
                self.scheduler.finish(sequence, "abort")

    def expire_request(self, request_id: str) -> None:
        """Let a request's time be up: the next step ends it. Unknown ids are ignored."""
        self._unfinished.expire(request_id)

    def step(self) -> list[RequestOutput]:
        """Run one step over everything scheduled.

        Return the requests that changed and stream, or finished.
        """
        self._end_overdue()
        previous, self._in_flight = self._in_flight, None
        boarding = self._boarding
        if previous and self._must_know_tokens():
            self._let_all_off()
            self._finish_step(previous)
            previous = None
        scheduled: list[Scheduled] = []
        launched, riders = None, None
        try:
            self.scheduler.admit()
            if boarding:
                boarding.prepare(previous)
            if previous:
                self._extend(previous)
            scheduled = self.scheduler.choose()
            riders = boarding.depart() if boarding else None
            if scheduled or riders:
                launched = launch(self, scheduled, previous, riders)
                self._compact(scheduled)
                if not self._is_async:
                    self._settle(launched)
        except BaseException:
            failed, off = [s.sequence for s in scheduled], self._let_all_off()
            for sequence in failed + (off if riders else []):
                self.abort_request(sequence.request_id)
                if previous:
                    previous.place.pop(sequence, None)
            if previous:  # Others still get the tokens that they have sampled.
                self._settle(previous)
            raise
        if previous:
            self._finish_step(previous, launched, with_riders=bool(riders))
        self._in_flight = launched if self._is_async else None
        if boarding and launched and not self._must_know_tokens():
            boarding.board(launched)
        return self._outputs()

    def _finish_step(
        self, step: InFlight, later: InFlight | None = None, *, with_riders: bool = False
    ) -> None:
        """Wait for a step's samples and act on them; who waits in vain is aborted."""
        try:
            self._settle(step, later)
            if self._boarding and with_riders and later:
                for sequence, token, _ in self._boarding.arrive(step, later):
                    self._settle_one(sequence, token, later)
        except BaseException:
            waiting = [*step.place, *(later.place if later else ()), *self._let_all_off()]
            for sequence in waiting:
                self.abort_request(sequence.request_id)
            raise

    def _let_all_off(self) -> list[Sequence]:
        """Empty the fast lane and return who was in it."""
        return self._boarding.disband() if self._boarding else []

    def _must_know_tokens(self) -> bool:
        """Whether the next step depends on the ids of tokens that are still being sampled."""
        impatient = self._unfinished.num_impatient and any(
            s.needs_known_tokens for s in self.scheduler.running
        )
        return bool(impatient) or self.on_compress is not None

    def _extend(self, previous: InFlight) -> None:
        """Write the tokens that are being sampled, ids unknown, so that they can be forwarded."""
        writer = self._writer
        for sequence in previous.place:
            if sequence.finish_reason is None and writer.may_extend(sequence):
                writer.extend(sequence)
        # A first sampled token lets the chunks of a compressed prompt expire.
        self._compact_all(previous.place)

    def _settle(self, step: InFlight, later: InFlight | None = None) -> None:
        """Look at a step's samples and act on them.

        Args:
            step: The step.
            later: One that was launched since; what it samples for a sequence that has ended, or
                ended a thought, counts for nothing.
        """
        tokens = step.token_list()
        for sequence, place in step.place.items():
            self._settle_one(sequence, tokens[place], later)
            if step.logits is None or sequence.finish_reason in ("abort", "error"):
                continue
            if sequence.params.logprobs is not None:
                # Read back: what was forced is reported too, with its own probability.
                token, num_top = sequence.sampled_ids[-1], sequence.params.logprobs
                sequence.logprobs.append(token_logprob(step.logits[place], token, num_top))
        self._compact_all(step.place)

    def _settle_one(self, sequence: Sequence, token: int, later: InFlight | None) -> None:
        """Act on one sample; see `_settle`."""
        request = self._requests.get(sequence.request_id)
        if request is None or sequence.finish_reason == "abort":
            return
        ended_thought = self._writer.settle(sequence, request, token)
        if later and (ended_thought or sequence.finish_reason is not None):
            later.place.pop(sequence, None)

    def _compact(self, scheduled: list[Scheduled]) -> None:
        """Free what expired, and show fresh gists to whoever wants to see them."""
        ran = [s for s, _ in scheduled if s.status is Status.RUNNING]
        groups = [(s, s.fresh_gists()) for s in ran] if self.on_compress else []
        self._compact_all(ran)
        for sequence, gists in groups:
            if gists and self.on_compress:
                live = [i for i, k in enumerate(sequence.live) if k in gists]
                self.on_compress(sequence, self.scheduler.slots(sequence, live))

    def _compact_all(self, sequences: Iterable[Sequence]) -> None:
        """Free what has expired of those that still run."""
        due = [s for s in sequences if s.builder.next_expiry <= s.num_forwarded]
        if due:
            self.scheduler.compact(s for s in due if s.status is Status.RUNNING)

    def _outputs(self) -> list[RequestOutput]:
        due = self._unfinished.due(num_finished := self.scheduler.num_finished)
        if due and self._boarding is not None:
            self._boarding.lane.write_back(s for request in due for s in request.sequences)
        outputs = [request.output(self.pool.bytes_per_token) for request in due]
        self._unfinished.told(outputs, num_finished)
        return outputs

    def _end_overdue(self) -> None:
        overdue = self._unfinished.overdue()
        if overdue and self._in_flight:
            self._let_all_off()
            in_flight, self._in_flight = self._in_flight, None
            self._finish_step(in_flight)
        for request in overdue:
            for sequence, detokenizer in zip(request.sequences, request.detokenizers, strict=True):
                if sequence.finish_reason is None:
                    detokenizer.flush()
                    self.scheduler.finish(sequence, "abort")
                    sequence.stop_reason = "timeout"
