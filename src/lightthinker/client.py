"""The client's half of the streaming OpenAI API: addresses, keys, server-sent events, errors.

Shared by the terminal chat and the load generator. Needs httpx only where it is called.
"""

from __future__ import annotations

import json
import os
from typing import Any

from lightthinker.errors import RequestError

KEY_VARIABLES = ("LIGHTTHINKER_API_KEY", "OPENAI_API_KEY")
DONE = "[DONE]"


def api_base(url: str) -> str:
    """Return the address that ends in `/v1`, whichever way it was typed.

    Raises:
        RequestError: It is no http or https address.
    """
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{url!r} is no address; it must begin with http:// or https://.")
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def auth_headers() -> dict[str, str]:
    """Return the header with the API key of the environment, if one is set."""
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            return {"Authorization": f"Bearer {key}"}
    return {}


def parse_event(line: str) -> dict[str, Any] | None:
    """Return the chunk of one line of a stream; None for other lines and for the end.

    Raises:
        RequestError: The server reports an error inside the stream.
    """
    if not line.startswith("data:"):
        return None
    data = line[len("data:") :].strip()
    if data == DONE:
        return None
    chunk: dict[str, Any] = json.loads(data)
    if "error" in chunk:
        raise RequestError(f"The server ended the answer: {_message(chunk)}")
    return chunk


def is_end(line: str) -> bool:
    """Whether the line says that the stream is complete."""
    return line.startswith("data:") and line[len("data:") :].strip() == DONE


def refusal(status: int, body: bytes) -> RequestError:
    """Return the error for an answer that is not 200, in the server's words."""
    try:
        message = _message(json.loads(body))
    except (ValueError, TypeError):
        message = ""
    hint = f" Set {KEY_VARIABLES[0]} to its API key." if status == 401 else ""
    return RequestError(f"The server answered {status}: {message or 'no message'}{hint}")


def _message(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "")
