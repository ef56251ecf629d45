"""The invariants that must hold in the end: bounded liveness and resources.

They ask for nothing while the world is disturbed. Once it is calm and nobody comes or goes any
more, each has a bound by which it must hold.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

from meshd.gossip.broadcast import transmit_limit
from meshd.gossip.suspicion import suspicion_bounds_s
from meshd.model import Member, MemberState, NodeId
from sim.invariants.bounds import calm_needed_s, detection_bound_s, spread_bound_s
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.world import LONG_AGO_S, Host, World

TIMERS_IDLE_MAX = 6
"""What an idle node waits for: probe, its timeout, gossip, reconnect, reap, pull; and joins."""
Problem = tuple[int, int, str]


class Eventual(Checker, ABC):
    """Base of what must hold once all is quiet: `problem` says what does not hold yet."""

    waits_for_views = False
    """Whether it is asked only once all views have converged, and has its bound from then."""

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

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._accused: dict[NodeId, dict[int, Host]] = {}
        """For each node who held it dead last: what `problem` looks at, instead of all pairs."""

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Keep the list of those who hold somebody dead."""
        del before
        if after.state > MemberState.SUSPECT:
            self._accused.setdefault(after.node, {})[host.index] = host
        elif self._accused:
            accusers = self._accused.get(after.node)
            if accusers is not None:
                accusers.pop(host.index, None)

    def bound_s(self) -> float:
        """The bound of SIMULATOR, and the time of one more sync."""
        config = self.world.config
        return (
            2 * config.reconnect_interval_s + config.probe_interval_s + config.sync_interval_s + 10
        )

    def problem(self) -> Problem | None:
        """Look at the living who are held dead by somebody."""
        for node, accusers in self._accused.items():
            subject = self.world.host_of(node)
            if subject is None or not subject.is_member:
                continue
            for host in accusers.values():
                held = host.swim.members.get(node) if host.swim and host.is_member else None
                if held and held.epoch == subject.epoch and held.state > MemberState.SUSPECT:
                    return host.index, subject.index, f"it lives; held {held.state.name}"
        return None


class ViewsConverge(Eventual):
    """L4: all views are equal, and true."""

    invariant = "L4"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._crash_at = LONG_AGO_S

    def on_down(self, host: Host) -> None:
        """A crash has to be found first."""
        if host.joined:
            self._crash_at = self.world.now

    def bound_s(self) -> float:
        """One sync after the last crash was found, its news included.

        Where it was not calm, or many crashed at once, the last doubts and bad health come first.
        """
        world, config = self.world, self.world.config
        survivors = len(world.members())
        bound_s = config.sync_interval_s + config.quiet_s + 2 * config.probe_interval_s
        bound_s += spread_bound_s(world)
        gone = len(world.hosts) - survivors
        if world.settled_at or world.network.shape.loss or gone > max(1, len(world.hosts) // 10):
            bound_s += calm_needed_s(world)
        found_at = self._crash_at + detection_bound_s(world, survivors)
        return bound_s + max(0.0, found_at - max(world.calm_since, world.changed_at))

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


class CutsHeal(Eventual):
    """L4: within two reconnect intervals after a heal all hold all alive, if no more is amiss.

    One in ten may have missed a rumour, and waits for a sync. Asked of up to 50 nodes without
    loss: a larger mesh has more to say to itself.
    """

    invariant = "L4"
    NODES_MAX = 50
    ODD_SHARE_MAX = 0.1

    def bound_s(self) -> float:
        """Two reconnect intervals, and the spreading of what was learned by them."""
        return 2 * self.world.config.reconnect_interval_s + spread_bound_s(self.world)

    def problem(self) -> Problem | None:
        """Count who misses somebody, if all that happened lately was a cut."""
        world = self.world
        others = max((at for kind, at in world.settled_at.items() if kind != "cut"), default=0.0)
        healed_at = world.settled_at.get("cut")
        if healed_at is None or healed_at != world.calm_since or healed_at != world.changed_at:
            return None
        if others > healed_at - calm_needed_s(world) or world.network.shape.loss:
            return None
        members = world.members()
        if not len(members) == len(world.hosts) <= self.NODES_MAX:
            return None
        live = Counter(host.mesh for host in members)
        odd = [h for h in members if h.swim and h.swim.members.live != live[h.mesh]]
        if len(odd) <= max(1, int(self.ODD_SHARE_MAX * len(members))):
            return None
        text = f"{len(odd)} of {len(members)} do not hold everybody alive again"
        return odd[0].index, NOBODY, text


class StateArrives(Eventual):
    """L7: everybody holds the last version of everybody's state, with all its documents."""

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
                for key in held.values() if held else ():
                    if host.swim.value_of(writer.id, key) is None:
                        return host.index, writer.index, f"lacks the document {key}"
        return None


class QueuesEmpty(Eventual):
    """L8 and Q1: no rumour is perpetual, and nothing that waits waits for ever."""

    invariant = "L8"
    waits_for_views = True

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._busy: list[Host] = []

    def bound_s(self) -> float:
        """Each rumour is sent `limit` times, at most fanout a round; then a margin.

        A doubt of which nobody else heard runs for its longest time, which grows with the mesh.
        """
        config, size = self.world.config, len(self.world.hosts)
        limit = transmit_limit(config.transmit_mult, size)
        found_s = max(detection_bound_s(self.world, 1), suspicion_bounds_s(config, size)[1])
        return found_s + limit * config.gossip_interval_s * 4 + 10

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
        return host.index, NOBODY, f"still waiting: {pending(host)}"


def pending(host: Host) -> dict[str, int]:
    """What waits in a host's machine; nothing if it is down."""
    return dict(host.swim.pending()) if host.swim is not None else {}


def _is_busy(host: Host) -> bool:
    waiting = pending(host)
    some = any(waiting[what] for what in ("rumours", "suspicions", "relays", "pulls", "events"))
    return some or waiting["timers"] > TIMERS_IDLE_MAX + len(host.seeds)
