"""A Ray Serve application: a gateway before replicas that each run the whole server.

    serve run lightthinker.scale.ray_serve:app model=path/to/checkpoint max_replicas=4 num_gpus=1

Every route, the page included, is the server's own: the gateway forwards HTTP. Ray starts,
replaces and scales replicas by the requests they hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from lightthinker.scale.asgi import HttpRequest, Message, run_app
from lightthinker.scale.gateway import Gateway, ReplicaLostError
from lightthinker.scale.ray_settings import RayServeSettings

METRICS_TIMEOUT_S = 5.0
LOST = (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError)


class EngineReplica:
    """One engine with the whole server, without its socket."""

    def __init__(self, settings: RayServeSettings):
        from lightthinker.bundled import model_path
        from lightthinker.demo.loading import open_llm
        from lightthinker.engine.async_llm import AsyncLLM
        from lightthinker.engine.device import wants_engine_process
        from lightthinker.engine.interpreter import exempt_what_stays, shorten_switch_interval
        from lightthinker.server.app import create_app
        from lightthinker.server.settings import (
            MAX_STREAM_UPDATES_PER_S,
            ServerSettings,
            read_api_keys,
        )
        from lightthinker.server.tracing import tracing_from_environment

        llm = open_llm(
            settings.model, device=settings.device, dtype=settings.dtype,
            max_num_seqs=settings.max_num_seqs, num_kv_tokens=settings.num_kv_tokens,
            max_stream_updates_per_s=MAX_STREAM_UPDATES_PER_S,
            engine_process=wants_engine_process(settings.device),
        )  # fmt: skip
        limits = ServerSettings(
            model_name=settings.served_model_name or Path(model_path(settings.model)).name,
            api_keys=read_api_keys(None), max_body_bytes=settings.max_body_bytes,
        )  # fmt: skip
        queued = limits.max_queued_requests
        shorten_switch_interval()
        self.engine = AsyncLLM(llm, max_requests=settings.max_num_seqs + queued)
        tracing = tracing_from_environment(limits.model_name)
        self.app = create_app(self.engine, limits, tracing)
        exempt_what_stays()

    async def forward(self, request: HttpRequest) -> AsyncIterator[Message]:
        """Answer a request as the server does; cancelling it aborts the generation."""
        async for message in run_app(self.app, request):
            yield message

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name and its metrics in Prometheus' text format."""
        name = str(serve.get_replica_context().replica_id.unique_id)
        return name, self.app.state.server.metrics.render(self.engine.stats()).decode()

    def check_health(self) -> None:
        """Raise if the engine has failed: Ray then replaces this replica."""
        if not self.engine.is_healthy:
            raise RuntimeError("The engine has failed.")

    def __del__(self) -> None:
        if hasattr(self, "engine"):
            self.engine.shutdown()
            self.engine.llm.shutdown()


class _Front:
    """The deployment that holds the gateway; built where it runs, next to its handle."""

    def __init__(self, replicas: Any, max_body_bytes: int):
        self.replicas = replicas.options(stream=True)
        self.max_body_bytes = max_body_bytes

    def __serve_build_asgi_app__(self) -> Gateway:
        return Gateway(self._forward, self._metrics, max_body_bytes=self.max_body_bytes)

    async def _forward(self, request: HttpRequest) -> AsyncIterator[Message]:
        response = self.replicas.forward.remote(request)
        try:
            async for message in response:
                yield message
        except LOST as error:
            raise ReplicaLostError(str(error)) from error
        finally:
            response.cancel()

    async def _metrics(self) -> dict[str, str]:
        asked = self.replicas.broadcast("metrics")
        try:
            answers = await asked.results_async(timeout_s=METRICS_TIMEOUT_S, return_exceptions=True)
        except TimeoutError as error:
            raise ReplicaLostError(f"one took more than {METRICS_TIMEOUT_S:g} s.") from error
        told = dict(answer for answer in answers if not isinstance(answer, Exception))
        if not told:
            raise ReplicaLostError(f"{len(answers)} were asked in vain.")
        return told


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application, for `serve run` and config files.

    Args:
        arguments: Fields of `RayServeSettings`.
    """
    settings = RayServeSettings.of(arguments)
    replicas = serve.deployment(
        name="EngineReplica",
        max_ongoing_requests=settings.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
    )(EngineReplica)
    front = serve.deployment(
        name="Gateway",
        num_replicas=settings.num_gateways,
        max_ongoing_requests=settings.max_ongoing_requests * settings.max_replicas,
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(_Front))
    return front.bind(replicas.bind(settings), settings.max_body_bytes)
