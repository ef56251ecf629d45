"""Network coordinates: beside Serf's own accepted errors, and in a mesh of five sites."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshd.gossip.codec import decode
from meshd.gossip.coordinates import SERF, SHIPPED, Locator, Springs
from meshd.gossip.distances import SAVED_BYTES_MAX
from meshd.gossip.effects import SendDatagram
from meshd.gossip.messages import Ack, Ping
from meshd.model import NodeId
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import mean, quantile
from sim.network import Shape, Uniform
from sim.world import MESH, START_S, Host, World

Matrix = list[list[float]]

ARMS: dict[str, Springs] = {"Serf's step": SERF, "as shipped": SHIPPED}
ACCEPTED = {"line": 0.003, "grid": 0.0016, "split": 0.000_06, "random": 0.075}
"""Mean relative errors that the tests of Serf's `coordinate` package let pass. It has none for the
circle, where it looks at heights instead."""
MATRICES = ("line", "grid", "split", "circle", "random")
CYCLES, EARLY = 1_000, 30
"""Round trips that each node measures, each of a random other one."""
MATRIX_SEEDS, MATRIX_SEEDS_QUICK = 10, 3

SITES = 5
AREA_S = 0.1
ACCESS_S = (0.000_1, 0.002)
JITTER = 0.05
"""Sites lie in a square of 100 ms; each node adds 0.1 to 2 ms of its own; 5 % is chance."""
NODES = 50
WATCHED_S = 120
SETTLED_S = 1.3
"""Of the time in which each node probes all others: so long a mesh is up before the newcomer."""
NEWCOMER_S = 40
GOOD = 0.2
FIVES = 10
SHOWN_S = {"start": (10, 20, 30, 60, 120), "newcomer": (5, 10, 20, 30, 40)}
GOOD_AFTER_S = {"start": 30.0, "newcomer": 30.0}
_EMPTY_RIDERS_BYTES = 3
_FIELD_BYTES = 2


def truth(name: str, rng: random.Random) -> Matrix:
    """One of Serf's matrices of true round trips, in seconds."""
    size = 10 if name == "line" else 25
    matrix = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            matrix[i][j] = matrix[j][i] = _between(name, j, i, size, rng)
    return matrix


def _between(name: str, i: int, j: int, size: int, rng: random.Random) -> float:
    if name == "line":
        return 0.01 * (j - i)
    if name == "grid":
        side = math.isqrt(size)
        return 0.01 * math.hypot(i % side - j % side, i // side - j // side)
    if name == "split":
        return 0.001 if (i <= size // 2) == (j <= size // 2) else 0.011
    if name == "circle":
        # The first lies as far above the centre as it takes to be 200 ms from each other one.
        return 0.2 if i == 0 else 0.2 * math.sin(math.pi * (j - i) / size)
    return rng.gauss(0.1, 0.01)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Mean relative errors of one run on a matrix, early and in the end."""

    matrix: str
    arm: str
    early: float
    late: float


def fit(name: str, arm: str, seed: int) -> Fitted:
    """Locators alone, without a network: Serf's simulation."""
    rng = random.Random(f"{seed}/coordinates/{name}")
    matrix = truth(name, rng)
    nodes = [Locator(rng, ARMS[arm]) for _ in matrix]
    early: list[float] = []
    for cycle in range(CYCLES):
        if cycle == EARLY:
            early = _errors(nodes, matrix)
        for i, node in enumerate(nodes):
            j = rng.randrange(len(nodes))
            if i != j:
                node.update(NodeId(b"%8d" % j), nodes[j].here, matrix[i][j])
    return Fitted(name, arm, mean(early), mean(_errors(nodes, matrix)))


def _errors(nodes: Sequence[Locator], matrix: Matrix) -> list[float]:
    return [
        abs(one.here.distance_s(other.here) / matrix[i][j] - 1.0)
        for i, one in enumerate(nodes)
        for j, other in enumerate(nodes)
        if i != j
    ]


# The real protocol


@dataclass(frozen=True, slots=True)
class Second:
    """What holds after some seconds.

    Attributes:
        error: median relative error of all estimates; one that is missing counts as endless.
        near: share of watched nodes that take for the nearest of all one whose round trip is
            within a fifth of the truly nearest's.
        near_measured: the same by measured round trips alone, as it would be without coordinates.
        near_of_five: as `near`, among five that could do some work, one in each site.
        near_of_five_measured: the same by measured round trips alone.
    """

    error: float
    near: float
    near_measured: float
    near_of_five: float
    near_of_five_measured: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: each second from the start, or from the newcomer's, and what coordinates cost.

    `extra_bytes_per_s`: of a node, while the mesh settles, and in the last minute before the end
    (before the newcomer).
    """

    kind: str
    nodes: int
    seconds: tuple[Second, ...]
    extra_bytes_per_s: tuple[float, float]


class _Sites:
    """A mesh of five sites, with true round trips between all of its nodes."""

    def __init__(self, nodes: int, seed: int) -> None:
        rng = random.Random(f"{seed}/sites")
        places = [(AREA_S * rng.random(), AREA_S * rng.random()) for _ in range(SITES)]
        access = [rng.uniform(*ACCESS_S) for _ in range(nodes)]
        self.rtt = [
            [math.dist(places[i % SITES], places[j % SITES]) + access[i] + access[j]
             for j in range(nodes)]
            for i in range(nodes)
        ]  # fmt: skip
        # The last node may be a newcomer, whom nobody has yet.
        by_site = [range(site, nodes - 1, SITES) for site in range(SITES)]
        self._fives = [
            rng.sample([rng.choice(site) for site in by_site], SITES) for _ in range(FIVES)
        ]
        self.world = world = World(nodes, seed)
        self.extra_bytes = 0
        for i in range(nodes):
            for j in range(nodes):
                half_s = self.rtt[i][j] / 2.0
                latency = Uniform(half_s * (1.0 - JITTER), half_s * (1.0 + JITTER))
                world.network.override_link(i, j, Shape(latency=latency))
        world.on_send.append(self._on_send)

    def _on_send(self, _host: Host, effect: SendDatagram) -> None:
        message = decode(effect.data, MESH).message
        riders = 0 if isinstance(message, Ack | Ping) and message.updates else _EMPTY_RIDERS_BYTES
        if isinstance(message, Ack) and message.coordinates:
            self.extra_bytes += len(message.coordinates) + _FIELD_BYTES + riders
        elif isinstance(message, Ping) and message.wanted:
            self.extra_bytes += 1 + riders

    def second(self, watched: Sequence[Host]) -> Second:
        """What the watched nodes know now."""
        errors: list[float] = []
        hits = [0.0] * 4
        for host in watched:
            found, known, measured = self._known(host)
            errors += found
            everybody = [i for i in range(len(self.rtt)) if i != host.index]
            for at, told in enumerate((known, measured)):
                hits[at] += self._is_near(host.index, everybody, told)
                hits[2 + at] += mean(
                    [float(self._is_near(host.index, five, told)) for five in self._fives]
                )
        near, near_measured, of_five, of_five_measured = (each / len(watched) for each in hits)
        return Second(quantile(errors, 0.5), near, near_measured, of_five, of_five_measured)

    def _is_near(self, here: int, choice: list[int], told: dict[int, float]) -> bool:
        """Whether the best of the choice, by what is told, is about as near as any; else the first.

        A node that is in the choice itself is not asked.
        """
        true_s = {i: self.rtt[here][i] for i in choice if i != here}
        best = min(true_s, key=lambda i: told.get(i, math.inf))
        return true_s[best] <= (1.0 + GOOD) * min(true_s.values())

    def _known(self, host: Host) -> tuple[list[float], dict[int, float], dict[int, float]]:
        errors: list[float] = []
        known: dict[int, float] = {}
        measured: dict[int, float] = {}
        assert host.swim is not None
        for other in self.world.hosts:
            if other is host or other.swim is None:
                continue
            expected = host.swim.rtt_expected(other.id)
            true_s = self.rtt[host.index][other.index]
            errors.append(math.inf if expected is None else abs(expected.rtt_s / true_s - 1.0))
            if expected is not None:
                known[other.index] = expected.rtt_s
            rtt_s = host.swim.rtt_s(other.id)
            if rtt_s is not None:
                known[other.index] = measured[other.index] = rtt_s
        return errors, known, measured


def watch(kind: str, nodes: int, seed: int) -> Seen:
    """A mesh that starts as a whole, or a settled one and one newcomer that knows nobody."""
    is_start = kind == "start"
    sites = _Sites(nodes if is_start else nodes + 1, seed)
    world = sites.world
    world.start_converged(nodes)
    settle_s = WATCHED_S if is_start else max(WATCHED_S, round(SETTLED_S * nodes))
    seconds: list[Second] = []
    marks: list[int] = []
    for second in range(1, settle_s + 1):
        world.run(START_S + second)
        marks.append(sites.extra_bytes)
        if is_start:
            seconds.append(sites.second(world.hosts))
    if not is_start:
        _save_up(world)
        newcomer = world.hosts[nodes]
        world.start(newcomer, seeds=(0,))
        for second in range(1, NEWCOMER_S + 1):
            world.run(START_S + settle_s + second)
            seconds.append(sites.second([newcomer]))
    minute = 60 * nodes
    extra = (marks[59] / minute, (marks[-1] - marks[-61]) / minute)
    return Seen(kind, nodes, tuple(seconds), extra)


def _save_up(world: World) -> None:
    """Let all have earned what an hour would have brought them; it would be long to simulate."""
    for host in world.up():
        assert host.swim is not None
        distances = host.swim._distances  # noqa: SLF001 - in place of an hour
        distances._saved_bytes = float(SAVED_BYTES_MAX)  # noqa: SLF001


# Put together


def run(task: tuple[str, str, int, int]) -> Fitted | Seen:
    """One run of either part: ("fit", matrix, arm's number, seed) or (kind, "", nodes, seed)."""
    part, name, number, seed = task
    if part == "fit":
        return fit(name, list(ARMS)[number], seed)
    return watch(part, number, seed)


def experiment(options: Options, progress: Progress) -> Outcome:
    """Both parts."""
    tasks: list[tuple[str, str, int, int]] = [
        ("fit", name, arm, seed)
        for name in MATRICES
        for arm in range(len(ARMS))
        for seed in range(options.seeds_or(MATRIX_SEEDS, MATRIX_SEEDS_QUICK))
    ]
    meshes = [("start", NODES, 10), ("newcomer", NODES, 20), ("newcomer", 200, 3)]
    for kind, nodes, usual in meshes[: 2 if options.quick else 3]:
        seeds = range(options.seeds_or(usual, 1))
        tasks += [(kind, "", nodes, seed) for seed in seeds]
    found = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    fitted = [_fitted_row([f for f in found if isinstance(f, Fitted) and (f.matrix, f.arm) == key])
              for key in ((name, arm) for name in MATRICES for arm in ARMS)]  # fmt: skip
    runs = [one for one in found if isinstance(one, Seen)]
    kinds = dict.fromkeys((one.kind, one.nodes) for one in runs)
    seen = [_seen_row([one for one in runs if (one.kind, one.nodes) == kind]) for kind in kinds]
    enough = not options.quick
    checks = [*_fitted_checks(fitted, enough=enough), *_seen_checks(seen, enough=enough)]
    tables = (_fitted_table(fitted), _seen_table(seen), _cost_table(seen))
    return Outcome("coordinates", (*fitted, *seen), tuple(checks), tables)


def _fitted_row(runs: list[Fitted]) -> dict[str, Any]:
    return {
        "matrix": runs[0].matrix,
        "arm": runs[0].arm,
        "runs": len(runs),
        "early": quantile([one.early for one in runs], 0.5),
        "late": quantile([one.late for one in runs], 0.5),
        "late_worst": max(one.late for one in runs),
    }


def _seen_row(runs: list[Seen]) -> dict[str, Any]:
    kind = runs[0].kind
    good = [_good_after_s(one) for one in runs]
    shown = {}
    for second in SHOWN_S[kind]:
        at = [one.seconds[second - 1] for one in runs]
        shown[second] = {
            "error": quantile([one.error for one in at], 0.5),
            "near": mean([one.near for one in at]),
            "near_measured": mean([one.near_measured for one in at]),
            "near_of_five": mean([one.near_of_five for one in at]),
            "near_of_five_measured": mean([one.near_of_five_measured for one in at]),
        }
    return {
        "kind": kind,
        "nodes": runs[0].nodes,
        "runs": len(runs),
        "good_after_s": quantile(good, 0.5),
        "good_after_s_max": max(good),
        "extra_bytes_per_s": [mean([one.extra_bytes_per_s[at] for one in runs]) for at in (0, 1)],
        "seconds": shown,
    }


def _good_after_s(one: Seen) -> float:
    """From when on the median error stays below a fifth."""
    bad = [second for second, at in enumerate(one.seconds, 1) if not at.error < GOOD]
    last = max(bad, default=0)
    return math.inf if last == len(one.seconds) else last + 1.0


def _fitted_checks(rows: list[dict[str, Any]], *, enough: bool) -> list[Check]:
    return [
        judged(
            f"{row['matrix']}, {row['arm']}, mean error",
            f"at most {ACCEPTED[row['matrix']]:.3%}",
            f"{row['late']:.4%}",
            met=row["late"] <= ACCEPTED[row["matrix"]],
            enough=enough,
        )
        for row in rows
        if row["matrix"] in ACCEPTED and ARMS[row["arm"]] is SERF
    ]


def _seen_checks(rows: list[dict[str, Any]], *, enough: bool) -> list[Check]:
    return [
        judged(
            f"{row['kind']}, N = {row['nodes']}, median error below 20 %",
            f"within {GOOD_AFTER_S[row['kind']]:.0f} s",
            f"{row['good_after_s']:.0f} s",
            met=row["good_after_s"] <= GOOD_AFTER_S[row["kind"]],
            enough=enough,
        )
        for row in rows
    ]


def _fitted_table(rows: list[dict[str, Any]]) -> Table:
    cells = tuple(
        (row["matrix"], row["arm"], str(row["runs"]), f"{row['early']:.1%}", f"{row['late']:.4%}",
         f"{row['late_worst']:.4%}",
         f"{ACCEPTED[row['matrix']]:.3%}" if row["matrix"] in ACCEPTED else "-")
        for row in rows
    )  # fmt: skip
    columns = ("matrix", "arm", "runs", f"after {EARLY}", f"after {CYCLES}", "worst run",
               "accepted by Serf")  # fmt: skip
    title = "Mean relative errors of distances after so many round trips of each, in the median run"
    return Table(title, columns, cells)


def _seen_table(rows: list[dict[str, Any]]) -> Table:
    cells = tuple(
        (f"{row['kind']}, N = {row['nodes']}", str(row["runs"]), str(second),
         f"{at['error']:.0%}" if math.isfinite(at["error"]) else "none yet",
         *(f"{at[key]:.0%}"
           for key in ("near", "near_measured", "near_of_five", "near_of_five_measured")))
        for row in rows
        for second, at in row["seconds"].items()
    )  # fmt: skip
    columns = ("mesh", "runs", "after s", "median error", "nearest of all", "measured alone",
               "nearest of five", "measured alone")  # fmt: skip
    return Table(
        "How far off distances are, and how often the nearest is found (within 20 %)",
        columns,
        cells,
    )


def _cost_table(rows: list[dict[str, Any]]) -> Table:
    cells = tuple(
        (f"{row['kind']}, N = {row['nodes']}", f"{row['good_after_s']:.0f}",
         f"{row['good_after_s_max']:.0f}", f"{row['extra_bytes_per_s'][0]:.1f}",
         f"{row['extra_bytes_per_s'][1]:.1f}")
        for row in rows
    )  # fmt: skip
    columns = ("mesh", "error below 20 % after s", "slowest run", "extra B/s, first minute",
               "extra B/s, last minute")  # fmt: skip
    return Table("How soon, and what it costs a node", columns, cells)


COORDINATES = Experiment(
    "coordinates", "network coordinates, beside Serf's accepted errors, and in five sites",
    experiment,
)  # fmt: skip
