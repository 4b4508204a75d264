"""Manifests say what the programs understand; images and clusters are not tested."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightthinker.cli.serve import serve
from lightthinker.errors import ConfigError
from lightthinker.scale.ray_settings import RayServeSettings

DEPLOY = Path(__file__).parents[2] / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def flags(arguments: list[str]) -> set[str]:
    return {a.removeprefix("--").replace("-", "_") for a in arguments if a.startswith("--")}


def test_servers_are_started_with_flags_that_exist() -> None:
    known = set(inspect.signature(serve).parameters)
    compose = documents("compose.yaml")[0]["services"]["server"]["command"]
    pod = next(d for d in documents("kubernetes/lightthinker.yaml") if d["kind"] == "Deployment")
    spec = pod["spec"]["template"]["spec"]
    arguments = spec["containers"][0]["args"]

    assert flags(compose) <= known
    assert flags(arguments) <= known
    drain = float(arguments[arguments.index("--drain-timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] > drain


def test_compose_mounts_files_that_exist() -> None:
    for service in documents("compose.yaml")[0]["services"].values():
        for volume in service.get("volumes", ()):
            if volume.startswith("./"):
                assert (DEPLOY / volume.split(":")[0]).exists(), volume


def test_the_ray_service_configures_what_there_is() -> None:
    config = yaml.safe_load(documents("kubernetes/rayservice.yaml")[0]["spec"]["serveConfigV2"])
    application = config["applications"][0]

    settings = RayServeSettings.of(application["args"])

    assert application["import_path"] == "lightthinker.scale.ray_serve:app"
    assert settings.max_replicas == 4


def test_ray_arguments_are_checked() -> None:
    from_command_line = RayServeSettings.of(
        {"model": "123", "max_replicas": "3", "num_gpus": "0.5"}
    )

    assert from_command_line.model == "123"
    assert from_command_line.max_replicas == 3
    assert from_command_line.num_gpus == 0.5
    with pytest.raises(ConfigError, match="Did you mean 'max_replicas'"):
        RayServeSettings.of({"model": "m", "max_replica": 2})
    with pytest.raises(ConfigError, match="min_replicas is 3"):
        RayServeSettings.of({"model": "m", "min_replicas": 3})
    with pytest.raises(ConfigError, match="model=CHECKPOINT is missing"):
        RayServeSettings.of({})


def test_the_measured_run_lost_nothing() -> None:
    path = DEPLOY.parent / "results" / "scale" / "ray_robustness.json"
    result = json.loads(path.read_text(encoding="utf-8"))

    assert result["lost"] == result["mismatched"] == result["batch_errors"] == 0
    assert result["completed"] + result["broken_off_with_error_event"] == result["requests"]
    assert result["batch_lines"] == result["batch_written_once"] == result["batch_rows"]
    assert result["batch_workers_killed"] == 1
