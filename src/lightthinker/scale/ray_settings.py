"""RayServeSettings: what `serve run` and a config file may say. Knows no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from lightthinker.errors import ConfigError, suggestion


@dataclass(frozen=True, kw_only=True)
class RayServeSettings:
    """What to run.

    Attributes:
        model: Checkpoint folder or hub name, on every node; `demo` is the bundled model.
        served_model_name: Name that clients ask for; by default the folder's.
        min_replicas: Engines that always run.
        max_replicas: Most engines.
        target_ongoing_requests: Requests per engine that autoscaling aims at.
        max_ongoing_requests: Most requests that an engine is given at once.
        num_gateways: Gateway processes.
        num_cpus: CPUs for each engine.
        num_gpus: GPUs for each engine.
        max_num_seqs: Most sequences running at once in an engine.
        num_kv_tokens: Tokens that an engine's KV pool holds; None sizes it by memory.
        max_body_bytes: Largest request body.
        drain_timeout_s: How long a replica that is removed may finish its requests.
        device: cpu, cuda, ...; None is CUDA if there is one.
        dtype: auto, float32, bfloat16 or float16.
    """

    model: str
    served_model_name: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 64.0
    max_ongoing_requests: int = 512
    num_gateways: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_num_seqs: int = 256
    num_kv_tokens: int | None = None
    max_body_bytes: int = 4 * 1024 * 1024
    drain_timeout_s: float = 30.0
    device: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}; "
                "expected 1 <= min_replicas <= max_replicas."
            )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> RayServeSettings:
        """Return settings from `serve run`'s `key=value` arguments or a config file's.

        Raises:
            ConfigError: An unknown key, or no model.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for key in arguments:
            if key not in names:
                raise ConfigError(
                    f"Unknown argument {key!r}; there are {', '.join(names)}."
                    f"{suggestion(key, names)}"
                )
        if "model" not in arguments:
            raise ConfigError("model=CHECKPOINT is missing.")
        values = {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in arguments.items()}
        return cls(**{**values, "model": str(arguments["model"])})
