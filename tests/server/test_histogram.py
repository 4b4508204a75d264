"""The counting histogram gives what prometheus_client's own gives."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lightthinker.server.histogram import CountingHistogram

BOUNDS = (0.001, 0.5, 1.0, 20.0)


def samples(registry):
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (s.name, tuple(sorted(s.labels.items()))): round(s.value, 9)
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


def test_same_samples_as_the_librarys():
    draw = random.Random(0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counting = CountingHistogram("x:time_seconds", "Time.", BOUNDS, {"model_name": "m"})
    ours.register(counting)
    plain = Histogram("x:time_seconds", "Time.", ["model_name"], buckets=BOUNDS, registry=theirs)
    plain = plain.labels("m")
    assert samples(ours) == samples(theirs)
    for _ in range(200):
        value = draw.choice([0.001, 0.5, 20.0, 21.0, draw.random(), 5 * draw.random()])
        count = draw.randrange(1, 5)
        counting.observe(value, count)
        for _ in range(count):
            plain.observe(value)
    assert samples(ours) == samples(theirs)
    assert len(samples(ours)) == len(BOUNDS) + 3
