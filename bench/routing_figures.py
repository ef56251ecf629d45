"""What the calls of the routing bench come to: times, loads, messages, and what the slowest met."""

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mesh_processes import summary

LATE_S = 0.02
"""Beginning or ending so much later than need be is more than the way there and back."""

SLOWEST_PART = 100
"""What made the slowest one of so many slow is told."""


@dataclass(frozen=True)
class Worker:
    """One node: how many tasks it runs at a time, how long each takes, whether it fails them."""

    name: str
    slots: int
    task_s: float
    is_slow: bool = False
    is_failing: bool = False


@dataclass(frozen=True)
class Ended:
    """One call as its caller saw it: when it was due by the host's clock, all else from there on.

    `front` is the node that it was given to, `node` the one that did it, none if none did; `tries`
    are the nodes that were sent the work, and what came of that.
    """

    front: str
    due: float
    took_s: float
    tries: tuple[tuple[str, str], ...]
    node: str = ""
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def messages(self) -> int:
        """Between nodes: what went to others, and what came back."""
        return 2 * sum(name != self.front for name, _ in self.tries)


@dataclass(frozen=True)
class Turn:
    """All calls of one turn of one policy, and the load probes that nodes sent for them."""

    calls: Sequence[Ended]
    seconds: float
    probes: int


def why_slow(call: Ended, by_name: dict[str, Worker]) -> str:
    """What took the time: the first of these that holds."""
    worker, outcomes = by_name[call.node], {outcome for _, outcome in call.tries}
    if worker.is_slow:
        return "slow node"
    if outcomes - {"ok", "busy"}:
        return "failed elsewhere first"
    if "busy" in outcomes:
        return "refused elsewhere first"
    if call.ended_s - call.began_s > worker.task_s + LATE_S:
        return "task overslept"
    return "waited for a slot" if call.began_s > LATE_S else "on the way"


def waited_in_vain(turn: Turn, workers: Iterable[Worker]) -> int:
    """Calls that waited for a slot while a healthy node had one free, at the instant of the call.

    These are what whoever knows all could have spared.
    """
    healthy = {w.name: w for w in workers if not (w.is_slow or w.is_failing)}
    slots = sum(worker.slots for worker in healthy.values())
    runs = [c for c in turn.calls if c.node in healthy]
    begins = sorted(c.due + c.began_s for c in runs)
    ends = sorted(c.due + c.ended_s for c in runs)
    waited = (c.due for c in turn.calls if c.node and c.began_s > LATE_S)
    return sum(bisect(begins, due) - bisect(ends, due) < slots for due in waited)


def loads(turns: Iterable[Turn], workers: Iterable[Worker]) -> dict[str, float]:
    """Busy time for each slot and second, by node: tasks done, times how long one takes there."""
    turns = list(turns)
    done = Counter(call.node for turn in turns for call in turn.calls)
    seconds = sum(turn.seconds for turn in turns)
    return {w.name: done[w.name] * w.task_s / w.slots / seconds for w in workers}


def figures_of(turns: Sequence[Turn], workers: Sequence[Worker]) -> dict[str, Any]:
    """What one policy's turns come to.

    Times are those of the calls that succeeded. The load of a node is its busy time for each slot
    and second. `max_over_mean` compares that of the busiest, which may be the slow one, with the
    mean of all healthy slots; `max_over_node_mean` with that of the healthy nodes, where one of one
    slot counts as much as one of eight.
    """
    by_name = {worker.name: worker for worker in workers}
    calls = [call for turn in turns for call in turn.calls]
    good = sorted((call for call in calls if call.node), key=lambda call: call.took_s)
    assert good, "some calls succeed"
    busy = loads(turns, (worker for worker in workers if not worker.is_failing))
    healthy = [worker for worker in workers if not (worker.is_slow or worker.is_failing)]
    slots = sum(worker.slots for worker in healthy)
    mean = sum(busy[worker.name] * worker.slots for worker in healthy) / slots
    node_mean = sum(busy[worker.name] for worker in healthy) / len(healthy)
    slowest = good[-max(1, len(good) // SLOWEST_PART) :]
    probes = sum(turn.probes for turn in turns)
    slow = [call for call in good if by_name[call.node].is_slow]
    times = summary([call.took_s * 1_000 for call in good], 1)
    return {
        "calls": len(calls),
        "failed": len(calls) - len(good),
        "p50_ms": times["p50"],
        "p99_ms": times["p99"],
        "max_ms": times["max"],
        "mean_ms": round(sum(call.took_s for call in good) / len(good) * 1_000, 1),
        "failed_percent": round(100.0 * (1.0 - len(good) / len(calls)), 2),
        "max_over_mean": round(max(busy.values()) / mean, 3),
        "max_over_node_mean": round(max(busy.values()) / node_mean, 3),
        "messages": round((sum(c.messages for c in calls) + 2 * probes) / len(calls), 2),
        "probes": round(probes / len(calls), 2),
        "at_slow": len(slow),
        "waited": sum(call.began_s > LATE_S for call in good),
        "waited_in_vain": sum(waited_in_vain(turn, workers) for turn in turns),
        "loads": {name: round(load, 3) for name, load in busy.items()},
        "p99_ms_by_round": [_p99_ms(turn) for turn in turns],
        "slowest": dict(Counter(why_slow(call, by_name) for call in slowest).most_common()),
    }


def _p99_ms(turn: Turn) -> float:
    return summary([call.took_s * 1_000 for call in turn.calls if call.node], 1)["p99"]
