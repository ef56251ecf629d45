"""What must hold once all is quiet, and at the very end: views agree, nothing is left over."""

from collections import Counter

from meshd.model import MemberState
from sim.invariants.checkers import NOBODY
from sim.whole.fleet import Box
from sim.whole.loop import Lane
from sim.whole.workload import Workplace

Problem = tuple[str, int, int, str]
"""The invariant, who, about whom, and what."""
SOCKETS_IDLE = 2
"""Of a node at rest: one for gossip, one that listens for calls."""
SPREAD_MAX = 2.0
"""R8: the busiest of equal nodes has at most so many times the mean ..."""
SPREAD_MEAN_MIN = 20.0
"""... where the mean is at least this; below it, chance alone spreads wider."""


def views_differ(place: Workplace) -> Problem | None:
    """L3 and L4: every view holds all who are there alive, in their present run, and nobody else.

    L3 is the part about the living who are held dead.
    """
    truth = {}
    for box in place.members():
        if box.swim is not None:
            truth[box.swim.me.node] = (box.index, box.swim.me.epoch)
    hashes: dict[str, int] = {}
    for box in place.members():
        if box.node is None or not box.joined:
            return "L4", box.index, NOBODY, "it has not started"
        view = box.node.view()
        for peer in view.by_node.values():
            index, epoch = truth.get(peer.node, (NOBODY, None))
            if peer.state > MemberState.SUSPECT and epoch == peer.epoch:
                return "L3", box.index, index, f"it lives; held {peer.state.name}"
            if peer.state <= MemberState.SUSPECT and epoch is None:
                return "L4", box.index, NOBODY, f"holds {peer.name} {peer.state.name}"
        for node, (index, epoch) in truth.items():
            row = view.get(node)
            if row is None or row.epoch != epoch or row.state is not MemberState.ALIVE:
                held = "nothing" if row is None else row.state.name
                return "L4", box.index, index, f"it is alive; held {held}"
        hashes.setdefault(view.view_hash, box.index)
    if len(hashes) > 1:
        one, other = list(hashes.values())[:2]
        return "L4", one, other, "their views differ"
    return None


def leftovers(place: Workplace, tasks_idle: int) -> Problem | None:
    """Q2: sockets and tasks of every process are back to what an idle one has."""
    for box in place.boxes:
        if box.node is None:
            if box.machine.open_sockets:
                return "Q2", box.index, NOBODY, f"{box.machine.open_sockets} sockets, no process"
            continue
        if box.machine.open_sockets > SOCKETS_IDLE:
            return "Q2", box.index, NOBODY, f"{box.machine.open_sockets} sockets are open"
        running = tasks_of(box)
        if len(running) > tasks_idle:
            return "Q2", box.index, NOBODY, f"{len(running)} tasks run: {running}"
    return None


def tasks_of(box: Box) -> list[str]:
    """What runs in a machine's process, by name."""
    return sorted(name for lane in (box.main, box.protocol) for name in _names(lane))


def _names(lane: Lane) -> list[str]:
    return [task.get_coro().__qualname__ for task in lane.tasks if not task.done()]  # type: ignore[union-attr]


def spread_wide(place: Workplace) -> tuple[float, Problem | None]:
    """R8: how much more than the mean the busiest node did, and whether that is too much."""
    capability, counts = "even", Counter[int]()
    for work in place.ledger.works.values():
        if work.capability == capability:
            counts.update(each.at for each in work.executions)
    if not counts:
        return 0.0, None
    offering = [box.index for box in place.boxes if place.offers(box.index, capability)]
    mean = sum(counts.values()) / len(offering)
    index, most = counts.most_common(1)[0]
    factor = most / mean
    if mean >= SPREAD_MEAN_MIN and factor > SPREAD_MAX:
        return factor, (
            "R8",
            NOBODY,
            index,
            f"it did {most} of {capability}, the mean is {mean:.0f}",
        )
    return factor, None
