"""create_app: the routes, put together.

Knows how calls are answered; what they mean is in the modules it names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from lightthinker import __version__
from lightthinker.engine.async_llm import AsyncLLM, Progress
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.server.errors import JSON, APIError, install_handlers
from lightthinker.server.formats import ChatFormat, TextFormat
from lightthinker.server.generation import Call, ChoiceFormat
from lightthinker.server.metrics import CONTENT_TYPE, Metrics
from lightthinker.server.middleware import Gate
from lightthinker.server.prompts import Prompts
from lightthinker.server.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationBody,
    TokenizeRequest,
)
from lightthinker.server.reasoning import ReasoningSplitter
from lightthinker.server.sampling import Sampling
from lightthinker.server.settings import ServerSettings
from lightthinker.server.tracing import Tracing

STATIC = Path(__file__).parent / "static"


class Server:
    """What the routes share.

    Attributes:
        engine: The running engine.
        settings: Limits and switches.
        prompts: The server's tokenizer.
        metrics: Of this server.
        sampling: Requests to SamplingParams.
        tracing: OpenTelemetry spans, if they are wanted.
    """

    def __init__(self, engine: AsyncLLM, settings: ServerSettings, tracing: Tracing | None = None):
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(settings.model_name, settings.metrics_prefix)
        self.tracing = tracing
        engine.on_step = self.observe
        self.prompts = Prompts(engine.llm)
        self.sampling = Sampling.of(engine.llm, settings)
        self.created = int(time.time())
        compression = engine.llm.compression
        self.splitter = ReasoningSplitter(
            compression.reasoning_begin if compression else "",
            compression.reasoning_end if compression else "",
        )

    def observe(self, progress: list[Progress]) -> None:
        """Take a step's progress; called in the engine's thread."""
        self.metrics.observe(progress)
        if self.tracing:
            self.tracing.observe(progress)

    def check_model(self, name: str | None) -> None:
        """Raise APIError 404 unless this is the model served; nothing means any."""
        if name not in (None, "", self.settings.model_name):
            raise APIError(
                404,
                f"The model '{name}' is not served here; this server has "
                f"'{self.settings.model_name}'.",
                param="model",
                code="model_not_found",
            )

    def model_card(self) -> dict[str, Any]:
        """Return the model's entry of `/v1/models`."""
        llm = self.engine.llm
        compression = llm.compression
        compresses = compression is not None and compression.method != "full"
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "lightthinker",
            "max_model_len": llm.engine.max_model_len,
            "lightthinker": {
                "compresses": compresses,
                "num_gists": compression.num_gists if compression and compresses else None,
                "kv_bytes_per_token": llm.kv_bytes_per_token,
            },
        }

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation."""
        self.sampling.check(body)
        ids, reasons = await self.prompts.chat(
            body.messages, body.chat_template_kwargs, body.reasoning_effort
        )
        splitter = self.splitter if reasons else ReasoningSplitter("", "")
        params = self.sampling.params(body, len(ids))
        chat_format = ChatFormat(self.prompts.token_text)
        return await self._generate(body, request, [ids], [params], chat_format, splitter)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Complete raw prompts."""
        prompts = body.prompts
        if not prompts:
            raise APIError(400, "prompt is empty; give at least one.", param="prompt")
        self.sampling.check(body, len(prompts))
        ids = [p if isinstance(p, list) else await self.prompts.text(p) for p in prompts]
        params = [self.sampling.params(body, len(i)) for i in ids]
        splitter = ReasoningSplitter("", "")
        text_format = TextFormat(self.prompts.token_text)
        return await self._generate(body, request, ids, params, text_format, splitter)

    async def _generate(
        self,
        body: GenerationBody,
        request: Request,
        ids: Sequence[list[int]],
        params: Sequence[SamplingParams],
        choice_format: ChoiceFormat,
        splitter: ReasoningSplitter,
    ) -> Response:
        deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_s
        call = Call(
            self.engine, self.prompts, body, self.settings.model_name, choice_format, splitter,
            deadline, self.tracing,
        )  # fmt: skip
        return await call.answer(request, ids, params)

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Return a prompt's or a conversation's tokens."""
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = await self.prompts.text(body.prompt, add_special_tokens=special)
        else:
            ids, _ = await self.prompts.chat(body.messages or [], body.chat_template_kwargs)
        return {
            "count": len(ids),
            "max_model_len": self.engine.llm.engine.max_model_len,
            "tokens": ids,
            "token_strs": (
                await self.prompts.token_strings(ids) if body.return_token_strs else None
            ),
        }


def create_app(
    engine: AsyncLLM, settings: ServerSettings | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """Return the application; it owns the engine and ends it at shutdown.

    Args:
        engine: A running engine.
        settings: Limits, keys and switches.
        tracing: Where spans of requests go; ended at shutdown too.
    """
    server = Server(engine, settings or ServerSettings(), tracing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.prompts.close()
        await asyncio.to_thread(engine.shutdown)
        if tracing:
            await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="LightThinker", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.server = server
    install_handlers(app)
    _add_api(app, server)
    _add_status(app, server)
    _add_page(app)
    app.add_middleware(
        Gate, settings=server.settings, on_refusal=server.metrics.refuse,
    )  # fmt: skip
    if server.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app


def _add_api(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return JSON({"object": "list", "data": [server.model_card()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        server.check_model(model)
        return JSON(server.model_card())

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        return await server.chat(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        return await server.complete(body, request)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        server.check_model(body.model)
        return JSON(await server.tokenize(body))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        server.check_model(body.model)
        return JSON({"prompt": await server.prompts.decode(body.tokens)})


def _add_status(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> Response:
        if not server.engine.is_healthy:
            raise APIError(503, "The engine has failed; the server has to be restarted.")
        return JSON({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        if not server.engine.is_accepting:
            raise APIError(503, "The server takes no new requests.", code="shutting_down")
        return JSON({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        content = server.metrics.render(server.engine.stats())
        return Response(content, headers={"Content-Type": CONTENT_TYPE})

    @app.get("/version")
    async def version() -> Response:
        return JSON({"version": __version__})


def _add_page(app: FastAPI) -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return HTMLResponse(page)

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
