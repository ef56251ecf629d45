"""What meshd says in mDNS records, and what it believes of others' records. Pure."""

from collections.abc import Mapping

import msgspec

from meshd.model import ID_BYTES, MeshId, NodeId, is_name

SERVICE_TYPE = "_meshd._udp.local."
"""`_udp` because the SRV port is the gossip port (RFC 6763, section 7)."""

TXT_VERSION = "1"
TXT_BYTES_MAX = 400
"""RFC 6763, section 6.2: a record of a few hundred bytes; ours has about 100."""

MESH_DIGITS = 8
PORT_MAX = 65_535
_HEX = frozenset("0123456789abcdef")


class Announcement(msgspec.Struct, frozen=True):
    """The TXT record: who is there, of which mesh. Never secrets, never capabilities."""

    node: NodeId
    mesh: str
    protocol: int
    rpc_port: int
    name: str


def mesh_hash(mesh: MeshId) -> str:
    """The first 8 hex digits of the mesh's id: enough to leave other meshes alone."""
    return mesh.hex()[:MESH_DIGITS]


def instance_name(node: NodeId) -> str:
    """The service instance: the node's id, hence unique without probing for conflicts."""
    return f"{node.hex()}.{SERVICE_TYPE}"


def host_name(node: NodeId) -> str:
    """The name of the A records: from the id as well, or two hosts' addresses would mix."""
    return f"meshd-{node.hex()}.local."


def node_of(instance: str) -> NodeId | None:
    """Whose instance this is; None if it is not named as a meshd node names itself."""
    label = instance.removesuffix("." + SERVICE_TYPE)
    if label == instance or len(label) != 2 * ID_BYTES or not _HEX.issuperset(label):
        return None
    return NodeId(bytes.fromhex(label))


def to_properties(announcement: Announcement) -> dict[str, str]:
    """The TXT record's keys in their order; RFC 6763, section 6.7 puts the version first."""
    return {
        "txtvers": TXT_VERSION,
        "id": announcement.node.hex(),
        "m": announcement.mesh,
        "v": str(announcement.protocol),
        "rpc": str(announcement.rpc_port),
        "n": announcement.name,
    }


def parse_properties(
    properties: Mapping[bytes, bytes | None], text_bytes: int
) -> Announcement | None:
    """Read a TXT record of `text_bytes` bytes; None if it is not one of ours, whole and sane.

    Keys that we do not know are skipped: a later version may have them.
    """
    if text_bytes > TXT_BYTES_MAX:
        return None
    values = {key: _ascii(properties.get(key.encode())) for key in ("txtvers", "id", "m", "n")}
    node, mesh, name = values["id"], values["m"], values["n"]
    protocol = _number(properties.get(b"v"), 255)
    rpc_port = _number(properties.get(b"rpc"), PORT_MAX)
    if (
        values["txtvers"] != TXT_VERSION
        or len(node) != 2 * ID_BYTES
        or not _HEX.issuperset(node)
        or len(mesh) != MESH_DIGITS
        or not _HEX.issuperset(mesh)
        or not is_name(name)
        or protocol is None
        or rpc_port is None
    ):
        return None
    return Announcement(NodeId(bytes.fromhex(node)), mesh, protocol, rpc_port, name)


def _ascii(value: bytes | None) -> str:
    return value.decode("ascii") if value is not None and value.isascii() else ""


def _number(value: bytes | None, maximum: int) -> int | None:
    """A decimal number from 1 to `maximum`."""
    text = _ascii(value)
    if not text.isdigit() or len(text) > 5:
        return None
    number = int(text)
    return number if 0 < number <= maximum else None
