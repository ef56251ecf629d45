"""The invariants that must hold at every step, each by its letter and number.

A checker sees each change of a table, each effect and each step, and costs O(1) there. What it
finds is a `Violation`, a value; the first one halts the world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from meshd.gossip.effects import Effect, MemberChanged, SendDatagram
from meshd.gossip.members import is_live, precedence
from meshd.model import Epoch, Member, MemberState, NodeId
from sim.world import Host, World

NOBODY = -1
"""Stands for the observer or subject of a violation that has none."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, when, in whose eyes, about whom."""

    invariant: str
    at_s: float
    observer: int
    subject: int
    text: str


class Checker:
    """Base of all: does nothing. What a subclass overrides is called."""

    invariant = ""

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        self.world = world
        self._found = found
        hooks: dict[str, list[Any]] = {
            "on_change": world.on_change,
            "on_effect": world.on_effect,
            "on_send": world.on_send,
            "on_step": world.on_step,
            "on_down": world.on_down,
            "on_start": world.on_start,
            "on_load": world.on_load,
        }
        for name, listeners in hooks.items():
            if getattr(type(self), name) is not getattr(Checker, name):
                listeners.append(getattr(self, name))

    def fail(self, observer: int, subject: int, text: str) -> None:
        """Report that the invariant does not hold."""
        self._found(Violation(self.invariant, self.world.now, observer, subject, text))

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """A record in a host's table was written."""

    def on_effect(self, host: Host, effect: Effect) -> None:
        """A host's machine had an effect other than a datagram."""

    def on_send(self, host: Host, effect: SendDatagram) -> None:
        """A host's machine sent a datagram."""

    def on_step(self, host: Host) -> None:
        """A host's machine took an input; its effects were seen."""

    def on_down(self, host: Host) -> None:
        """A process is about to end without a goodbye."""

    def on_start(self, host: Host) -> None:
        """A process has started."""

    def on_load(self, host: Host) -> None:
        """A process took a sample of its load."""

    def index_of(self, node: NodeId) -> int:
        """The subject's number."""
        host = self.world.host_of(node)
        return NOBODY if host is None else host.index


class OwnRecord(Checker):
    """S3: only the subject raises its incarnation, by one; a new run has a higher epoch.

    A node whose state directory was lost, or which runs twice, cannot know what it issued before.
    """

    invariant = "S3"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self.issued: dict[NodeId, dict[Epoch, Member]] = {}
        """For each node and run, its own newest record."""

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Follow what a node says of itself."""
        if after.node != host.id:
            return
        runs = self.issued.setdefault(after.node, {})
        last = runs.get(after.epoch)
        if after.node in self.world.unruly:
            runs[after.epoch] = after if last is None else _highest(last, after)
            return
        if last is None:
            if any(epoch > after.epoch for epoch in runs):
                self.fail(host.index, host.index, f"a run with the lower epoch {after.epoch}")
        elif not last.incarnation <= after.incarnation <= last.incarnation + 1:
            text = f"incarnation from {last.incarnation} to {after.incarnation}"
            self.fail(host.index, host.index, text)
        elif before is not None and after.state_version < last.state_version:
            self.fail(host.index, host.index, "its state's version fell")
        runs[after.epoch] = after


def _highest(one: Member, other: Member) -> Member:
    """The most that two processes of one id issued between them."""
    newer = other if precedence(other) >= precedence(one) else one
    version = max(one.state_version, other.state_version)
    return msgspec.structs.replace(newer, state_version=version)


class NothingInvented(Checker):
    """S2: no view holds a run, incarnation or state version that the subject never issued."""

    invariant = "S2"

    def __init__(self, world: World, found: Callable[[Violation], None], own: OwnRecord) -> None:
        super().__init__(world, found)
        self._issued = own.issued

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Compare with what the subject said."""
        del before
        if after.node == host.id or after.node in self.world.invented:
            return
        issued = self._issued.get(after.node, {}).get(after.epoch)
        if issued is None:
            self.fail(host.index, self.index_of(after.node), f"unknown run {after.epoch}")
        elif after.incarnation > issued.incarnation or after.state_version > issued.state_version:
            text = f"holds {after.incarnation}/{after.state_version}, never issued"
            self.fail(host.index, self.index_of(after.node), text)
        elif (
            after.state is MemberState.LEFT
            and issued.state is not MemberState.LEFT
            and after.incarnation == issued.incarnation
        ):
            self.fail(host.index, self.index_of(after.node), "left, but never said so")


class NoResurrection(Checker):
    """S6: who is held dead or left lives again only by a newer word of its own."""

    invariant = "S6"

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Look at each tombstone that is lifted."""
        if before is None or is_live(before.state) or not is_live(after.state):
            return
        if (after.epoch, after.incarnation) <= (before.epoch, before.incarnation):
            text = f"from {before.state.name} to {after.state.name} @{after.incarnation}"
            self.fail(host.index, self.index_of(after.node), text)


class LeftIsLeft(Checker):
    """S5: left never turns into something else without a newer word; nobody who left is dead."""

    invariant = "S5"

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Look at each change away from left."""
        if before is None or before.state is not MemberState.LEFT:
            return
        newer = (after.epoch, after.incarnation) > (before.epoch, before.incarnation)
        if after.state is not MemberState.LEFT and not newer:
            self.fail(host.index, self.index_of(after.node), f"left became {after.state.name}")

    def on_effect(self, host: Host, effect: Effect) -> None:
        """In calm, a goodbye reaches everybody long before a suspicion could run out."""
        if type(effect) is not MemberChanged or effect.member.state is not MemberState.DEAD:
            return
        subject = self.world.host_of(effect.member.node)
        if subject is None or effect.member.epoch != subject.epoch:
            return
        if (subject.leaving or subject.stopped) and self.world.calm_since < subject.left_at:
            self.fail(host.index, subject.index, f"it left; reported dead: {effect.reason}")


class BeliefsRise(Checker):
    """S1: a belief never goes back to one that ranks lower."""

    invariant = "S1"

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Compare the two by precedence."""
        if before is not None and precedence(after) < precedence(before):
            text = f"from {precedence(before)} to {precedence(after)}"
            self.fail(host.index, self.index_of(after.node), text)


class NeverDeadToItself(Checker):
    """S4: a node holds itself alive, or left once it said goodbye."""

    invariant = "S4"

    def on_step(self, host: Host) -> None:
        """Look at its own record."""
        if host.swim is None:
            return
        state = host.swim.me.state
        if state is not (MemberState.LEFT if host.leaving else MemberState.ALIVE):
            self.fail(host.index, host.index, f"holds itself {state.name}")


class DatagramsFit(Checker):
    """S7: no datagram is larger than was configured."""

    invariant = "S7"

    def on_send(self, host: Host, effect: SendDatagram) -> None:
        """Measure it."""
        if len(effect.data) > self.world.config.datagram_bytes_max:
            self.fail(host.index, NOBODY, f"sent {len(effect.data)} bytes")


class MeshesApart(Checker):
    """S9: views of different meshes never mix, and hold nobody who does not exist."""

    invariant = "S9"

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Look at who is written."""
        del before
        if after.node in self.world.invented:
            return
        subject = self.world.host_of(after.node)
        if subject is None or subject.mesh != host.mesh:
            self.fail(host.index, self.index_of(after.node), "a member of another mesh, or none")


class EventsMatch(Checker):
    """S10: what the application is told is what changed, each change once and in order."""

    invariant = "S10"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._changed: list[tuple[Member, MemberState | None]] = []
        self._told: list[tuple[Member, MemberState | None]] = []

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Note what should be told."""
        if after.node == host.id:
            return
        if before is None or (before.state, before.epoch, before.address) != (
            after.state,
            after.epoch,
            after.address,
        ):
            self._changed.append((after, None if before is None else before.state))

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Note what is told."""
        del host
        if type(effect) is MemberChanged:
            self._told.append((effect.member, effect.before))

    def on_step(self, host: Host) -> None:
        """Compare, once the step is over."""
        if self._changed == self._told:
            if self._changed:
                self._changed, self._told = [], []
            return
        self.fail(host.index, NOBODY, f"changed {self._changed}, told {self._told}")
        self._changed, self._told = [], []


class StructureHolds(Checker):
    """V: what the machine says of its own structure; a sample of steps, for it costs O(n)."""

    invariant = "V"
    EVERY_STEPS = 61
    SMALL_MESH = 60

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._steps = 0

    def on_step(self, host: Host) -> None:
        """Let the machine look at itself."""
        self._steps += 1
        if self._steps % self.EVERY_STEPS or len(self.world.hosts) > self.SMALL_MESH:
            return
        if host.swim is not None:
            try:
                host.swim.validate()
            except AssertionError as error:
                self.fail(host.index, NOBODY, f"the machine contradicts itself: {error}")


def safety(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants of every step. Make them before the first host starts."""
    own = OwnRecord(world, found)
    return [
        own,
        NothingInvented(world, found, own),
        NoResurrection(world, found),
        LeftIsLeft(world, found),
        BeliefsRise(world, found),
        NeverDeadToItself(world, found),
        DatagramsFit(world, found),
        MeshesApart(world, found),
        EventsMatch(world, found),
        StructureHolds(world, found),
    ]
