"""Where the terminal chat's answers come from: a model in this process, or a server.

Both yield the same growing `RequestOutput`s, so one view shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lightthinker.client import api_base, auth_headers, is_end, parse_event, refusal
from lightthinker.engine.outputs import (
    CompletionOutput,
    CompressionStats,
    RequestOutput,
    ThoughtStats,
)
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from lightthinker.engine.llm import LLM

Message = Mapping[str, str]
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 300.0


class ChatSource(Protocol):
    """Answers conversations.

    Attributes:
        name: The model's name.
        compresses: Whether the model can fold its thoughts.
        hidden: Markers around reasoning in its text.
    """

    name: str
    compresses: bool
    hidden: tuple[str, ...]

    def stream(
        self, messages: Sequence[Message], params: SamplingParams
    ) -> Iterator[RequestOutput]:
        """Yield the growing answer; closing the iterator aborts the request."""
        ...

    def answer(self, completion: CompletionOutput) -> str:
        """Return what follows the reasoning: this is what later turns are told."""
        ...


class LocalSource:
    """A model in this process.

    Args:
        llm: The loaded model.
        name: How to call it.
    """

    def __init__(self, llm: LLM, name: str):
        self.llm = llm
        self.name = name
        config = llm.compression
        self.compresses = config is not None and config.method != "full"
        self.hidden: tuple[str, ...] = (
            (config.reasoning_begin, config.reasoning_end) if config else ()
        )

    def stream(
        self, messages: Sequence[Message], params: SamplingParams
    ) -> Iterator[RequestOutput]:
        """Yield the growing answer."""
        return self.llm.stream([dict(m) for m in messages], params)

    def answer(self, completion: CompletionOutput) -> str:
        """Return the text after the marker that ends reasoning; all of it without markers."""
        end = self.hidden[1].strip() if self.hidden else ""
        if not end:
            return completion.text.strip()
        return completion.text.partition(end)[2].strip()


class RemoteSource:
    """An OpenAI-compatible server; ours tells about thoughts, others just stream.

    Args:
        url: Its address, with or without `/v1`.
        model: Which of its models; by default the first.

    Raises:
        RequestError: It cannot be reached, refuses, or does not serve the model.
    """

    def __init__(self, url: str, model: str | None = None):
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ConfigError(
                "Chatting with a server needs httpx; install it with "
                "`pip install 'lightthinker[serve]'`."
            ) from error
        self._http = httpx
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.Client(base_url=api_base(url), headers=auth_headers(), timeout=timeout)
        self.url = url
        card = self._find(model)
        facts = card.get("lightthinker") or {}
        self.name: str = card["id"]
        self.compresses = bool(facts.get("compresses"))
        self.hidden: tuple[str, ...] = ()
        self._is_ours = bool(facts)
        self._bytes_per_token = int(facts.get("kv_bytes_per_token") or 0)
        self._content = ""

    def _find(self, wanted: str | None) -> dict[str, Any]:
        try:
            response = self._client.get("models")
        except self._http.HTTPError as error:
            raise RequestError(f"{self.url} cannot be reached: {error}") from error
        if response.status_code != 200:
            raise refusal(response.status_code, response.content)
        cards: list[dict[str, Any]] = response.json()["data"]
        found = [card for card in cards if wanted in (None, card["id"])]
        if not found:
            names = ", ".join(card["id"] for card in cards) or "none"
            raise RequestError(f"{self.url} does not serve {wanted!r}; it serves {names}.")
        return found[0]

    def stream(
        self, messages: Sequence[Message], params: SamplingParams
    ) -> Iterator[RequestOutput]:
        """Yield the growing answer.

        Raises:
            RequestError: The server refuses, or the connection breaks.
        """
        answer = _Answer(self._bytes_per_token)
        self._content = ""
        complete = False
        try:
            with self._client.stream(
                "POST", "chat/completions", json=self._body(messages, params)
            ) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, response.read())
                for line in response.iter_lines():
                    complete = complete or is_end(line)
                    if (chunk := parse_event(line)) is not None:
                        answer.add(chunk)
                        self._content = answer.content
                        yield answer.output()
        except self._http.HTTPError as error:
            raise RequestError(f"The connection to {self.url} broke: {error}") from error
        if not complete:
            raise RequestError(f"{self.url} closed the connection before the answer was complete.")

    def answer(self, completion: CompletionOutput) -> str:
        """Return the latest answer's content, which the server sends apart from reasoning."""
        return self._content.strip()

    def _body(self, messages: Sequence[Message], params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name, "messages": list(messages), "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": params.max_tokens,
            "temperature": params.temperature,
        }  # fmt: skip
        if params.seed is not None:
            body["seed"] = params.seed
        if self._is_ours:
            body["lightthinker"] = {
                "compression": params.compression, "events": True,
                "max_thought_tokens": params.max_thought_tokens,
            }  # fmt: skip
        return body


class _Answer:
    """Chunks -> the growing completion."""

    def __init__(self, bytes_per_token: int):
        self.bytes_per_token = bytes_per_token
        self.text = self.content = ""
        self.thoughts: list[ThoughtStats] = []
        self.finish_reason: str | None = None
        self.live = self.full = self.prompt = self.peak = 0
        self.usage: dict[str, Any] = {}
        self._begin = 0

    def add(self, chunk: dict[str, Any]) -> None:
        choice = (chunk.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        content = delta.get("content") or ""
        self.text += (delta.get("reasoning_content") or delta.get("reasoning") or "") + content
        self.content += content
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.usage = chunk.get("usage") or self.usage
        state = chunk.get("lightthinker") or {}
        for event in state.get("events") or ():
            if event["type"] == "thought_compressed":
                self._fold(event)
        if state.get("live_tokens") is not None:
            self.live, self.full = state["live_tokens"], state["full_cot_tokens"]
            self.prompt = self.prompt or self.full
            self.peak = max(self.peak, self.live)

    def _fold(self, event: dict[str, Any]) -> None:
        self.thoughts.append(
            ThoughtStats(
                text=self.text[self._begin :], num_tokens=event["num_tokens"],
                num_gists=event["num_gists"], tokens_freed=event["tokens_freed"],
            )
        )  # fmt: skip
        self._begin = len(self.text)
        self.peak = max(self.peak, event["live_tokens"] + event["tokens_freed"])

    def output(self) -> RequestOutput:
        completion = CompletionOutput(
            index=0, text=self.text, token_ids=[], finish_reason=self.finish_reason,
            thoughts=list(self.thoughts), stats=self._stats() if self.full else None,
        )  # fmt: skip
        return RequestOutput("", None, [], [completion], finished=bool(self.usage))

    def _stats(self) -> CompressionStats:
        costs = self.usage.get("lightthinker") or {}
        peak = costs.get("peak_tokens", self.peak)
        prompt = self.usage.get("prompt_tokens", self.prompt)
        return CompressionStats(
            num_prompt_tokens=prompt, num_sampled_tokens=self.full - prompt,
            num_gist_tokens=costs.get("gists", sum(t.num_gists for t in self.thoughts)),
            num_thoughts=len(self.thoughts),
            tokens_freed=sum(t.tokens_freed for t in self.thoughts),
            live_tokens=self.live, full_cot_tokens=self.full, peak_tokens=peak,
            mean_live_tokens=costs.get("mean_live_tokens", float(peak)),
            dep_paper=costs.get("dependency", 0), dep_full=costs.get("dependency_full", 0),
            kv_bytes_peak=costs.get("kv_bytes_peak", peak * self.bytes_per_token),
        )  # fmt: skip
