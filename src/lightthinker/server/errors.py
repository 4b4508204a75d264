"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

Messages are about the request's fields, never its text. The JSON is ASCII, so that a message with
an unpaired surrogate can be sent too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lightthinker.engine.request_stream import (
    EngineBusyError,
    EngineDeadError,
    EngineStoppedError,
    RequestAbortedError,
)
from lightthinker.errors import LightThinkerError
from lightthinker.server.protocol import NOT_TEXT

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ClientDisconnectedError(Exception):
    """Nobody is left to answer."""


class APIError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        message: A sentence the caller can act on.
        param: The request field it is about.
        code: A word for programs.
        headers: Further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body in OpenAI's form."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Return it as an HTTP response."""
        return JSON(self.body(), self.status, self.headers)


class JSON(Response):
    """A JSON response in ASCII."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None):
        super().__init__(json.dumps(content, separators=(",", ":")), status, headers)


def as_api_error(error: BaseException) -> APIError:
    """Return what the client is told about an error raised while serving."""
    if isinstance(error, APIError):
        return error
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    if isinstance(error, EngineBusyError):
        return APIError(429, str(error), code="queue_full", headers=retry)
    if isinstance(error, EngineStoppedError | RequestAbortedError):
        return APIError(503, str(error), code="shutting_down", headers=retry)
    if isinstance(error, LightThinkerError):
        return APIError(400, str(error))
    if isinstance(error, EngineDeadError):
        return APIError(500, str(error), code="engine_dead")
    logger.error("a request failed", exc_info=error)
    return APIError(500, "The server failed on this request; its log says how.")


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application an OpenAI-form answer."""

    async def handle(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def handle_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return APIError(error.status_code, str(error.detail), headers=error.headers).response()

    async def handle_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid_request(error).response()

    async def handle_disconnected(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ClientDisconnectedError, handle_disconnected)
    app.add_exception_handler(APIError, handle)
    app.add_exception_handler(LightThinkerError, handle)
    app.add_exception_handler(EngineDeadError, handle)
    app.add_exception_handler(RequestAbortedError, handle)
    app.add_exception_handler(HTTPException, handle_http)
    app.add_exception_handler(RequestValidationError, handle_invalid)
    app.add_exception_handler(Exception, handle)


def invalid_request(error: RequestValidationError) -> APIError:
    """Return the first of pydantic's complaints as a 400 that names the parameter."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query")]
    param = ".".join(path) or None
    if first["type"] == "json_invalid":
        return APIError(400, "The body is not valid JSON.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        message = f"Unknown parameter: '{param}'. This server refuses what it does not know."
        return APIError(400, message, param=param, code="unknown_parameter")
    if first["type"] == "refused":
        return APIError(400, str(first["msg"]), param=first["ctx"]["param"])
    if first["type"] == NOT_TEXT:
        param = f"{param}.{first['ctx']['part']}"
        return APIError(400, f"{param}: {first['msg']}", param=param, code="unsupported_content")
    if param is None and first["type"] in ("missing", "model_attributes_type"):
        message = "The body must be a JSON object, sent with 'Content-Type: application/json'."
        return APIError(400, message, code="invalid_json")
    reason = str(first["msg"]).removeprefix("Value error, ")
    return APIError(400, f"{param}: {reason}" if param else reason, param=param)
