"""Request bodies: OpenAI's fields, vLLM's extras and the `lightthinker` extension.

Every field is either honoured or refused: a field that is not here is an error, and a field that
this server cannot honour may only have the value that asks for nothing. Limits that depend on the
model or on settings are checked later (`sampling.py`, `prompts.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, LiteralString

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]

NOT_TEXT = "not_text"
"""Type of the error of a message part that is no text; its context has the part's number."""


def _refusal(param: str, reason: str) -> PydanticCustomError:
    """Return the error of a field that is refused for what other fields or the server say."""
    text: LiteralString = "'{param}' {reason}"
    return PydanticCustomError("refused", text, {"param": param, "reason": reason})


class Body(BaseModel):
    """Base of all bodies: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Body):
    """How to stream.

    Attributes:
        include_usage: Send a last chunk that carries `usage`.
    """

    include_usage: bool = False


class Extension(Body):
    """The `lightthinker` object of a request.

    Attributes:
        compression: Whether thoughts are compressed; null leaves it to the checkpoint.
        max_thought_tokens: End a thought that gets this long.
        retain_thoughts: Finished thoughts that stay in full; null leaves it to the checkpoint.
        events: Whether streamed chunks carry live token counts and thought events.
    """

    compression: bool | None = None
    max_thought_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    retain_thoughts: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    events: bool = False


class GenerationBody(Body):
    """What chat and text completions share."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = Field(None, ge=1)
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(None, gt=0, le=100)
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    thinking_token_budget: int | None = Field(None, ge=0, lt=2**31)
    lightthinker: Extension | None = None
    user: str | None = None
    logit_bias: Any = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> GenerationBody:
        for name, allowed in self.neutral.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                accepted = " or ".join(["null", *(repr(v) for v in allowed)])
                raise _refusal(name, f"is not supported by this server; it must be {accepted}.")
        if self.stream_options is not None and not self.stream:
            raise _refusal("stream_options", "is only allowed with stream=true.")
        return self

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many alternatives to report per token; None for no log-probabilities at all."""

    @property
    def extension(self) -> Extension:
        """The `lightthinker` object, with defaults."""
        return self.lightthinker or Extension()

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation.

    Attributes:
        role: Who speaks; `developer` counts as `system`.
        content: What was said.
        reasoning_content: An assistant's reasoning, passed to the chat template, which drops that
            of earlier turns.
        reasoning: The same under its other name.
        name: Not rendered by chat templates; only null is accepted.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    name: None = None
    tool_calls: Any = None
    function_call: None = None
    refusal: None = None
    audio: None = None
    annotations: Any = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        for number, part in enumerate(value if isinstance(value, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                text: LiteralString = "this server takes text parts only."
                raise PydanticCustomError(NOT_TEXT, text, {"part": number})
        return value

    @field_validator("tool_calls", "annotations")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        if value:
            raise ValueError("not supported by this server; it must be null or empty.")
        return None

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs 'content'.")
        if self.role != "assistant" and (self.reasoning_content or self.reasoning):
            raise ValueError("only assistant messages have reasoning.")
        return self

    def rendered(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(p.text for p in content or ())
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        reasoning = self.reasoning_content or self.reasoning
        return message | ({"reasoning_content": reasoning} if reasoning else {})


class ChatCompletionRequest(GenerationBody):
    """Body of `/v1/chat/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none",),
        "parallel_tool_calls": (),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "store": (False,),
        "metadata": ({},),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
    }

    messages: list[Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_completion_tokens: int | None = Field(None, ge=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise _refusal("top_logprobs", "is only allowed with logprobs=true.")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report per token."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationBody):
    """Body of `/v1/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    logprobs: int | None = Field(None, ge=0, le=20)
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report per token."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [p for p in self.prompt if not isinstance(p, int)]


class TokenizeRequest(Body):
    """Body of `/tokenize`: a prompt, or messages for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'.")
        if self.prompt is not None and self.chat_template_kwargs:
            raise _refusal("chat_template_kwargs", "is only for 'messages'.")
        if self.messages is not None and self.add_special_tokens is not None:
            raise _refusal("add_special_tokens", "is only for 'prompt'.")
        return self


class DetokenizeRequest(Body):
    """Body of `/detokenize`."""

    model: str | None = None
    tokens: list[TokenId]
