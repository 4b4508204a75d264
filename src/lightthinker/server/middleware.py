"""What happens to a request before the application sees it: host, key, body limit; and headers.

Plain ASGI, so that a client's disconnect and a stream's back-pressure pass through. Invariant: a
request without a valid key is answered before its body is read, and nothing behind this sees it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightthinker.server.errors import APIError
from lightthinker.server.settings import ServerSettings
from lightthinker.server.streaming import timed_out

access_log = logging.getLogger("lightthinker.server.access")

GUARDED = ("/v1/", "/tokenize", "/detokenize")
"""Paths that need a key; health, metrics, version and the page do not."""


CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The page loads scripts and styles from its own origin and has none inline."""


class Gate:
    """Checks requests and marks responses.

    Args:
        app: The application behind it.
        settings: Keys, hosts and limits.
        on_refusal: Told the status of every response that is an error.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        on_refusal: Callable[[int], None],
    ):
        self.app = app
        self.on_refusal = on_refusal
        self.settings = settings
        self.key_digests = [hashlib.sha256(k.encode()).digest() for k in settings.api_keys]
        self.headers = {
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except APIError as error:
            await error.response()(scope, receive, marked)
        else:
            if body is not None:
                await self.app(scope, _replay(body, receive), marked)
        finally:
            if status >= 400:
                self.on_refusal(status)
            access_log.info(
                "%s %s %d", scope["method"], scope["path"], status,
                extra={
                    "method": scope["method"], "path": scope["path"], "status": status,
                    "duration_s": round(time.monotonic() - begin, 6),
                },
            )  # fmt: skip

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = self.settings.allowed_hosts
        if hosts and _host_name(headers.get("host", "")) not in {h.lower() for h in hosts}:
            raise APIError(
                400,
                "The Host header is none that this server answers to; name it with --allow-host.",
                code="host_not_allowed",
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise APIError(
                415,
                "Content-Encoding is not supported by this server; send the body as it is.",
                code="unsupported_encoding",
            )
        if self.key_digests and scope["path"].startswith(GUARDED) and not self._has_key(headers):
            raise APIError(
                401,
                "Missing or wrong API key; send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, and digests are: neither order nor length shows in the time.
        matches = [hmac.compare_digest(digest, known) for known in self.key_digests]
        return scheme.lower() == "bearer" and any(matches)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client left."""
        limit = self.settings.max_body_bytes
        too_large = APIError(
            413, f"The body is larger than {limit} bytes.", code="body_too_large",
            headers={"Connection": "close"},
        )  # fmt: skip
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise timed_out() from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, then what the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _host_name(host: str) -> str:
    """Return a Host header's name without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
