"""Invariants of the wire: what may go to an address that proved nothing, and what is understood."""

from collections import deque
from collections.abc import Callable

from meshd.gossip.codec import decode
from meshd.gossip.effects import DatagramRejected, Effect, SendDatagram
from meshd.gossip.messages import BUCKETS, Join, Records, Sync, Welcome
from meshd.model import Address
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.versions import kind_of
from sim.world import Host, World

JOINS_TO_STRANGERS_PER_S = 3
_JOIN, _WELCOME, _SYNC, _RECORDS = (
    kind.__struct_config__.tag for kind in (Join, Welcome, Sync, Records)
)
_SYNC_BYTES_MIN = 4 * BUCKETS
_MALFORMED = (
    "too_large", "too_short", "not_msgpack", "not_a_message", "unknown_kind", "other_version",
    "sealed",
)  # fmt: skip
_FROM_NEWER = ("unknown_kind", "other_version")


class RepliesAreSmall(Checker):
    """S8: an unproven address gets one reply at most, and no more bytes than came from it.

    An address is proven if the node's table holds it, if it answered a join with the join's own
    number, if it came back with the cookie that was sent there, or if it answers a sync. A join
    that a stranger's word gives rise to is a question of the node's own, not a reply: of those it
    sends few a second.
    """

    invariant = "S8"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._answered: object = None
        self._replies = 0
        self._bytes = 0
        self._cookies: dict[tuple[int, Address], bytes] = {}
        self._asked: dict[tuple[int, Address], None] = {}
        self._proven: dict[tuple[int, Address], None] = {}
        self._joins: dict[int, deque[float]] = {}

    def on_send(self, host: Host, effect: SendDatagram) -> None:
        """Count what answers a datagram from somewhere unproven."""
        heard = self.world.heard
        if len(effect.data) > _SYNC_BYTES_MIN and kind_of(effect.data) == _SYNC:
            self._asked[host.index, effect.to] = None
        if heard is not None and effect.to == heard.source:
            # Also where the table holds it by now: that may change, what it has proven does not.
            self._is_proven(host, heard.data, heard.source)
        kind = kind_of(effect.data)
        if kind == _WELCOME:
            # Also a member may knock, and move afterwards.
            welcome = decode(effect.data, host.mesh).message
            assert isinstance(welcome, Welcome)
            self._cookies[host.index, effect.to] = welcome.cookie
        if heard is None or self._is_known(host, effect.to):
            return
        if kind == _JOIN:
            self._on_join(host)
            return
        if effect.to != heard.source:
            self.fail(host.index, NOBODY, f"sent to {effect.to}, which nobody named to it")
        elif not self._is_proven(host, heard.data, heard.source):
            self._on_reply(host, heard, len(effect.data), len(heard.data))

    def _is_known(self, host: Host, address: Address) -> bool:
        target = self.world.host_at(address)
        if host.swim is None:
            return False
        if target is None:
            # Where a forger says that somebody is whom he invented.
            return bool(self.world.invented) and bool(host.swim.members.at_address(address))
        held = host.swim.members.get(target.id)
        return held is not None and held.address == address

    def _is_proven(self, host: Host, data: bytes, source: Address) -> bool:
        place = host.index, source
        if place in self._proven:
            return True
        kind = kind_of(data)
        if kind == _RECORDS:
            return place in self._asked
        cookie = self._cookies.get(place)
        if kind == _WELCOME or (kind == _SYNC and cookie is not None and cookie in data):
            self._proven[place] = None
            return True
        return False

    def _on_reply(self, host: Host, heard: object, size: int, received: int) -> None:
        if self._answered is not heard:
            self._answered, self._replies, self._bytes = heard, 0, 0
        self._replies += 1
        self._bytes += size
        if self._replies > 1 or self._bytes > received:
            text = f"{self._replies} replies of {self._bytes} bytes to {received} unproven ones"
            self.fail(host.index, NOBODY, text)

    def _on_join(self, host: Host) -> None:
        now = self.world.now
        joins = self._joins.setdefault(host.index, deque())
        joins.append(now)
        while joins[0] < now - 1:
            joins.popleft()
        if len(joins) > JOINS_TO_STRANGERS_PER_S:
            self.fail(host.index, NOBODY, f"{len(joins)} joins to strangers in a second")


class AllIsUnderstood(Checker):
    """W1: what a node of this version sends, every other one understands.

    What a newer one appends is passed over; only its new kinds and its new header are refused.
    """

    invariant = "W1"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._newer: dict[int, None] = {}

    def on_start(self, host: Host) -> None:
        """Remember who ever spoke a newer version: its datagrams may be under way for a while."""
        if host.speak is not None:
            self._newer[host.index] = None

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look at each refusal that is about the form of a datagram."""
        if type(effect) is not DatagramRejected or effect.reason not in _MALFORMED:
            return
        if effect.reason == "other_version" and host.speak is not None:
            return
        sender = self.world.host_at(effect.source)
        if sender is None or (sender.index in self._newer and effect.reason in _FROM_NEWER):
            return
        self.fail(host.index, sender.index, f"refused a datagram as {effect.reason}")


def wire(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants of the wire."""
    return [RepliesAreSmall(world, found), AllIsUnderstood(world, found)]
