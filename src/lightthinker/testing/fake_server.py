"""A server that speaks our streaming API and reasons by the book, for tests of its clients.

Each request is answered with a scripted trace: by default the reference trace of a generated
problem. Counts follow one rule (a token is a piece of `tasks.tokenize`, a thought leaves its
gists and a continue token), so that what clients show can be checked exactly. Serves the page
with the policy that the real server sets. It has no model, no queue and no limits.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any

from lightthinker.tasks import tokenize

MODEL = "scripted"
NUM_GISTS = 4
KV_BYTES_PER_TOKEN = 1024
POLICY = "default-src 'self'"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript",
         ".json": "application/json", ".svg": "image/svg+xml"}  # fmt: skip


@dataclass(frozen=True)
class Script:
    """What to answer: thoughts, then the answer. `endless` repeats the thoughts until aborted."""

    thoughts: Sequence[str]
    answer: str
    endless: bool = False


class FakeServer:
    """Serves scripted answers on a free port of the loopback interface, as a context manager.

    Args:
        answer: Question -> script.
        api_key: What requests must carry; None takes every request.
        pause_s: Seconds before each token.
        static: Folder of the page; None serves none.

    Attributes:
        requests: Bodies of the chat requests, in order of arrival.
        aborted: Set when a client leaves before its answer is complete.
    """

    def __init__(
        self, answer: Callable[[str], Script], *, api_key: str | None = None,
        pause_s: float = 0.0, static: Path | None = None,
    ):  # fmt: skip
        self.answer = answer
        self.api_key = api_key
        self.pause_s = pause_s
        self.static = static
        self.requests: list[dict[str, Any]] = []
        self.aborted = threading.Event()
        self._closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks that answer a request, usage last."""
        question = body["messages"][-1]["content"]
        script = self.answer(question)
        compression = body.get("lightthinker", {}).get("compression") is not False
        prompt = len(tokenize(question))
        live, full, peak, dependency, freed = prompt, prompt, prompt, 0, 0
        yield _chunk({"role": "assistant", "content": ""})
        thoughts = repeat(script.thoughts[0]) if script.endless else script.thoughts
        index, held = -1, ""
        for index, thought in enumerate(thoughts):
            begin = live
            for number, token in enumerate(tokenize(thought)):
                live, full, peak = live + 1, full + 1, max(peak, live + 1)
                dependency += live
                events = [{"type": "thought_started", "index": index}] if number == 0 else []
                text, held = held + token, ""
                yield _chunk({"reasoning_content": text, "reasoning": text}, live, full, events)
            live, full, held = live + 1, full + 1, "\n\n"
            dependency += live
            peak = max(peak, live + (NUM_GISTS + 1 if compression else 0))
            if compression:
                gone = live - begin
                live, freed = begin + NUM_GISTS + 1, freed + gone
                event = {
                    "type": "thought_compressed", "index": index, "num_tokens": gone,
                    "num_gists": NUM_GISTS, "tokens_freed": gone, "live_tokens": live,
                }  # fmt: skip
                yield _chunk({}, live, full, [event])
        reasoning = full - prompt
        for token in tokenize(script.answer):
            live, full, peak = live + 1, full + 1, max(peak, live + 1)
            dependency += live
            yield _chunk({"content": token}, live, full)
        yield {**_chunk({}, live, full), "choices": [_choice({}, "stop")]}
        count = index + 1 if compression else 0
        costs = {
            "peak_tokens": peak, "mean_live_tokens": dependency / max(1, full - prompt),
            "dependency": dependency, "dependency_full": dependency + count * (NUM_GISTS + 1),
            "thoughts": count, "gists": count * NUM_GISTS, "kv_tokens_freed": freed,
            "kv_bytes_peak": peak * KV_BYTES_PER_TOKEN, "full_cot_peak_tokens": full,
        }  # fmt: skip
        usage = {
            "prompt_tokens": prompt, "completion_tokens": full - prompt, "total_tokens": full,
            "completion_tokens_details": {"reasoning_tokens": reasoning}, "lightthinker": costs,
        }  # fmt: skip
        yield {**_chunk({}), "choices": [], "usage": usage}

    def stream(self, body: dict[str, Any]) -> Iterator[bytes]:
        """Yield server-sent events, a token each."""
        for chunk in self.chunks(body):
            if self._closing.is_set():
                return
            if self.pause_s:
                time.sleep(self.pause_s)
            yield f"data: {json.dumps(chunk)}\n\n".encode()
        yield b"data: [DONE]\n\n"


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


def _chunk(
    delta: dict[str, str], live: int | None = None, full: int = 0,
    events: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    chunk: dict[str, Any] = {
        "id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": MODEL,
        "choices": [_choice(delta)],
    }  # fmt: skip
    if live is not None:
        state = {"live_tokens": live, "full_cot_tokens": full, "events": list(events)}
        chunk["lightthinker"] = state
    return chunk


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/v1/models":
                facts = {
                    "compresses": True, "num_gists": NUM_GISTS,
                    "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
                }  # fmt: skip
                model = {"id": MODEL, "object": "model", "max_model_len": 8192,
                         "lightthinker": facts}  # fmt: skip
                self._if_allowed(lambda: self._json(200, {"object": "list", "data": [model]}))
            else:
                self._file("index.html" if path == "/" else path.removeprefix("/static/"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._if_allowed(lambda: self._chat(body))

        def _chat(self, body: dict[str, Any]) -> None:
            server.requests.append(body)
            if body.get("model") != MODEL:
                self._error(404, f"The model `{body.get('model')}` does not exist.")
                return
            self._head(200, "text/event-stream")
            try:
                for event in server.stream(body):
                    self.wfile.write(event)
                    self.wfile.flush()
            except OSError:
                server.aborted.set()

        def _if_allowed(self, go: Callable[[], None]) -> None:
            if server.api_key in (None, self.headers.get("Authorization", "")[len("Bearer ") :]):
                go()
            else:
                self._error(401, "Incorrect API key provided.")

        def _file(self, name: str) -> None:
            path = server.static / name if server.static else None
            if path is None or not path.is_file() or ".." in name:
                self._error(404, "Not found.")
                return
            self._head(200, TYPES[path.suffix])
            self.wfile.write(path.read_bytes())

        def _error(self, status: int, message: str) -> None:
            error = {"message": message, "type": "invalid_request_error", "param": None}
            self._json(status, {"error": {**error, "code": status}})

        def _json(self, status: int, content: dict[str, Any]) -> None:
            self._head(status, "application/json")
            self.wfile.write(json.dumps(content).encode())

        def _head(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()

    return Handler
