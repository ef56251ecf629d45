"""What can go wrong with who a process is: its version, its memory, its double, a stranger."""

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from meshd.gossip.codec import NOBODY, PROTOCOL_VERSION, encode_body, encode_header
from meshd.gossip.dialects import Versions
from meshd.gossip.effects import SendDatagram
from meshd.gossip.messages import BUCKETS, JOIN_PADDING_BYTES, Join, Records, Sync
from meshd.model import Address, NodeId
from sim.faults.hostile import OUTSIDE
from sim.faults.process import Crash, Start
from sim.versions import Newer, kind_of

if TYPE_CHECKING:
    from sim.world import Host, World

OUTRANK_PAUSE_MAX_S = 64.0
"""How long a node whose id was in use twice may wait until it outranks its double for good."""
CLOCK_BACK_MAX_S = 82_800.0
"""By design a node a day behind that lost its memory is locked out: others' epochs look forged."""
_JOIN, _SYNC, _RECORDS = (int(kind.__struct_config__.tag or 0) for kind in (Join, Sync, Records))
_ALL_BUCKETS = (b"\xff" * 8, True)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A process ends and starts anew in the next protocol version, or again in this one.

    A newer one speaks this version as well, unless it `only` speaks its own.
    """

    node: int
    newer: bool = True
    only: bool = False
    after_s: float = 0.5
    seeds: tuple[int, ...] = (0,)

    def apply(self, world: "World") -> None:
        """Kill it if it runs; start the other version then."""
        Crash(self.node).apply(world)

        def start() -> None:
            host = world.hosts[self.node]
            if not host.is_up:
                host.speak = Newer(world.config.datagram_bytes_max) if self.newer else None
                newest = PROTOCOL_VERSION + self.newer
                host.versions = Versions(newest if self.only else PROTOCOL_VERSION, newest)
                Start(self.node, self.seeds).apply(world)

        world.call_at(world.now + self.after_s, start, f"starts in its version: {self}")


@dataclass(frozen=True, slots=True)
class PowerLoss:
    """Machines lose their power at one moment: what was not on disk is lost, the clock may be too.

    A kill leaves the state directory as it was; here the last run's epoch is forgotten, and a
    clock without a battery starts `back_s` in the past.
    """

    nodes: tuple[int, ...]
    after_s: float
    back_s: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def apply(self, world: "World") -> None:
        """End them all; start each `after_s` later."""
        for node in self.nodes:
            host = world.hosts[node]
            Crash(node).apply(world)
            world.forget_state(host)
            host.wall_s = max(host.wall_s - self.back_s, -CLOCK_BACK_MAX_S)
            again = Start(node, tuple(seed for seed in self.seeds if seed != node))
            world.call_at(world.now + self.after_s, partial(again.apply, world), f"{again}")


@dataclass(frozen=True, slots=True)
class Clone:
    """A second process runs under a node's id for `for_s` seconds, as from a copied disk image."""

    node: int
    for_s: float
    seeds: tuple[int, ...] = (0, 1, 2)

    def apply(self, world: "World") -> None:
        """Start it; end it later. The two then need a while to be one again."""
        host = world.hosts[self.node]
        if not host.is_member:
            return
        what = f"clone {self.node}"
        world.disturb(what)
        clone = world.clone(host, tuple(seed for seed in self.seeds if seed != self.node))

        def end() -> None:
            world.end_clone(clone)
            world.call_at(world.now + OUTRANK_PAUSE_MAX_S, lambda: world.settle(what))

        world.call_at(world.now + self.for_s, end, f"the double of {self.node} ends")


@dataclass(frozen=True, slots=True)
class Outsider:
    """Somebody outside sends a node messages of every kind, from addresses that are not its own.

    It overhears the node, too, and answers each of its syncs before the one who was asked does.
    """

    node: int
    for_s: float
    per_s: float = 20.0

    def apply(self, world: "World") -> None:
        """Send the first one; each plans the next."""
        rng = world.random(f"outsider/{self.node}/{world.now}")
        until = world.now + self.for_s
        host = world.hosts[self.node]

        def send() -> None:
            if world.now >= until:
                return
            if host.swim is not None:
                data = _forged(rng, world, host)
                world.inject(_somewhere(rng, world), host, data)
            world.call_at(world.now + rng.expovariate(self.per_s), send)

        def overhear(sender: "Host", effect: SendDatagram) -> None:
            if sender is not host or world.now >= until or kind_of(effect.data) != _SYNC:
                return
            asked = world.host_at(effect.to)
            if asked is not None:
                forged = _datagram(host, asked.id, _RECORDS, _ALL_BUCKETS)
                world.call_at(world.now, lambda: world.inject(OUTSIDE, host, forged))

        world.on_send.append(overhear)
        send()


def _somewhere(rng: random.Random, world: "World") -> Address:
    return OUTSIDE if rng.random() < 0.5 else rng.choice(world.hosts).address


def _forged(rng: random.Random, world: "World", target: "Host") -> bytes:
    """A valid datagram in the name of a stranger or of a member; it states nothing about anybody.

    Rumours are left out: whoever is let in may lie about others in an open mesh.
    """
    stranger = NodeId(rng.randbytes(8))
    member = rng.choice(world.hosts).id
    number = rng.randrange(2**16)
    kinds: tuple[tuple[int, tuple[Any, ...], bool], ...] = (
        (1, (number,), True),
        (3, (number, member), True),
        (3, (number, rng.randbytes(8)), True),
        (5, (), True),
        (_JOIN, (number, bytes(JOIN_PADDING_BYTES)), True),
        (_JOIN, (number, b""), True),
        (_SYNC, (b"", rng.randbytes(4 * BUCKETS)), True),
        (_SYNC, (rng.randbytes(8), rng.randbytes(4 * BUCKETS)), True),
        (_RECORDS, _ALL_BUCKETS, True),
        (10, ([(member, target.epoch, 0)],), True),
        (2, (number, 1), False),
        (4, (number,), False),
        (11, (1, []), False),
    )  # fmt: skip
    kind, fields, may_be_member = rng.choice(kinds)
    source = member if may_be_member and rng.random() < 0.5 else stranger
    return _datagram(target, source, kind, fields)


def _datagram(target: "Host", source: NodeId, kind: int, fields: tuple[Any, ...]) -> bytes:
    to = NOBODY if kind == _JOIN else target.id
    return encode_header(target.mesh, to, source) + encode_body(kind, fields)
