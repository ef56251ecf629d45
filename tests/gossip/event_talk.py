"""Small steps that the tests of users' events and queries share."""

from fabric import MESH, Fabric, Node, node_id

from meshd.clock import Instant
from meshd.gossip.codec import decode, encode_body, encode_header
from meshd.gossip.effects import (
    DatagramRejected,
    EventHeard,
    SendDatagram,
)
from meshd.gossip.inputs import (
    DatagramReceived,
    EventFired,
)
from meshd.gossip.messages import UserEvent
from meshd.gossip.recent import Recent

LONGEST = "n" * 64


def heard(node: Node) -> list[EventHeard]:
    return [e for e in node.effects if isinstance(e, EventHeard)]


def names(node: Node) -> list[str]:
    return [e.name for e in heard(node)]


def rejected(node: Node) -> list[str]:
    return [e.reason for e in node.effects if isinstance(e, DatagramRejected)]


def of(node: Node, kind: type) -> list:
    return [e for e in node.effects if isinstance(e, kind)]


def sent(node: Node, kind: type) -> list:
    decoded = (decode(e.data, MESH).message for e in of(node, SendDatagram))
    return [message for message in decoded if isinstance(message, kind)]


def tell(fabric: Fabric, name: str, payload: bytes = b"", *, by: int = 0, **more: bool) -> None:
    fabric.step(fabric.nodes[by], EventFired(name, payload, **more))


def speak(fabric: Fabric, kind: int, fields: tuple, *, to: int = 0, by: int = 1) -> None:
    """A datagram as a member might send it."""
    source, target = fabric.nodes[by], fabric.nodes[to]
    data = encode_header(MESH, target.id, source.id) + encode_body(kind, fields)
    fabric.step(target, DatagramReceived(data, source.address))


def wall_ms(fabric: Fabric, index: int = 0) -> int:
    return fabric.nodes[index].swim.me.epoch + int((fabric.now - 1000.0) * 1_000)


def event(time: int, name: str = "x", origin: int = 1, **more: object) -> UserEvent:
    return UserEvent(time, node_id(origin), 0, name, b"", **more)


def recent(time: int, name: str = "x", born: float = 0.0, **more: object) -> Recent:
    return Recent.of(event(time, name, **more), Instant(born))
