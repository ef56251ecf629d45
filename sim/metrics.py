"""What a run measures: who was suspected wrongly, how fast the dead were found, what it cost."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from meshd.gossip.effects import DatagramRejected, Effect, Joined, MemberChanged
from meshd.model import MemberState
from sim.invariants.checkers import Checker
from sim.world import START_S, Host, World


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """The value below which `fraction` of all lie; None if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


class Metrics(Checker):
    """Counts; judges nothing."""

    def __init__(self, world: World) -> None:
        super().__init__(world, lambda _violation: None)
        self.false_suspicions: Counter[int] = Counter()
        """Per subject: how many observers' suspicions of it were wrong."""
        self.false_deaths: Counter[int] = Counter()
        self.accusers: Counter[int] = Counter()
        """Per observer: wrong suspicions that came from its own probes."""
        self.suspected_after_s: list[float] = []
        """For each crash: until the first suspicion."""
        self.detected_after_s: list[float] = []
        """For each crash and observer: until it held the node dead."""
        self.joined_after_s: list[float] = []
        self.converged_after_s: list[float] = []
        """For each stretch of quiet: until all views were equal and true."""
        self.rejected: Counter[str] = Counter()
        self._crashes: dict[tuple[int, int], float] = {}
        self._suspected: dict[tuple[int, int], None] = {}

    def on_down(self, host: Host) -> None:
        """Remember when."""
        if host.joined:
            self._crashes[host.index, host.runs] = self.world.now

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Count it."""
        if isinstance(effect, MemberChanged):
            self._on_member(host, effect)
        elif isinstance(effect, DatagramRejected):
            self.rejected[effect.reason] += 1
        elif isinstance(effect, Joined):
            self.joined_after_s.append(self.world.now - host.started_at)

    def _on_member(self, host: Host, effect: MemberChanged) -> None:
        state = effect.member.state
        if state is MemberState.ALIVE or state is MemberState.LEFT:
            return
        subject = self.world.host_of(effect.member.node)
        if subject is None or effect.member.epoch != subject.epoch:
            return
        crash = (subject.index, subject.runs)
        if subject.is_member:
            tally = self.false_deaths if state is MemberState.DEAD else self.false_suspicions
            tally[subject.index] += 1
            if state is MemberState.SUSPECT and effect.reason == "no answer to a probe":
                self.accusers[host.index] += 1
            self.world.trace.note(
                self.world.now, host.index, f"holds {subject.index} {state.name}: {effect.reason}"
            )
        elif crash in self._crashes:
            after_s = self.world.now - self._crashes[crash]
            if state is MemberState.DEAD:
                self.detected_after_s.append(after_s)
            elif crash not in self._suspected:
                self._suspected[crash] = None
                self.suspected_after_s.append(after_s)

    def summary(self) -> dict[str, Any]:
        """All of it as JSON would have it."""
        world = self.world
        hosts = world.hosts
        node_s = sum(_ran_s(world, host) for host in hosts) or 1.0
        return {
            "events": world.trace.events,
            "virtual_s": round(world.now - START_S, 3),
            "packets_per_node_s": round(sum(h.packets_sent for h in hosts) / node_s, 3),
            "bytes_per_node_s": round(sum(h.bytes_sent for h in hosts) / node_s, 1),
            "packets_dropped": world.network.dropped,
            "rejected": dict(sorted(self.rejected.items())),
            "false_suspicions": self.false_suspicions.total(),
            "false_deaths": self.false_deaths.total(),
            "falsely_suspected": dict(self.false_suspicions.most_common(10)),
            "falsely_dead": dict(self.false_deaths.most_common(10)),
            "crashes": len(self._crashes),
            "suspected_s": _spread(self.suspected_after_s),
            "detected_s": _spread(self.detected_after_s),
            "joined_s": _spread(self.joined_after_s),
            "converged_s": _spread(self.converged_after_s),
        }


def _ran_s(world: World, host: Host) -> float:
    """Roughly how long a host ran: from its first start on."""
    return world.now - START_S if host.runs else 0.0


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    half, most = percentile(values, 0.5), percentile(values, 0.99)
    return {
        "count": len(values),
        "p50": None if half is None else round(half, 3),
        "p99": None if most is None else round(most, 3),
        "max": round(max(values), 3) if values else None,
    }
