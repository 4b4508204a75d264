"""Runs the engine requests behind one HTTP call, and builds its chunks or its whole answer.

Chat and text completions differ only in how a choice is written (`ChoiceFormat`); everything else,
such as several prompts, usage, time-outs and aborts, is here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from lightthinker.engine.async_llm import AsyncLLM
from lightthinker.engine.outputs import CompletionOutput, RequestOutput
from lightthinker.engine.request_stream import RequestStream, merged
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.server.choices import ChoiceState, Piece, live_counts
from lightthinker.server.errors import JSON, APIError
from lightthinker.server.prompts import Prompts
from lightthinker.server.protocol import GenerationBody
from lightthinker.server.reasoning import ReasoningSplitter
from lightthinker.server.streaming import EventStream, timed_out, until_disconnect
from lightthinker.server.tracing import Tracing
from lightthinker.server.usage import usage_of


class ChoiceFormat(Protocol):
    """How one endpoint writes its answers."""

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def opening(self) -> dict[str, Any] | None:
        """Return what a choice's first chunk holds before anything is generated."""
        ...

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a chunk's choice, without index."""
        ...

    def whole(self, index: int, piece: Piece, output: CompletionOutput) -> dict[str, Any]:
        """Return a finished choice, without index."""
        ...


@dataclass
class Call:
    """One HTTP call that generates.

    Attributes:
        engine: Where it runs.
        prompts: The server's tokenizer.
        body: The request.
        model_name: Name for the answer.
        choice_format: How choices are written.
        splitter: Takes texts apart.
        deadline: Event-loop time by which it must be over.
        tracing: Makes its spans.
    """

    engine: AsyncLLM
    prompts: Prompts
    body: GenerationBody
    model_name: str
    choice_format: ChoiceFormat
    splitter: ReasoningSplitter
    deadline: float
    tracing: Tracing | None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    streams: list[RequestStream] = field(default_factory=list)

    async def answer(
        self, request: Request, prompt_ids: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> Response:
        """Submit the prompts and answer, streaming or whole.

        Raises:
            APIError: 408 after the time-out.
            EngineBusyError: The queue is full.
            RequestError: The engine refuses a prompt.
        """
        try:
            await self._submit(request, prompt_ids, params)
            if self.body.stream:
                return EventStream(
                    self._chunks(), deadline=self.deadline, finish=self.abort,
                    headers=self._headers(),
                )  # fmt: skip
            return await until_disconnect(request.receive, self._whole())
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End whatever still runs for this call."""
        for stream in self.streams:
            if self.tracing and not stream.finished:
                self.tracing.abandon(stream.request_id)
            stream.abort()

    async def _submit(
        self, request: Request, prompt_ids: Sequence[list[int]], params: Sequence[SamplingParams]
    ) -> None:
        wake = asyncio.Event()
        for i, (ids, param) in enumerate(zip(prompt_ids, params, strict=True)):
            name = f"{self.request_id}-{i}"
            if self.tracing:
                self.tracing.begin(name, request.headers)
            try:
                stream = await self.engine.add_request(
                    ids, param, name, stream=self.body.stream, wake=wake
                )
            except BaseException:
                if self.tracing:
                    self.tracing.abandon(name)
                raise
            self.streams.append(stream)

    async def _whole(self) -> Response:
        final: dict[int, RequestOutput] = {}
        try:
            async with asyncio.timeout_at(self.deadline):
                async for i, output in merged(self.streams):
                    _check(output)
                    final[i] = output
        except TimeoutError:
            raise timed_out() from None
        outputs = [final[i] for i in range(len(self.streams))]
        choices: list[dict[str, Any]] = []
        for completion in (c for output in outputs for c in output.outputs):
            pieces = ChoiceState(self.splitter).advance(completion)
            assert len(pieces) == 1
            choice = self.choice_format.whole(len(choices), pieces[0], completion)
            choices.append({"index": len(choices), **choice})
        body = {
            **self._head(self.choice_format.object_name),
            "choices": choices,
            "usage": await self._usage(outputs),
        }
        return JSON(body, headers=self._headers())

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        head = self._head(self.choice_format.chunk_object_name)
        events = self.body.extension.events
        states: dict[int, ChoiceState] = {}
        final: dict[int, RequestOutput] = {}
        opening = self.choice_format.opening()
        for index in range(len(self.streams) * self.body.n) if opening else ():
            yield {**head, "choices": [{"index": index, **(opening or {})}]}
        async for i, output in merged(self.streams):
            _check(output)
            for completion in output.outputs:
                index = i * self.body.n + completion.index
                state = states.setdefault(index, ChoiceState(self.splitter, with_events=events))
                for piece in state.advance(completion):
                    choice = {"index": index, **self.choice_format.chunk(index, piece)}
                    chunk = {**head, "choices": [choice]}
                    if events:
                        chunk["lightthinker"] = live_counts(completion) | {"events": piece.events}
                    yield chunk
            if output.finished:
                final[i] = output
        if self.body.include_usage:
            outputs = [final[i] for i in range(len(self.streams))]
            yield {**head, "choices": [], "usage": await self._usage(outputs)}

    async def _usage(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        num_reasoning = 0
        for completion in (c for output in outputs for c in output.outputs):
            if self.splitter.end in completion.text:
                num_reasoning += await self.prompts.num_tokens_until(
                    completion.token_ids, self.splitter.end
                )
            else:
                num_reasoning += len(completion.token_ids)
        return usage_of(outputs, num_reasoning if self.splitter.end else 0)

    def _head(self, object_name: str) -> dict[str, Any]:
        return {
            "id": f"{self.choice_format.id_prefix}{self.request_id}",
            "object": object_name,
            "created": self.created,
            "model": self.model_name,
        }

    def _headers(self) -> dict[str, str]:
        return {"X-Request-Id": f"{self.choice_format.id_prefix}{self.request_id}"}


def _check(output: RequestOutput) -> None:
    """Raise APIError 500 if the engine gave up a sample (its logits were not numbers)."""
    if any(c.finish_reason == "error" for c in output.outputs):
        raise APIError(
            500, "The model's output for this request was not a number.", code="generation_failed"
        )
