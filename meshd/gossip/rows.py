"""From the machine's tables to the view that everybody else reads."""

import msgspec

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant, Seconds
from meshd.gossip.config import GossipConfig
from meshd.gossip.state import NodeState
from meshd.gossip.swim import Swim
from meshd.model import Member, NodeId, is_name
from meshd.view import ClusterView, Peer

NAME_KEY = "name"
VERSION_KEY = "version"
CAPABILITY_KEY = "cap/"
_STALE_ROUNDS = 3


def own_entries(
    name: str, version: str, capabilities: tuple[CapabilitySummary, ...]
) -> dict[str, bytes | None]:
    """What a node says of itself, as keys of its state."""
    return {
        NAME_KEY: name.encode(),
        VERSION_KEY: version.encode(),
        **{CAPABILITY_KEY + c.name: msgspec.msgpack.encode(c) for c in capabilities},
    }


def stale_after_s(config: GossipConfig, members: int) -> Seconds:
    """How long silence may last before no work is sent to a member.

    The longest of three probe cycles (in a mesh of n a node is asked by a given other once in n
    intervals) and three load periods.
    """
    cycle_s = config.probe_interval_s * max(1, members - 1)
    return _STALE_ROUNDS * max(cycle_s, config.probe_interval_s * 2, config.load_interval_s)


class ViewBuilder:
    """Keeps one row a member, made anew only where something changed."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._peers: dict[NodeId, Peer] = {}
        self._told: dict[NodeId, tuple[NodeState, int, _Told]] = {}
        self._changed_at: dict[NodeId, Instant] = {}
        self._version = 0

    def member_changed(self, node: NodeId, now: Instant) -> None:
        """Remember when a member last changed its state."""
        self._changed_at[node] = now

    def build(self, swim: Swim) -> ClusterView:
        """A new snapshot. Costs in proportion to what changed, plus one copy of the index."""
        for node in swim.take_touched():
            member = swim.members.get(node)
            if member is None:
                self._peers.pop(node, None)
                self._told.pop(node, None)
                self._changed_at.pop(node, None)
            else:
                self._peers[node] = self._row(swim, member)
        self._version += 1
        return ClusterView(
            version=self._version,
            me=swim.me.node,
            by_node=dict(self._peers),
            stale_after_s=stale_after_s(self._config, swim.members.live),
            view_hash=f"{swim.members.view_hash:016x}",
        )

    def _row(self, swim: Swim, member: Member) -> Peer:
        node = member.node
        told = self._told_by(swim, node)
        load = swim.load_of(node)
        heard_at = swim.heard_at(node)
        if load is not None and (heard_at is None or load[1] > heard_at):
            heard_at = load[1]
        return Peer(
            node=node,
            name=told.name or node.hex(),
            address=member.address,
            other=member.other,
            state=member.state,
            epoch=member.epoch,
            incarnation=member.incarnation,
            capabilities=told.capabilities,
            load=None if load is None else load[0],
            load_at=None if load is None else load[1],
            heard_at=heard_at,
            changed_at=self._changed_at.get(node, Instant(0.0)),
            rtt_s=swim.rtt_s(node),
            reachable=swim.is_reachable(node),
            version=told.version,
        )

    def _told_by(self, swim: Swim, node: NodeId) -> "_Told":
        """What the node's state says, decoded once a version."""
        state = swim.state_of(node)
        if state is None:
            return _Told()
        held = self._told.get(node)
        if held is not None and held[0] is state and held[1] == state.version:
            return held[2]
        told = _read_state(state)
        self._told[node] = (state, state.version, told)
        return told


class _Told(msgspec.Struct, frozen=True):
    name: str = ""
    version: str = ""
    capabilities: tuple[CapabilitySummary, ...] = ()


def _read_state(state: NodeState) -> _Told:
    """Decode a state. A peer wrote it: what is not as it should be is left out."""
    values = state.values()
    capabilities = []
    for key, value in sorted(values.items()):
        if key.startswith(CAPABILITY_KEY):
            try:
                summary = msgspec.msgpack.decode(value, type=CapabilitySummary)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if is_name(summary.name) and key == CAPABILITY_KEY + summary.name:
                capabilities.append(summary)
    name = values.get(NAME_KEY, b"").decode(errors="replace")
    version = values.get(VERSION_KEY, b"").decode(errors="replace")
    return _Told(
        name=name if is_name(name) else "",
        version=version if is_name(version.replace("+", "-")) else "",
        capabilities=tuple(capabilities),
    )
