"""The metrics of several replicas as one exposition, each sample labelled with its replica.

Nothing is added up here: Prometheus sums over a label (`sum without (replica) (...)`), and sums of
gauges, shares and histograms are the reader's choice. A replica that starts anew has a new name, so
that its counters begin at 0 in series of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merge_expositions(texts: Mapping[str, str]) -> bytes:
    """Return one exposition of many.

    Args:
        texts: Replica name -> its exposition in Prometheus' text format.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return bytes(generate_latest(registry))


@dataclass(frozen=True, eq=False)
class _Merged(Collector):  # type: ignore[misc]
    """Collects from texts."""

    texts: Mapping[str, str]

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with every replica's samples."""
        families: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for family in text_string_to_metric_families(text):
                empty = Metric(family.name, family.documentation, family.type)
                merged = families.setdefault(family.name, empty)
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, LABEL: replica}, sample.value)
        yield from families.values()
