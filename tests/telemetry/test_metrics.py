"""Metrics as Prometheus reads them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from meshd.telemetry.metrics import LABEL_SETS_MAX, METRICS_MAX, Registry


def parsed(registry):
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(registry.expose())
        for sample in family.samples
    }


def test_counters_and_gauges_are_exposed():
    registry = Registry()
    packets = registry.counter("meshd_datagrams_total", "Datagrams.", ["direction"])
    packets.inc(1, "in")
    packets.inc(2, "in")
    packets.inc(1, "out")
    registry.gauge("meshd_probe_rtt_seconds", "Round trip.").set(0.0125)
    values = parsed(registry)
    assert values[("meshd_datagrams_total", ("in",))] == 3
    assert values[("meshd_datagrams_total", ("out",))] == 1
    assert values[("meshd_probe_rtt_seconds", ())] == 0.0125


def test_a_counter_without_labels_starts_at_zero():
    registry = Registry()
    registry.counter("meshd_drops_total", "Drops.")
    assert parsed(registry)[("meshd_drops_total", ())] == 0


@given(st.text(max_size=50), st.floats(allow_nan=True, allow_infinity=True))
def test_any_label_and_any_number_survives_the_parser(label, value):
    registry = Registry()
    registry.gauge("meshd_test_ratio", "A \\ test\nof help.", ["name"]).set(value, label)
    values = parsed(registry)
    expected = label.encode("utf-8", "backslashreplace").decode()
    got = values[("meshd_test_ratio", (expected,))]
    assert got == value or (math.isnan(got) and math.isnan(value))


def test_label_sets_beyond_the_bound_go_into_one():
    registry = Registry()
    counter = registry.counter("meshd_calls_total", "Calls.", ["peer"])
    for number in range(LABEL_SETS_MAX + 10):
        counter.inc(1, f"p{number}")
    counter.inc(1, "p0")
    values = parsed(registry)
    assert values[("meshd_calls_total", ("other",))] == 10
    assert values[("meshd_calls_total", ("p0",))] == 2
    assert values[("meshd_metrics_label_overflow_total", ())] == 10
    assert len(counter.values) == LABEL_SETS_MAX + 1


def test_a_reader_is_asked_at_each_exposition():
    registry = Registry()
    numbers = {"alive": 3.0}
    registry.read("meshd_members", "M.", lambda: {(k,): v for k, v in numbers.items()}, ["state"])
    registry.read("meshd_uptime_seconds", "U.", lambda: 7)
    assert parsed(registry)[("meshd_members", ("alive",))] == 3
    numbers.clear()
    numbers["dead"] = 1.0
    values = parsed(registry)
    assert ("meshd_members", ("alive",)) not in values
    assert values[("meshd_members", ("dead",))] == 1
    assert values[("meshd_uptime_seconds", ())] == 7


def test_a_reader_that_fails_hides_no_other_metric():
    registry = Registry()
    registry.read("meshd_broken_total", "B.", lambda: 1 / 0)
    registry.gauge("meshd_fine_ratio", "F.").set(1)
    values = parsed(registry)
    assert values[("meshd_fine_ratio", ())] == 1
    assert values[("meshd_metrics_read_failures_total", ())] == 1
    assert ("meshd_broken_total", ()) not in values


@pytest.mark.parametrize(
    "make",
    [
        lambda r: r.gauge("meshd_latency", "no unit"),
        lambda r: r.gauge("other_seconds", "no prefix"),
        lambda r: r.gauge("meshd_Seconds", "capital"),
        lambda r: r.gauge("meshd_x_total", "a gauge"),
        lambda r: r.counter("meshd_x_seconds", "a counter"),
        lambda r: r.gauge("meshd_x_seconds", "label", ["Bad"]),
        lambda r: r.counter("meshd_metrics_read_failures_total", "twice"),
        lambda r: r.counter("meshd_y_total", "shrinks").inc(-1),
        lambda r: r.counter("meshd_y_total", "labels", ["a"]).inc(1),
    ],
)
def test_a_metric_that_breaks_the_rules_is_our_own_bug(make):
    with pytest.raises(AssertionError):
        make(Registry())


def test_the_number_of_metrics_is_bounded():
    registry = Registry()
    for number in range(METRICS_MAX - 2):
        registry.gauge(f"meshd_n{number}_ratio", "N.")
    with pytest.raises(AssertionError, match="too many"):
        registry.gauge("meshd_last_ratio", "N.")
