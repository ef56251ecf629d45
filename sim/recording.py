"""What a run leaves behind: its plan, its result, checkpoints to compare with, series to plot.

A recorder looks on and changes nothing: a recorded run has the digest of one that nobody watched.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from meshd.errors import UsageError
from meshd.gossip.members import record_hash
from meshd.gossip.swim import Swim
from meshd.model import Member
from meshd.version import __version__
from sim.faults import Heal
from sim.plan import Plan
from sim.runner import Result
from sim.scenario_file import dumps, loads
from sim.world import START_S

TRACE_SCHEMA = "meshd.sim.trace/1"
SERIES_SCHEMA = "meshd.sim.series/1"
PLAN_FILE = "plan.toml"
SHRUNK_FILE = "shrunk.toml"
RESULT_FILE = "result.json"
SUMMARY_FILE = "summary.txt"
SERIES_FILE = "series.json"
TRACE_FILE = "trace.jsonl.gz"
SAMPLE_INTERVAL_S = 0.25
SAMPLES_MAX = 4_000
"""With more, every second one is dropped and they are taken half as often."""
CHECKPOINT_EVENTS = 10_000
CHECKPOINTS_MAX = 20_000
VALUES_MAX = 2_000
"""Of a distribution with more values so many quantiles are kept."""
GROUPS_MAX = 4
TRACE_BYTES_MAX = 256 * 1024 * 1024


class Seen(Protocol):
    """A node of either level, as a recorder sees it."""

    index: int

    @property
    def swim(self) -> Swim | None:
        """Its gossip machine, if it runs."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The running digest after so many events. `at_s` counts from the start of the run."""

    events: int
    at_s: float
    digest: str


@dataclass(slots=True)
class Group:
    """Nodes that a cut holds together, and how many alive members they believed in, over time."""

    name: str
    nodes: frozenset[int]
    low: list[int] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    high: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Samples:
    """Columns of equal length, one row a moment."""

    at_s: list[float] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    """How many nodes are up and part of the mesh."""
    true: list[float] = field(default_factory=list)
    """The share of them whose view is exactly what is so."""
    equal: list[float] = field(default_factory=list)
    """The share of them in the largest party that agrees."""
    views: list[int] = field(default_factory=list)
    """How many different views there are."""

    def columns(self) -> tuple[list[Any], ...]:
        """All of them."""
        return self.at_s, self.members, self.true, self.equal, self.views


class Recorder:
    """Takes samples and checkpoints of one run: `run(plan, recorder.observe)`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.checkpoints: list[Checkpoint] = []
        self.samples = Samples()
        self.groups = [Group(name, nodes) for name, nodes in _groups(plan)]
        self._interval_s = SAMPLE_INTERVAL_S
        self._due_at = START_S
        self._judge: Any = None
        self._own: dict[int, tuple[Member, int]] = {}

    def observe(self, judge: Any) -> None:
        """Look at the world once; `judge` is that of either level."""
        self._judge = judge
        world = judge.world
        done = self.checkpoints[-1].events if self.checkpoints else 0
        is_due = world.trace.events - done >= CHECKPOINT_EVENTS
        if is_due and len(self.checkpoints) < CHECKPOINTS_MAX:
            at_s = round(world.now - START_S, 6)
            digest = world.trace.digest()
            self.checkpoints.append(Checkpoint(world.trace.events, at_s, digest))
        if world.now >= self._due_at:
            self._due_at = world.now + self._interval_s
            self._sample(judge)

    def _sample(self, judge: Any) -> None:
        members: Sequence[Seen] = judge.world.members()
        truth = self._truth(members)
        views: Counter[tuple[int, int]] = Counter()
        true = 0
        for host in members:
            if host.swim is not None:
                view = host.swim.members
                views[view.live, view.view_hash] += 1
                true += truth[_mesh(host)] == (view.live, view.view_hash)
        samples, count = self.samples, len(members)
        samples.at_s.append(round(judge.world.now - START_S, 3))
        samples.members.append(count)
        samples.true.append(round(true / count, 4) if count else 0.0)
        samples.equal.append(round(max(views.values()) / count, 4) if views else 0.0)
        samples.views.append(len(views))
        for group in self.groups:
            _believed(group, members)
        if len(samples.at_s) > SAMPLES_MAX:
            self._thin()

    def _truth(self, members: Sequence[Seen]) -> dict[bytes, tuple[int, int]]:
        """For each mesh, what a perfect view would count and hash."""
        truth: dict[bytes, tuple[int, int]] = {}
        for host in members:
            if host.swim is None:
                continue
            me = host.swim.me
            known = self._own.get(host.index)
            if known is None or known[0] is not me:
                known = self._own[host.index] = (me, record_hash(me))
            live, view_hash = truth.get(_mesh(host), (0, 0))
            truth[_mesh(host)] = (live + 1, view_hash ^ known[1])
        return truth

    def _thin(self) -> None:
        self._interval_s *= 2
        columns = [*self.samples.columns()]
        for group in self.groups:
            columns += [group.low, group.mean, group.high]
        for column in columns:
            del column[1::2]

    def series(self) -> dict[str, Any]:
        """All that is plotted, as JSON would have it."""
        samples = self.samples
        metrics = getattr(self._judge, "metrics", None)
        return {
            "schema": SERIES_SCHEMA,
            "scenario": self.plan.scenario,
            "seed": self.plan.seed,
            "nodes": self.plan.nodes,
            "at_s": samples.at_s,
            "members": samples.members,
            "true": samples.true,
            "equal": samples.equal,
            "views": samples.views,
            "groups": [
                {"name": each.name, "low": each.low, "mean": each.mean, "high": each.high}
                for each in self.groups
            ],
            "faults": [*spans(self.plan)],
            "suspected_s": _thinned(getattr(metrics, "suspected_after_s", ())),
            "detected_s": _thinned(getattr(metrics, "detected_after_s", ())),
            "converged_s": _thinned(getattr(metrics, "converged_after_s", ())),
        }


def _mesh(host: Seen) -> bytes:
    """Which mesh it is in; whole daemons are all in one."""
    mesh: bytes = getattr(host, "mesh", b"")
    return mesh


def _groups(plan: Plan) -> list[tuple[str, frozenset[int]]]:
    """The sides of the plan's first cut; everybody where there is none, or too many sides."""
    for each in plan.faults:
        fault: Any = each.fault
        sides = getattr(fault, "groups", None)
        if sides is None and hasattr(fault, "sources"):
            sides = (fault.sources, fault.targets)
        if sides and len(sides) <= GROUPS_MAX:
            names = ("senders", "receivers") if hasattr(fault, "sources") else "ABCD"
            return [(f"{names[i]} ({len(side)})", side) for i, side in enumerate(sides)]
    return [("all nodes", frozenset(range(plan.nodes)))]


def _believed(group: Group, members: Sequence[Seen]) -> None:
    live = [
        host.swim.members.live
        for host in members
        if host.swim is not None and host.index in group.nodes
    ]
    group.low.append(min(live, default=0))
    group.mean.append(round(sum(live) / len(live), 2) if live else 0.0)
    group.high.append(max(live, default=0))


def spans(plan: Plan) -> Iterator[dict[str, Any]]:
    """Each fault with the time that it lasts: what the run ends by itself ends there."""
    heals = [(each.at_s, each.fault.name) for each in plan.faults if isinstance(each.fault, Heal)]
    for each in sorted(plan.faults, key=lambda timed: timed.at_s):
        fault: Any = each.fault
        if isinstance(fault, Heal):
            continue
        until_s = each.at_s + getattr(fault, "for_s", getattr(fault, "after_s", 0.0))
        name = getattr(fault, "name", None)
        if name is not None:
            ends = [at_s for at_s, healed in heals if healed == name and at_s >= each.at_s]
            until_s = min([*ends, max(plan.duration_s, each.at_s)])
        node = getattr(fault, "node", getattr(fault, "source", None))
        yield {
            "what": type(fault).__name__,
            "name": name,
            "node": node,
            "from_s": round(each.at_s, 3),
            "to_s": round(until_s, 3),
        }


def _thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) > VALUES_MAX:
        last = len(ordered) - 1
        ordered = [ordered[round(i * last / (VALUES_MAX - 1))] for i in range(VALUES_MAX)]
    return [round(value, 4) for value in ordered]


# Directories of runs


def prepare(directory: Path) -> None:
    """Make a directory for one run, before the run: it costs less to fail now.

    Raises:
        UsageError: it cannot be made or written, or holds something.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(
                f"{directory} is not empty",
                hint="a recorded run gets a directory of its own: name a new one with --out",
            )
        probe = directory / PLAN_FILE
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {directory}: {error.strerror or error}",
            hint="name a directory that you may write with --out",
        ) from None


def save(
    directory: Path,
    result: Result,
    recorder: Recorder,
    *,
    document: Any,
    summary: str,
    shrunk: Plan | None,
) -> None:
    """Write all of a run's files: `document` is what `--json` prints, `summary` what people see."""
    _write(directory / PLAN_FILE, dumps(result.plan))
    _write(directory / RESULT_FILE, json.dumps(document, indent=2) + "\n")
    _write(directory / SUMMARY_FILE, summary + "\n")
    _write(directory / SERIES_FILE, json.dumps(recorder.series(), separators=(",", ":")) + "\n")
    if shrunk is not None:
        _write(directory / SHRUNK_FILE, dumps(shrunk))
    lines = [
        {"schema": TRACE_SCHEMA, "meshd": __version__, "plan": dumps(result.plan)},
        *({"events": c.events, "at_s": c.at_s, "digest": c.digest} for c in recorder.checkpoints),
        {"end": result.digest, "violations": len(result.violations)},
    ]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (directory / TRACE_FILE).write_bytes(gzip.compress(text.encode(), mtime=0))


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


# Recorded traces


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded trace: the plan, what it went through, and the digest in the end."""

    plan: Plan
    meshd: str
    checkpoints: tuple[Checkpoint, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Between which two moments a run first left the path of the recorded one."""

    checkpoint: int
    """Its number from 1; one above the last stands for the end."""
    after_events: int
    after_s: float
    until_s: float | None


def read_recorded(path: Path) -> Recorded:
    """A recorded trace from its file, or from the directory of its run.

    Raises:
        UsageError: it cannot be read, is no recorded trace, or only half of one.
    """
    if path.is_dir():
        path /= TRACE_FILE
    try:
        lines = _lines(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except (EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, f"it is cut off or damaged ({error})") from None
    head = lines[0] if lines else {}
    if head.get("schema") != TRACE_SCHEMA or not isinstance(head.get("plan"), str):
        raise _unreadable(path, "it is no recorded trace of this version")
    if "end" not in lines[-1]:
        raise _unreadable(path, "it has no end: the recording was broken off")
    try:
        points = tuple(
            Checkpoint(int(each["events"]), float(each["at_s"]), str(each["digest"]))
            for each in lines[1:-1]
        )
    except (KeyError, OverflowError, TypeError, ValueError):
        raise _unreadable(path, "one of its checkpoints is damaged") from None
    plan = loads(head["plan"], where=f"the plan in {path}")
    return Recorded(plan, str(head.get("meshd")), points, str(lines[-1]["end"]))


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        data = file.read(TRACE_BYTES_MAX + 1)
    if len(data) > TRACE_BYTES_MAX:
        raise ValueError(f"more than {TRACE_BYTES_MAX // 2**20} MiB")
    found = [json.loads(line) for line in data.splitlines()]
    if not all(isinstance(line, dict) for line in found):
        raise ValueError("a line is not an object")
    return found


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot replay {path}: {why}",
        hint="record one with: meshd sim run SCENARIO --out DIR; then: meshd sim replay DIR",
    )


def difference(recorded: Recorded, recorder: Recorder, result: Result) -> Difference | None:
    """Where a run that was made anew first differs from what was recorded; None if nowhere."""
    before = Checkpoint(0, 0.0, "")
    for number, was in enumerate(recorded.checkpoints, start=1):
        now = recorder.checkpoints[number - 1 : number]
        if [was] != now:
            return Difference(number, before.events, before.at_s, was.at_s)
        before = was
    if recorded.digest != result.digest:
        return Difference(len(recorded.checkpoints) + 1, before.events, before.at_s, None)
    return None
