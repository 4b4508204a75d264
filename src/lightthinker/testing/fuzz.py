"""schemathesis against a running server: generated requests, valid and not, over its OpenAPI."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from lightthinker.server.protocol import ChatCompletionRequest, CompletionRequest

TIMEOUT_S = 120.0


@dataclass
class FuzzResult:
    """What came of it.

    Attributes:
        cases: Requests sent.
        statuses: Answers by status.
        server_errors: Requests that were answered with a 5xx, or not at all, and how.
        paths: Paths that were tried.
    """

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    server_errors: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


def fuzz(url: str, *, max_cases: int, seed_value: int = 0) -> FuzzResult:
    """Send generated requests to every operation of a server.

    Args:
        url: The server's address.
        max_cases: Requests in all, at least; spread evenly over the operations that take a body or
            a parameter, in valid and invalid form.
        seed_value: Of the generation.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    result = FuzzResult()
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    with_input = [o for o in operations if _has_input(o)]
    with httpx.Client(timeout=TIMEOUT_S) as client:
        for operation in operations:
            if operation not in with_input:
                _run(url, client, operation, MODES[0], 1, seed_value, result)
        rounds = 0
        while result.cases < max_cases:
            share = -(-(max_cases - result.cases) // (2 * len(with_input)))
            for operation, mode in itertools.product(with_input, MODES):
                _run(url, client, operation, mode, share, seed_value + rounds, result)
            rounds += 1
    return result


def _has_input(operation: Any) -> bool:
    return bool(operation.body) or next(iter(operation.iter_parameters()), None) is not None


def _run(
    url: str, client: httpx.Client, operation: Any, mode: GenerationMode, num_cases: int,
    seed_value: int, result: FuzzResult,
) -> None:  # fmt: skip
    result.paths.add(operation.path)

    @seed(seed_value)
    @settings(
        max_examples=num_cases, deadline=None, database=None, phases=[Phase.generate],
        verbosity=Verbosity.quiet, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        make_valid = mode is MODES[0] and result.cases % 2 == 0
        wanted = _request(case, url, make_valid=make_valid)
        result.cases += 1
        try:
            answer = client.send(client.build_request(**wanted))
        except httpx.HTTPError as error:
            result.server_errors.append(f"{operation.label}: {type(error).__name__}: {wanted}")
            return
        result.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            result.server_errors.append(f"{operation.label}: {answer.status_code}: {wanted}")

    # Some operations have no invalid form that can be sent.
    with contextlib.suppress(Unsatisfiable):
        send()


def _request(case: Any, url: str, *, make_valid: bool) -> dict[str, Any]:
    """Return what a case sends, as httpx takes it.

    Args:
        case: What was generated.
        url: The server's address.
        make_valid: Bring what only the server's settings limit (the model's name, lengths) within
            the limits, so that the request is run.
    """
    wanted: dict[str, Any] = case.as_transport_kwargs(base_url=url)
    body = wanted.get("json")
    if make_valid and isinstance(body, dict):
        body = {k: v for k, v in body.items() if k != "max_completion_tokens"}
        body |= {k: None for k in _REFUSED if k in body}
        body |= {k: min(body[k], 3) for k in ("n", "max_tokens") if isinstance(body.get(k), int)}
        if "completions" in case.operation.path:
            body["max_tokens"] = 3
        wanted["json"] = body
    return {k: v for k, v in wanted.items() if v is not None and k in _SENT}


_REFUSED = (
    *ChatCompletionRequest.neutral, *CompletionRequest.neutral, "model", "reasoning_effort",
    "stop_token_ids", "stream_options", "top_logprobs", "chat_template_kwargs",
)  # fmt: skip
"""Fields of which nearly every generated value is refused."""

_SENT = ("method", "url", "headers", "params", "json", "data", "content", "cookies")
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
