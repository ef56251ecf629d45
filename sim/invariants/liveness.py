"""The invariants with a bound in time: crashes are found, the living stay alive, joins are quick.

They ask for nothing while the world is disturbed, and for a while after.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator

from meshd.gossip.effects import Effect, MemberChanged, ProbeCompleted
from meshd.gossip.history import RAN_OUT, UNANSWERED
from meshd.gossip.lag import lag_s
from meshd.gossip.suspicion import suspicion_bounds_s
from meshd.model import MemberState, NodeId
from sim.invariants.bounds import calm_needed_s, detection_bound_s, latency_high_s
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.invariants.eventual import (
    CutsHeal,
    NobodyLeftForDead,
    QueuesEmpty,
    StateArrives,
    ViewsConverge,
    pending,
)
from sim.invariants.spread import spreading
from sim.invariants.telling import telling
from sim.world import Host, World

EARLY_S = 1e-6
OTHER_TIMERS_MAX = 640
"""Fixed timers, joins under way and pulls of one node."""


class CrashesFound(Checker):
    """L1: every crash is known at every live node within the bound."""

    invariant = "L1"

    def on_down(self, host: Host) -> None:
        """Look again when the bound has passed."""
        world = self.world
        others = [other for other in world.members() if other is not host]
        gone = len(world.hosts) - len(others)
        # With many dead at once, health scores stretch everybody's periods: the end tells then.
        if not host.joined or gone > max(1, len(world.hosts) // 10):
            return
        assert host.swim is not None
        bound_s = detection_bound_s(world, len(others)) + 2 * lag_s(host.swim.me.lag)
        run, since = host.runs, world.now
        world.call_at(since + bound_s, lambda: self._look(host, run, since))

    def _look(self, host: Host, run: int, since: float) -> None:
        world = self.world
        if host.runs != run or world.calm_since > since - calm_needed_s(world) / 2:
            return
        for other in world.members():
            if other.swim is None or other.started_at > since or other.mesh != host.mesh:
                continue
            held = other.swim.members.get(host.id)
            if held is not None and held.state <= MemberState.SUSPECT:
                text = f"still {held.state.name} {world.now - since:.1f} s after its crash"
                self.fail(other.index, host.index, text)
                return


class ProbesTellTruth(Checker):
    """L1, the reason for it: no probe of a node that is gone ever succeeds."""

    invariant = "L1"
    UNDER_WAY_S = 3.0

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look at each probe that was answered; answers may have been under way for a while."""
        if type(effect) is not ProbeCompleted or not effect.succeeded:
            return
        world = self.world
        subject = world.host_of(effect.node)
        if subject is None or subject.swim is not None or world.calm_since > subject.down_since:
            return
        if world.now - subject.down_since > self.UNDER_WAY_S:
            text = f"a probe succeeded {world.now - subject.down_since:.1f} s after its end"
            self.fail(host.index, subject.index, text)


class LiveStayAlive(Checker):
    """L2: in calm, no live node is held dead by anybody; not for a pause below T_min either.

    After a mere cut nobody needs to wait for calm: a merge kills nobody. A death then needs a
    doubt from before the heal, or it came out of somebody's table.
    """

    invariant = "L2"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._doubted_at: dict[int, float] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look at each death that is reported."""
        if type(effect) is not MemberChanged or effect.member.state is MemberState.ALIVE:
            return
        world = self.world
        subject = world.host_of(effect.member.node)
        if subject is None or subject.swim is None or effect.member.epoch != subject.epoch:
            return
        if effect.member.state is MemberState.SUSPECT:
            if effect.reason == UNANSWERED:
                self._doubted_at[subject.index] = world.now
        elif effect.member.state is MemberState.DEAD and subject.is_member:
            safe_since = max(world.safe_since, world.network.crowded_at)
            if world.now - safe_since > calm_needed_s(world):
                self.fail(host.index, subject.index, f"it lives; held dead: {effect.reason}")
            elif self._is_merge(subject):
                self.fail(
                    host.index, subject.index, f"it lives; a merge killed it: {effect.reason}"
                )

    def _is_merge(self, subject: Host) -> bool:
        """Whether only a heal is recent, and no doubt about the subject."""
        world = self.world
        healed_at = world.settled_at.get("cut")
        if healed_at is None or healed_at != world.calm_since or world.network.shape.loss:
            return False
        needed_s = calm_needed_s(world)
        others = max((at for kind, at in world.settled_at.items() if kind != "cut"), default=0.0)
        doubted_at = self._doubted_at.get(subject.index, 0.0)
        return max(others, doubted_at) < world.now - needed_s


class DoubtsLast(Checker):
    """L2, the reason for it: nobody's own doubt turns into a death before T_min has passed.

    T_min of the smallest mesh: how many it knew when the doubt began, a newcomer alone can tell.
    """

    invariant = "L2"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._shortest_s = suspicion_bounds_s(world.config, 1)[0]
        self._since: dict[tuple[int, NodeId], float] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Follow each doubt from its beginning to its end, on the host's own clock."""
        if type(effect) is not MemberChanged:
            return
        now = self.world.now + host.offset_s
        key = (host.index, effect.member.node)
        if effect.member.state is MemberState.SUSPECT:
            self._since[key] = now
            return
        began = self._since.pop(key, None)
        if began is None or effect.member.state is not MemberState.DEAD:
            return
        if effect.reason == RAN_OUT and now - began < self._shortest_s - EARLY_S:
            text = f"a doubt of {now - began:.2f} s became a death; T_min is {self._shortest_s} s"
            self.fail(host.index, self.index_of(effect.member.node), text)


class DoubtsAreConfirmed(Checker):
    """L1, the reason for it: a doubt of who is gone ends at T_min, for its verifiers confirm it.

    They take a period for that, and their word a round of gossip: less than T_min. Asked where
    nothing is lost and nobody else is gone, so that all of them can answer.
    """

    invariant = "L1"
    MARGIN_PERIODS = 0.5

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look again when it should be over."""
        world = self.world
        if type(effect) is not MemberChanged or effect.member.state is not MemberState.SUSPECT:
            return
        subject = world.host_of(effect.member.node)
        # Counting takes long, and in a split there are many doubts of those who are up.
        if subject is None or subject.swim is not None:
            return
        if len(world.hosts) - len(world.members()) != 1:
            return
        shape, config = world.network.shape, world.config
        if shape.loss or not config.verifiers or effect.member.lag:
            return
        bound_s = suspicion_bounds_s(config, len(world.hosts))[0] + 4 * latency_high_s(shape)
        bound_s += self.MARGIN_PERIODS * config.probe_interval_s
        run, since = subject.runs, world.now
        world.call_at(since + bound_s, lambda: self._look(host, subject, run, since))

    def _look(self, host: Host, subject: Host, run: int, since: float) -> None:
        world = self.world
        if host.swim is None or host.started_at > since or subject.runs != run:
            return
        if world.calm_since > since - calm_needed_s(world):
            return
        if any(o is not subject and (o.swim is None or o.started_at > since) for o in world.hosts):
            # Somebody else went, too, and may have been among the verifiers.
            return
        held = host.swim.members.get(subject.id)
        if held is not None and held.state is MemberState.SUSPECT:
            text = f"still doubted {world.now - since:.2f} s after the doubt began"
            self.fail(host.index, subject.index, text)


class JoinsAreQuick(Checker):
    """L6: a newcomer with a live seed holds the full view within 2 s and a round trip."""

    invariant = "L6"
    BOUND_S = 2.0
    BOUND_LOSSY_S = 8.0

    def on_start(self, host: Host) -> None:
        """Look again when the bound has passed."""
        world = self.world
        shape = world.network.shape
        bound_s = self.BOUND_S if not shape.loss else self.BOUND_LOSSY_S
        bound_s += 2 * latency_high_s(shape)
        run, since = host.runs, world.now
        world.call_at(since + bound_s, lambda: self._look(host, run, since))

    def _look(self, host: Host, run: int, since: float) -> None:
        world = self.world
        if host.runs != run or host.swim is None or host.leaving or not host.seeds:
            return
        if world.calm_since > since - calm_needed_s(world) / 2:
            return
        there = [m for m in world.members() if m.started_at < since and m.mesh == host.mesh]
        if not any(seed.address in host.seeds for seed in there):
            return
        if not host.joined:
            self.fail(host.index, NOBODY, f"met nobody in {world.now - since:.1f} s")
            return
        settled = [m for m in there if m.started_at < since - 5]
        if not any(seed.address in host.seeds for seed in settled):
            return
        for other in settled:
            held = host.swim.members.get(other.id)
            if held is None or held.epoch != other.epoch:
                text = f"not known {world.now - since:.1f} s after the start"
                self.fail(host.index, other.index, text)
                return


class WaitingIsBounded(Checker):
    """Q1: what waits in a node stays within its bounds at all times."""

    invariant = "Q1"
    LOOK_EVERY_S = 5.0

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        world.call_at(world.now + self.LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        size = len(self.world.hosts) + len(self.world.invented)
        for host in self.world.up():
            waiting = dict(pending(host))
            timers = waiting["timers"] - waiting["suspicions"] - 2 * waiting["relays"]
            too_many = (
                waiting["suspicions"] > size
                or waiting["rumours"] > size
                or waiting["gone"] > size
                or timers > OTHER_TIMERS_MAX
            )
            if too_many:
                self.fail(host.index, NOBODY, f"too much waits: {waiting}")
        self.world.call_at(self.world.now + self.LOOK_EVERY_S, self._look)


class LoadIsFlat(Checker):
    """L9: with nothing going on, a node sends two packets a period, whatever the mesh's size."""

    invariant = "L9"
    FROM_S = 5.0
    FOR_S = 20.0

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        world.call_at(world.now + self.FROM_S, self._begin)
        self._sent = 0
        self._loads = False

    def on_load(self, host: Host) -> None:
        """Changing loads are rumours, and cost packets."""
        del host
        self._loads = True

    def _begin(self) -> None:
        self._sent = sum(host.packets_sent for host in self.world.hosts)
        self.world.call_at(self.world.now + self.FOR_S, self._end)

    def _end(self) -> None:
        world = self.world
        quiet = world.now - max(world.calm_since, world.changed_at) >= self.FROM_S + self.FOR_S
        full = len(world.members()) == len(world.hosts)
        shape = world.network.shape
        alone = not (world.is_visited or self._loads or shape.loss or shape.duplicate)
        sizes = Counter(host.mesh for host in world.hosts)
        talkers = sum(size for size in sizes.values() if size > 1)
        if not quiet or not full or not alone or not talkers:
            return
        sent = sum(host.packets_sent for host in world.hosts) - self._sent
        periods = self.FOR_S / world.config.probe_interval_s
        mean = sent / periods / talkers
        if not math.isclose(mean, 2.0, rel_tol=0.1):
            self.fail(NOBODY, NOBODY, f"{mean:.2f} packets a node and period, not 2")


def liveness(world: World, found: Callable[[Violation], None]) -> Iterator[Checker]:
    """All invariants of the long run."""
    yield CrashesFound(world, found)
    yield ProbesTellTruth(world, found)
    yield LiveStayAlive(world, found)
    yield DoubtsLast(world, found)
    yield DoubtsAreConfirmed(world, found)
    yield JoinsAreQuick(world, found)
    yield NobodyLeftForDead(world, found)
    yield ViewsConverge(world, found)
    yield CutsHeal(world, found)
    yield StateArrives(world, found)
    yield QueuesEmpty(world, found)
    yield WaitingIsBounded(world, found)
    yield LoadIsFlat(world, found)
    yield from spreading(world, found)
    yield from telling(world, found)
