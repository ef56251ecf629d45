"""One run of a cell: some nodes are ill, one healthy node crashes half-way."""

import random
from dataclasses import dataclass
from functools import partial

from meshd.gossip.effects import Effect, MemberChanged
from meshd.model import MemberState
from sim.experiments.arms import Arm
from sim.faults import Clog, Crash, Starve
from sim.network import Shape
from sim.world import START_S, Host, World


@dataclass(frozen=True, slots=True)
class Cell:
    """What holds in all runs of one cell.

    Attributes:
        nodes: how many.
        ill: how many read each packet 0.5 to 2.5 s late, in order, with timers on time.
        loss: share of packets lost.
        duration_s: how long; the crash comes at half of it.
        blocked_s: if not 0, the ill are ill in another way: their packets, in and out, are held
            back for so long, all at the same time, with timers on time; then let go at once.
        open_s: how long all is well then, before it begins anew.
        suspicion_mult: alpha of Lifeguard, in the arms that have it.
    """

    nodes: int = 50
    ill: int = 3
    loss: float = 0.01
    duration_s: float = 120.0
    blocked_s: float = 0.0
    open_s: float = 0.0
    suspicion_mult: float = 4.0

    def __str__(self) -> str:
        kind = "held back" if self.blocked_s else "starved"
        return f"N = {self.nodes}, {self.ill} {kind}, {self.loss:.0%} loss"


KINSHIP = Cell()
"""kinship's published cell; its arm without a stream ping, for meshd has none."""

BLOCKED = Cell(128, 4, 0.0, 60.0, blocked_s=16.384, open_s=4.096, suspicion_mult=5.0)
"""An anomaly of the Lifeguard paper's kind, in a group of its size, with its alpha."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one run counts.

    Attributes:
        false_deaths: running nodes held dead by anybody, each once an incarnation.
        false_deaths_healthy: those of them that were not ill.
        death_events: deaths of healthy nodes, counted at each node that held it (the paper's FP).
        death_events_healthy: of those, the ones at healthy nodes (the paper's FP-).
        false_suspicions: running nodes suspected by anybody, each once an incarnation.
        detected_s: for each survivor, from the crash until it held the victim dead.
        missed: survivors that did not hold it dead when the run ended.
        packets: sent by all.
        sent_bytes: sent by all, IP and UDP headers included.
    """

    false_deaths: int
    false_deaths_healthy: int
    death_events: int
    death_events_healthy: int
    false_suspicions: int
    detected_s: tuple[float, ...]
    missed: int
    packets: int
    sent_bytes: int


class _Tally:
    """Listens to all that the nodes of one run come to believe."""

    def __init__(self, world: World, ill: frozenset[int], crash_at: float) -> None:
        self.suspected: dict[tuple[int, int], None] = {}
        self.dead: dict[tuple[int, int], None] = {}
        self.events = self.events_healthy = 0
        self.detected: dict[int, float] = {}
        self._world = world
        self._ill = ill
        self._crash_at = crash_at
        world.on_effect.append(self.on_effect)

    def on_effect(self, host: Host, effect: Effect) -> None:
        if not isinstance(effect, MemberChanged):
            return
        member = effect.member
        subject = self._world.host_of(member.node)
        assert subject is not None
        life = (subject.index, member.incarnation)
        if member.state is MemberState.SUSPECT and subject.is_up:
            self.suspected[life] = None
        elif member.state is MemberState.DEAD and subject.is_up:
            self.dead[life] = None
            about_healthy = subject.index not in self._ill
            self.events += about_healthy
            self.events_healthy += about_healthy and host.index not in self._ill
        elif member.state is MemberState.DEAD:
            self.detected.setdefault(host.index, self._world.now - self._crash_at)


def run(task: tuple[Arm, Cell, int]) -> Found:
    """One arm in one cell from one seed."""
    arm, cell, seed = task
    rng = random.Random(f"{seed}/cell")
    *ill, victim = rng.sample(range(cell.nodes), cell.ill + 1)
    crash_at = START_S + cell.duration_s / 2.0
    alpha = {"suspicion_mult": cell.suspicion_mult} if arm.changes else {}
    with arm.applied(**alpha) as config:
        world = World(cell.nodes, seed, shape=Shape(loss=cell.loss), config=config)
        tally = _Tally(world, frozenset(ill), crash_at)
        world.start_converged()
        _fall_ill(world, cell, sorted(ill))
        world.call_at(crash_at, lambda: Crash(victim).apply(world), "crash")
        world.run(START_S + cell.duration_s)
    return Found(
        false_deaths=len(tally.dead),
        false_deaths_healthy=sum(subject not in ill for subject, _ in tally.dead),
        death_events=tally.events,
        death_events_healthy=tally.events_healthy,
        false_suspicions=len(tally.suspected),
        detected_s=tuple(tally.detected.values()),
        missed=cell.nodes - 1 - len(tally.detected),
        packets=sum(host.packets_sent for host in world.hosts),
        sent_bytes=sum(host.bytes_sent for host in world.hosts),
    )


def _fall_ill(world: World, cell: Cell, ill: list[int]) -> None:
    if not cell.blocked_s:
        for node in ill:
            Starve(node, cell.duration_s + 1.0).apply(world)
        return
    cycle_s = cell.blocked_s + cell.open_s
    for turn in range(int(cell.duration_s / cycle_s) + 1):
        for node in ill:
            clog = Clog(node, cell.blocked_s)
            at = START_S + cell.open_s + turn * cycle_s
            world.call_at(at, partial(clog.apply, world), str(clog))
