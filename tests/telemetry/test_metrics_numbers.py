"""Numbers as Prometheus reads them."""

import math

import pytest

from meshd.telemetry.metrics import Registry


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (3.0, "3"), (0.25, "0.25")],
)
def test_every_number_is_told_as_prometheus_reads_it(value, text):
    registry = Registry()
    registry.gauge("meshd_uptime_seconds", "Any number.").set(value)
    assert f"meshd_uptime_seconds {text}\n" in registry.expose()
