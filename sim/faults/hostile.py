"""What people outside can send who know all ids, and may write any sender's address."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshd.gossip.codec import NOBODY, encode_body, encode_header, pack_address
from meshd.gossip.effects import SendDatagram
from meshd.gossip.messages import JOIN_PADDING_BYTES, Gossip, Join, Ping
from meshd.model import Address, MemberState, NodeId

if TYPE_CHECKING:
    from sim.world import Host, World

OUTSIDE = Address("192.0.2.1", 6374)
"""Where nobody of the mesh is (RFC 5737)."""
VICTIM = Address("198.51.100.7", 53)
"""Whom a forger wants the mesh to write to."""
RECORDED_MAX = 2_000
_PING, _GOSSIP, _JOIN = (int(kind.__struct_config__.tag or 0) for kind in (Ping, Gossip, Join))
_LAST_INCARNATION = 2**32 - 1
_RUMOURS = 8

Forge = Callable[[random.Random, "World", "Host"], tuple[bytes, Address]]


@dataclass(frozen=True, slots=True)
class Forger:
    """Somebody outside sends a node `per_s` datagrams a second of one sort, for `for_s` seconds.

    The sorts are the keys of `FORGERIES`.
    """

    node: int
    forgery: str
    for_s: float
    per_s: float

    def apply(self, world: "World") -> None:
        """Send the first one; each plans the next."""
        rng = world.random(f"forger/{self.forgery}/{self.node}/{world.now}")
        until = world.now + self.for_s
        host = world.hosts[self.node]
        forge = FORGERIES[self.forgery]

        def send() -> None:
            if world.now >= until:
                return
            if host.swim is not None:
                data, source = forge(rng, world, host)
                world.inject(source, host, data)
            world.call_at(world.now + rng.expovariate(self.per_s), send)

        send()


@dataclass(frozen=True, slots=True)
class Replayer:
    """Somebody keeps what a node is sent, and sends it again `after_s` later, as if by its sender.

    After a restart the node hears what was meant for its last run.
    """

    node: int
    for_s: float
    after_s: float

    def apply(self, world: "World") -> None:
        """Keep, and send again."""
        host = world.hosts[self.node]
        until = world.now + self.for_s
        kept = 0

        def overhear(sender: "Host", effect: SendDatagram) -> None:
            nonlocal kept
            if effect.to != host.address or world.now > until or kept >= RECORDED_MAX:
                return
            kept += 1
            data, source = effect.data, sender.address
            world.call_at(world.now + self.after_s, lambda: world.inject(source, host, data))

        world.on_send.append(overhear)


def _joins(rng: random.Random, _world: "World", host: "Host") -> tuple[bytes, Address]:
    """Invented names at invented addresses."""
    body = encode_body(_JOIN, (rng.randrange(2**16), bytes(JOIN_PADDING_BYTES)))
    source = Address(f"198.51.100.{rng.randint(1, 254)}", rng.randint(1, 65_535))
    return encode_header(host.mesh, NOBODY, NodeId(rng.randbytes(8))) + body, source


def _pings(rng: random.Random, _world: "World", host: "Host") -> tuple[bytes, Address]:
    """Strangers' pings, each of which would be answered."""
    source = Address(f"198.51.100.{rng.randint(1, 254)}", rng.randint(1, 65_535))
    header = encode_header(host.mesh, host.id, NodeId(rng.randbytes(8)))
    return header + encode_body(_PING, (rng.randrange(2**16),)), source


def _newcomers(rng: random.Random, world: "World", host: "Host") -> tuple[bytes, Address]:
    """Newcomers at the victim's address, whom nobody vouches for, or the receiver, or nobody known.

    In a stranger's name, or in a member's but not from its address.
    """
    source = rng.choice(world.hosts).id if rng.random() < 0.5 else NodeId(rng.randbytes(8))
    sponsors = (b"", rng.randbytes(8), bytes(host.id))
    rumours = [
        _rumour(NodeId(rng.randbytes(8)), host.epoch, sponsor=rng.choice(sponsors))
        for _ in range(_RUMOURS)
    ]
    return _told(rng, host, source, rumours), OUTSIDE


def _guests(rng: random.Random, world: "World", host: "Host") -> tuple[bytes, Address]:
    """Newcomers at the victim's address as guests of a member who never met them."""
    others = [each for each in world.hosts if each is not host]
    node = NodeId(rng.randbytes(8))
    world.invented[node] = world.now
    rumour = _rumour(node, host.epoch, sponsor=bytes(rng.choice(others).id))
    return _told(rng, host, NodeId(rng.randbytes(8)), [rumour]), OUTSIDE


def _records(rng: random.Random, world: "World", host: "Host") -> tuple[bytes, Address]:
    """Lies about members, in a member's name but not from its address."""
    subject = rng.choice([each for each in world.hosts if each is not host])
    state = rng.choice((MemberState.ALIVE, MemberState.DEAD, MemberState.LEFT))
    incarnation = rng.choice((0, 1, 1_000, _LAST_INCARNATION))
    epoch = subject.epoch + rng.choice((0, 0, 1, 1_000))
    rumour = _rumour(subject.id, epoch, state=state, incarnation=incarnation)
    return _told(rng, host, rng.choice(world.hosts).id, [rumour]), OUTSIDE


def _rumour(
    node: NodeId, epoch: int, *, state: int = 0, incarnation: int = 0, sponsor: bytes = b""
) -> tuple[Any, ...]:
    return (int(state), node, epoch, incarnation, pack_address(VICTIM), 0, 0, b"", sponsor)


def _told(
    rng: random.Random, host: "Host", source: NodeId, rumours: list[tuple[Any, ...]]
) -> bytes:
    kind, fields = (_GOSSIP, ()) if rng.random() < 0.7 else (_PING, (rng.randrange(2**16),))
    return encode_header(host.mesh, host.id, source) + encode_body(kind, (*fields, rumours))


FORGERIES: dict[str, Forge] = {
    "joins": _joins,
    "pings": _pings,
    "newcomers": _newcomers,
    "guests": _guests,
    "records": _records,
}
