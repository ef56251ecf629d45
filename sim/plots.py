"""Pictures of a recorded run, as PNG and SVG: convergence, detection, and what a cut does.

They are drawn from the files in the run's directory alone. matplotlib is an optional extra.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meshd.errors import UsageError
from sim.recording import RESULT_FILE, SERIES_FILE, SERIES_SCHEMA

FORMATS = ("png", "svg")
DPI = 130
ROWS_MAX = 24
"""So many rows of faults at most; what has no row of its own shares the last one."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
FAULT_COLOURS = {
    "Partition": "#d62728",
    "OneWay": "#e07b39",
    "Crash": "#000000",
    "Leave": "#7f7f7f",
    "Start": "#2ca02c",
    "Rejoin": "#2ca02c",
}
OTHER_FAULT = "#c9a227"
Draw = Callable[[Any, dict[str, Any]], bool]


def plot(directory: Path) -> list[Path]:
    """Draw all pictures of a run into its directory; returns their paths.

    Raises:
        UsageError: matplotlib is missing, the directory holds no run, or cannot be written.
    """
    series = _read(directory / SERIES_FILE)
    if series.get("schema") != SERIES_SCHEMA:
        raise UsageError(f"{directory / SERIES_FILE} is of another version", hint=_RECORD)
    result = _read(directory / RESULT_FILE)
    series["violations"] = result.get("violations", [])
    loss = result.get("loss", 0.0)
    if not isinstance(loss, int | float) or not isinstance(series["violations"], list):
        raise UsageError(f"{directory / RESULT_FILE} is damaged", hint=_RECORD)
    series["title"] = (
        f"{result.get('scenario')} · {result.get('nodes')} nodes · seed {result.get('seed')}"
        f" · {loss:.0%} loss"
    )
    figure = _figure_class()
    written: list[Path] = []
    pictures: tuple[tuple[str, tuple[float, float], Draw], ...] = (
        ("convergence", (9.0, 4.5), convergence),
        ("detection", (7.0, 4.5), detection),
        ("timeline", (10.0, 6.0), timeline),
    )
    try:
        for name, size, draw in pictures:
            drawn = figure(figsize=size, layout="constrained")
            if draw(drawn, series):
                written += _save(drawn, directory, name)
    except OSError as error:
        raise UsageError(
            f"cannot write to {directory}: {error.strerror or error}",
            hint="give a run's directory that you may write",
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{directory / SERIES_FILE} is damaged ({type(error).__name__}: {error})", hint=_RECORD
        ) from None
    return written


_RECORD = "record a run first: meshd sim run SCENARIO --out DIR; then: meshd sim plot DIR"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {path}: {why}", hint=_RECORD) from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}", hint=_RECORD) from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: no JSON object", hint=_RECORD)
    return found


def _figure_class() -> Any:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "matplotlib is not installed",
            hint="pip install matplotlib, then: meshd sim plot DIR",
        ) from None
    mpl.rcParams["svg.hashsalt"] = "meshd"  # the same run, the same file
    mpl.rcParams["svg.fonttype"] = "none"
    return Figure


def _save(figure: Any, directory: Path, name: str) -> list[Path]:
    paths = []
    for kind in FORMATS:
        path = directory / f"{name}.{kind}"
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
        paths.append(path)
    return paths


def convergence(figure: Any, series: dict[str, Any]) -> bool:
    """The share of nodes whose view is true, and of those that agree; faults in the background."""
    axes = figure.subplots()
    at_s = series["at_s"]
    _shade(axes, series["faults"])
    axes.plot(
        at_s, _percent(series["equal"]), color="#9ecae1", label="agree with the largest party"
    )
    axes.plot(at_s, _percent(series["true"]), color=COLOURS[0], label="view is exactly true")
    axes.set(
        xlabel="virtual time (s)",
        ylabel="share of nodes (%)",
        ylim=(-3, 103),
        xlim=(0, _end(series)),
        title=series["title"],
    )
    _mark_violations(axes, series)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right")
    return True


def detection(figure: Any, series: dict[str, Any]) -> bool:
    """How long it took until crashes were known: cumulative. False if there is nothing to show."""
    axes = figure.subplots()
    shown = False
    for name, label, colour in (
        ("suspected_s", "first suspicion of a crash, anywhere", COLOURS[3]),
        ("detected_s", "a node holds a crashed one dead", COLOURS[1]),
    ):
        values = sorted(series[name])
        if not values:
            continue
        shown = True
        heights = [(index + 1) / len(values) * 100 for index in range(len(values))]
        axes.step([0.0, *values], [0.0, *heights], where="post", color=colour, label=label)
        half = values[(len(values) - 1) // 2]
        axes.axvline(half, color=colour, linestyle=":", linewidth=1)
        axes.annotate(f"p50 {half:.1f} s", (half, 50), xytext=(4, 0), textcoords="offset points")
    if shown:
        axes.set(
            xlabel="seconds since the crash",
            ylabel="share (%)",
            ylim=(0, 102),
            title=series["title"],
        )
        axes.set_xlim(left=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="best")
    return shown


def timeline(figure: Any, series: dict[str, Any]) -> bool:
    """Above, how many alive members each side believes in; below, what went wrong, and when."""
    rows = _rows(series["faults"])
    believed, faults = figure.subplots(
        2, 1, sharex=True, height_ratios=(3, max(0.5, min(4.0, len(rows) / 4)))
    )
    at_s = series["at_s"]
    believed.plot(
        at_s, series["members"], color="#555555", linestyle="--", linewidth=1, label="really there"
    )
    for index, group in enumerate(series["groups"]):
        colour = COLOURS[index % len(COLOURS)]
        believed.fill_between(
            at_s, group["low"], group["high"], color=colour, alpha=0.2, step="post"
        )
        label = f"{group['name']}: mean, and range"
        believed.plot(at_s, group["mean"], color=colour, drawstyle="steps-post", label=label)
    believed.set(ylabel="alive members believed in", title=series["title"])
    believed.set_ylim(bottom=0)
    believed.yaxis.get_major_locator().set_params(integer=True)
    believed.grid(visible=True, alpha=0.3)
    believed.legend(loc="lower right", fontsize="small")
    _mark_violations(believed, series)
    _draw_faults(faults, rows)
    faults.set(xlabel="virtual time (s)", xlim=(0, _end(series)))
    return True


def _draw_faults(axes: Any, rows: Sequence[tuple[str, list[dict[str, Any]]]]) -> None:
    for row, (_, bars) in enumerate(rows):
        for bar in bars:
            colour = FAULT_COLOURS.get(bar["what"], OTHER_FAULT)
            from_s, to_s = bar["from_s"], bar["to_s"]
            if to_s > from_s:
                axes.barh(row, to_s - from_s, left=from_s, height=0.7, color=colour, alpha=0.8)
            else:
                axes.plot([from_s], [row], marker="|", markersize=9, color=colour)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize="x-small")
    axes.set_ylim(max(len(rows), 2) - 0.5, -0.5)
    axes.grid(visible=True, axis="x", alpha=0.3)
    if not rows:
        axes.set_title("no faults", fontsize="small")


def _rows(faults: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Faults of one kind and one node in one row; of one kind alone where rows would be many."""
    rows = _grouped(faults, _full_label)
    if len(rows) > ROWS_MAX:
        rows = _grouped(faults, _kind_label)
    rest = [bar for _, bars in rows[ROWS_MAX - 1 :] for bar in bars]
    return rows if len(rows) <= ROWS_MAX else [*rows[: ROWS_MAX - 1], ("others", rest)]


def _grouped(
    faults: Sequence[dict[str, Any]], label: Callable[[dict[str, Any]], str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for bar in faults:
        rows.setdefault(label(bar), []).append(bar)
    return list(rows.items())


def _full_label(bar: dict[str, Any]) -> str:
    if bar["node"] is not None:
        return f"{bar['what']} {bar['node']}"
    return f"{bar['what']} {bar['name'] or ''}".strip()


def _kind_label(bar: dict[str, Any]) -> str:
    return str(bar["what"])


def _shade(axes: Any, faults: Sequence[dict[str, Any]]) -> None:
    """Grey where something lasts, a fine line where something happens."""
    lasting = [bar for bar in faults if bar["to_s"] > bar["from_s"]]
    for start, end in _merged([(bar["from_s"], bar["to_s"]) for bar in lasting]):
        axes.axvspan(start, end, color="#d62728", alpha=0.08, linewidth=0)
    instants = [bar["from_s"] for bar in faults if bar["to_s"] <= bar["from_s"]]
    for at_s in instants[:200]:
        axes.axvline(at_s, color="#000000", alpha=0.25, linewidth=0.8)


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _mark_violations(axes: Any, series: dict[str, Any]) -> None:
    for each in series["violations"]:
        axes.axvline(each["at_s"], color="#d62728", linewidth=2)
        axes.annotate(
            f" {each['invariant']} violated",
            (each["at_s"], 1),
            xycoords=("data", "axes fraction"),
            va="top",
            color="#d62728",
        )


def _percent(shares: Sequence[float]) -> list[float]:
    return [share * 100 for share in shares]


def _end(series: dict[str, Any]) -> float:
    ends = [*series["at_s"][-1:], *(bar["from_s"] for bar in series["faults"])]
    return max([1.0, *map(float, ends)])
