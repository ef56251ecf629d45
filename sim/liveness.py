"""The invariants that must hold in the end: bounded liveness and resources.

They ask for nothing while the world is disturbed. Once it is calm and nobody comes or goes any
more, each has a bound by which it must hold.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from meshd.gossip.broadcast import transmit_limit
from meshd.gossip.effects import Effect, MemberChanged, ProbeCompleted
from meshd.gossip.suspicion import suspicion_bounds_s
from meshd.model import MemberState
from sim.checkers import NOBODY, Checker, Violation
from sim.world import Host, World

PROBE_PERIODS = 25
"""No prober finds a crashed node within so many periods: e^-25, ring and confirmations included."""
SMALL_MESH = 200
"""Up to here each pair is looked at; above, views are compared by hash alone."""
OTHER_TIMERS_MAX = 640
"""Fixed timers, joins under way and pulls of one node."""
Problem = tuple[int, int, str]


def calm_needed_s(world: World) -> float:
    """How long after a disturbance its last suspicions and bad health are gone."""
    longest_s = suspicion_bounds_s(world.config, len(world.hosts))[1]
    return longest_s + 10 * world.config.probe_interval_s


def detection_bound_s(world: World, survivors: int) -> float:
    """By when each of `survivors` holds a crashed node dead.

    Some prober comes by within PROBE_PERIODS, its round takes one more; then the suspicion: the
    shorter one if enough are left to confirm it.
    """
    config = world.config
    shortest_s, longest_s = suspicion_bounds_s(config, survivors + 1)
    wait_s = shortest_s if survivors > config.suspicion_confirmations else longest_s
    return (PROBE_PERIODS + 1) * config.probe_interval_s + wait_s + 1.5


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
        bound_s = detection_bound_s(world, len(others))
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
    """L2: in calm, no live node is held dead by anybody."""

    invariant = "L2"

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look at each death that is reported."""
        if type(effect) is not MemberChanged or effect.member.state is not MemberState.DEAD:
            return
        world = self.world
        subject = world.host_of(effect.member.node)
        if subject is None or subject.swim is None or effect.member.epoch != subject.epoch:
            return
        calm_s = world.now - world.calm_since
        if subject.is_member and calm_s > calm_needed_s(world):
            self.fail(host.index, subject.index, f"it lives; held dead: {effect.reason}")


class JoinsAreQuick(Checker):
    """L6: a newcomer with a live seed holds the full view within 2 s and a round trip."""

    invariant = "L6"

    def on_start(self, host: Host) -> None:
        """Look again when the bound has passed."""
        world = self.world
        bound_s = 2.1 if not world.network.shape.loss else 8.0
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


class Eventual(Checker, ABC):
    """Base of what must hold once all is quiet: `problem` says what does not hold yet."""

    waits_for_views = False
    """Whether it is asked only once all views have converged."""

    @abstractmethod
    def bound_s(self) -> float:
        """Seconds of quiet after which it must hold."""

    @abstractmethod
    def problem(self) -> Problem | None:
        """Who sees whom wrongly, and how; None if it holds now."""

    def quiet_again(self) -> None:
        """What must hold is asked anew: a stretch of quiet begins, or views have converged."""


class NobodyLeftForDead(Eventual):
    """L3: after faults end, no live node is held dead anywhere."""

    invariant = "L3"

    def bound_s(self) -> float:
        """The bound of SIMULATOR, and the time of one more sync."""
        config = self.world.config
        return (
            2 * config.reconnect_interval_s + config.probe_interval_s + config.sync_interval_s + 10
        )

    def problem(self) -> Problem | None:
        """Look at each live pair; in a large mesh L4 sees the same by hash."""
        members = self.world.members()
        if len(members) > SMALL_MESH:
            return None
        for host in members:
            for other in members:
                held = host.swim.members.get(other.id) if host.swim else None
                if held and held.epoch == other.epoch and held.state > MemberState.SUSPECT:
                    return host.index, other.index, f"it lives; held {held.state.name}"
        return None


class ViewsConverge(Eventual):
    """L4: all views are equal, and true."""

    invariant = "L4"

    def bound_s(self) -> float:
        """Finding the last crash, a few syncs, and spreading their news."""
        config = self.world.config
        survivors = len(self.world.members())
        settle_s = 4 * config.sync_interval_s + config.quiet_s + 10 * config.probe_interval_s
        return detection_bound_s(self.world, survivors) + settle_s

    def problem(self) -> Problem | None:
        """Compare everybody's hash with the first one's, and the count with the truth."""
        live: dict[bytes, int] = {}
        hashes: dict[bytes, int] = {}
        for host in self.world.members():
            live[host.mesh] = live.get(host.mesh, 0) + 1
        for host in self.world.members():
            if host.swim is None:
                continue
            view = host.swim.members
            if view.live != live[host.mesh]:
                text = f"holds {view.live} live of {live[host.mesh]}"
                return host.index, self._odd(host), text
            if view.view_hash != hashes.setdefault(host.mesh, view.view_hash):
                return host.index, NOBODY, "its view differs from the first one's"
        return None

    def _odd(self, host: Host) -> int:
        """Somebody whom a host sees wrongly."""
        for other in self.world.hosts:
            held = host.swim.members.get(other.id) if host.swim else None
            lives = held is not None and held.state <= MemberState.SUSPECT
            if lives != (other.is_member and other.mesh == host.mesh):
                return other.index
        return NOBODY


class StateArrives(Eventual):
    """L7: everybody holds the last version of everybody's state."""

    invariant = "L7"

    def bound_s(self) -> float:
        """As long as views may take: the version rides on the record."""
        return 10 * self.world.config.probe_interval_s + 4 * self.world.config.sync_interval_s + 30

    def problem(self) -> Problem | None:
        """Compare versions pair by pair, of those who wrote anything."""
        members = self.world.members()
        writers = [h for h in members if h.swim is not None and h.swim.me.state_version]
        for host in members:
            for writer in writers:
                if host.swim is None or writer.swim is None or writer.mesh != host.mesh:
                    continue
                held = host.swim.state_of(writer.id)
                version = held.version if held and held.epoch == writer.epoch else 0
                if version != writer.swim.me.state_version:
                    text = f"holds version {version} of {writer.swim.me.state_version}"
                    return host.index, writer.index, text
        return None


class QueuesEmpty(Eventual):
    """L8 and Q1: no rumour is perpetual, and nothing that waits waits for ever."""

    invariant = "L8"
    waits_for_views = True

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._busy: list[Host] = []

    def bound_s(self) -> float:
        """Each rumour is sent `limit` times, at most fanout a round; then a margin."""
        config = self.world.config
        limit = transmit_limit(config.transmit_mult, len(self.world.hosts))
        return detection_bound_s(self.world, 1) + limit * config.gossip_interval_s * 4 + 10

    def quiet_again(self) -> None:
        """Everybody has to be seen idle anew; but a lone survivor has nobody to tell."""
        members = self.world.members()
        self._busy = members if len(members) > 1 else []

    def problem(self) -> Problem | None:
        """Each node has to be idle at one look; with loss, not all at the same."""
        self._busy = [host for host in self._busy if host.is_member and _is_busy(host)]
        if not self._busy:
            return None
        host = self._busy[0]
        return host.index, NOBODY, f"still waiting: {_pending(host)}"


class WaitingIsBounded(Checker):
    """Q1: what waits in a node stays within its bounds at all times."""

    invariant = "Q1"
    LOOK_EVERY_S = 5.0

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        world.call_at(world.now + self.LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        size = len(self.world.hosts)
        for host in self.world.up():
            waiting = dict(_pending(host))
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
    FROM_S, FOR_S = 5.0, 20.0

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        world.call_at(world.now + self.FROM_S, self._begin)
        self._sent = 0

    def _begin(self) -> None:
        self._sent = sum(host.packets_sent for host in self.world.hosts)
        self.world.call_at(self.world.now + self.FOR_S, self._end)

    def _end(self) -> None:
        world = self.world
        quiet = world.now - max(world.calm_since, world.changed_at) >= self.FROM_S + self.FOR_S
        full = len(world.members()) == len(world.hosts)
        if not quiet or not full or world.network.shape.loss or len(world.hosts) < 2:
            return
        sent = sum(host.packets_sent for host in world.hosts) - self._sent
        periods = self.FOR_S / world.config.probe_interval_s
        mean = sent / periods / len(world.hosts)
        if not math.isclose(mean, 2.0, rel_tol=0.1):
            self.fail(NOBODY, NOBODY, f"{mean:.2f} packets a node and period, not 2")


def _pending(host: Host) -> dict[str, int]:
    return dict(host.swim.pending()) if host.swim is not None else {}


def _is_busy(host: Host) -> bool:
    waiting = _pending(host)
    return any(waiting[what] for what in ("rumours", "suspicions", "relays", "pulls"))


def liveness(world: World, found: Callable[[Violation], None]) -> Iterator[Checker]:
    """All invariants of the long run."""
    yield CrashesFound(world, found)
    yield ProbesTellTruth(world, found)
    yield LiveStayAlive(world, found)
    yield JoinsAreQuick(world, found)
    yield NobodyLeftForDead(world, found)
    yield ViewsConverge(world, found)
    yield StateArrives(world, found)
    yield QueuesEmpty(world, found)
    yield WaitingIsBounded(world, found)
    yield LoadIsFlat(world, found)
