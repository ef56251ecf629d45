"""Counters and gauges, plain numbers in memory, and their text form for Prometheus. Pure."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

LABEL_SETS_MAX = 64
"""Per metric. What comes beyond goes into one set with all labels `other`, and is counted."""

LABEL_CHARS_MAX = 100
METRICS_MAX = 512
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"

UNITS = frozenset(
    {
        "seconds",
        "bytes",
        "ratio",
        "total",
        "info",
        "datagrams",
        "entries",
        "members",
        "nodes",
        "peers",
        "slots",
        "tasks",
        "calls",
        "circuits",
        "connections",
        "score",
        "timestamp",
    }
)
"""How a metric's name may end; counters end in `total` (after their unit, if they have one)."""

_NAME = re.compile(r"meshd(_[a-z0-9]+)+\Z")
_LABEL = re.compile(r"[a-z][a-z0-9_]*\Z")

Values = Mapping[tuple[str, ...], float]
Reader = Callable[[], float | Values]


class Metric:
    """One counter or gauge. Written by one thread; read by any."""

    def __init__(self, kind: str, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        self.kind = kind
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self.overflowed = 0

    def _slot(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        if labels in self.values:
            return labels
        assert len(labels) == len(self.labels), f"{self.name} has the labels {self.labels}"
        cut = tuple(str(label)[:LABEL_CHARS_MAX] for label in labels)
        if cut in self.values or len(self.values) < LABEL_SETS_MAX:
            return cut
        self.overflowed += 1
        return (OTHER,) * len(self.labels)


class Counter(Metric):
    """A number that only grows."""

    def inc(self, amount: float = 1, /, *labels: str) -> None:
        """Add `amount`, which is 0 or more."""
        assert amount >= 0, f"{self.name} cannot shrink"
        slot = self._slot(labels)
        self.values[slot] = self.values.get(slot, 0.0) + amount


class Gauge(Metric):
    """A number that goes up and down."""

    def set(self, value: float, /, *labels: str) -> None:
        """The number is `value` now."""
        self.values[self._slot(labels)] = value


class Registry:
    """All metrics of one node."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._readers: dict[str, Reader] = {}
        self._overflowed = self.counter(
            "meshd_metrics_label_overflow_total",
            "Updates that went to the label set 'other', because a metric had too many.",
        )
        self._failed = self.counter(
            "meshd_metrics_read_failures_total", "Metrics whose reader raised an error."
        )

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter; its name ends in `_total`."""
        assert name.endswith("_total"), f"a counter's name ends in _total: {name}"
        metric = Counter("counter", name, help_text, tuple(labels))
        self._add(metric)
        return metric

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """A new gauge; its name ends in its unit."""
        assert not name.endswith("_total"), f"a gauge's name does not end in _total: {name}"
        metric = Gauge("gauge", name, help_text, tuple(labels))
        self._add(metric)
        return metric

    def read(self, name: str, help_text: str, reader: Reader, labels: Sequence[str] = ()) -> None:
        """A metric whose owner keeps the number itself: `reader` is asked at each exposition.

        A name in `_total` makes it a counter. With labels, the reader returns a mapping from label
        values to numbers.
        """
        kind = "counter" if name.endswith("_total") else "gauge"
        self._add(Metric(kind, name, help_text, tuple(labels)))
        self._readers[name] = reader

    def _add(self, metric: Metric) -> None:
        assert _NAME.match(metric.name), f"not a metric's name: {metric.name}"
        assert metric.name.rpartition("_")[2] in UNITS, f"no unit at the end: {metric.name}"
        assert metric.name not in self._metrics, f"registered twice: {metric.name}"
        assert all(_LABEL.match(label) for label in metric.labels), f"labels of {metric.name}"
        assert len(self._metrics) < METRICS_MAX, "too many metrics"
        self._metrics[metric.name] = metric

    def expose(self) -> str:
        """Everything, in Prometheus' text format 0.0.4."""
        for name, reader in self._readers.items():
            self._ask(self._metrics[name], reader)
        overflowed = sum(m.overflowed for m in self._metrics.values())
        self._overflowed.values[()] = float(overflowed)
        lines: list[str] = []
        for metric in sorted(self._metrics.values(), key=lambda m: m.name):
            lines.append(f"# HELP {metric.name} {_escape_help(metric.help_text)}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            # A copy: another thread may add a label set meanwhile.
            lines.extend(_sample(metric, *item) for item in sorted(metric.values.copy().items()))
        return "\n".join(lines) + "\n"

    def _ask(self, metric: Metric, reader: Reader) -> None:
        try:
            answer = reader()
            values = dict(answer) if isinstance(answer, Mapping) else {(): float(answer)}
        except Exception:  # noqa: BLE001  # one room's fault must not hide the others' metrics
            self._failed.inc()
            metric.values = {}
            return
        metric.values = {}
        for labels, value in values.items():
            slot = metric._slot(labels)  # noqa: SLF001  # the registry fills its own metric
            metric.values[slot] = metric.values.get(slot, 0.0) + value


def _sample(metric: Metric, labels: tuple[str, ...], value: float) -> str:
    if not labels:
        return f"{metric.name} {_number(value)}"
    pairs = zip(metric.labels, labels, strict=True)
    inside = ",".join(f'{key}="{_escape_label(text)}"' for key, text in pairs)
    return f"{metric.name}{{{inside}}} {_number(value)}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_label(text: str) -> str:
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates
    return clean.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
