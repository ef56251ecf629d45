"""From the machine's tables to the view that everybody else reads."""

import msgspec

from meshd.capability.manifest import (
    CapabilitySummary,
    Manifest,
    body_digest,
    check_manifest,
    decode_manifest,
    encode_manifest,
    encode_summary,
    summarise,
)
from meshd.clock import Instant, Seconds
from meshd.errors import MeshError
from meshd.gossip.config import GossipConfig
from meshd.gossip.state import CAPABILITY_KEY, DOCUMENT_KEY, NodeState
from meshd.gossip.swim import Swim
from meshd.model import Member, NodeId, Site, is_name, site_faults
from meshd.view import ClusterView, Peer

NAME_KEY = "name"
VERSION_KEY = "version"
SITE_KEY = "site"
"""Region and labels, where there are any: a msgpack array of both."""
MANIFEST_KEY = DOCUMENT_KEY
NOWHERE = Site()
_STALE_ROUNDS = 3


def own_entries(
    name: str, version: str, manifests: tuple[Manifest, ...], site: Site = NOWHERE
) -> dict[str, bytes | None]:
    """What a node says of itself, as keys of its state.

    Of each capability that is a summary, by which others choose, and the manifest itself, which is
    a document and comes a little later.
    """
    entries: dict[str, bytes | None] = {NAME_KEY: name.encode(), VERSION_KEY: version.encode()}
    if site != NOWHERE:
        entries[SITE_KEY] = msgspec.msgpack.encode((site.region, site.labels))
    for manifest in manifests:
        body, summary = encode_manifest(manifest), summarise(manifest)
        entries[CAPABILITY_KEY + manifest.name] = encode_summary(summary)
        entries[MANIFEST_KEY + manifest.name] = body
    return entries


def manifest_from(body: bytes, summary: CapabilitySummary) -> Manifest | None:
    """A manifest as its owner wrote it; None if it is not the one that the summary is of."""
    try:
        manifest = check_manifest(decode_manifest(body))
        is_told = body_digest(body) == summary.digest and manifest.name == summary.name
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MeshError):
        return None
    return manifest if is_told else None


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

    def build(self, swim: Swim, description: int = 0) -> ClusterView:
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
            description=description,
        )

    def _row(self, swim: Swim, member: Member) -> Peer:
        node = member.node
        told = self._told_by(swim, node)
        load = swim.load_of(node)
        expected = swim.rtt_expected(node)
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
            rtt_estimate_s=None if expected is None else expected.rtt_s,
            rtt_estimate_error=None if expected is None else expected.error,
            doubt=swim.doubt_of(node),
            region=told.site.region,
            labels=told.site.labels,
        )

    def _told_by(self, swim: Swim, node: NodeId) -> "_Told":
        """What the node's state says, decoded once a version."""
        state = swim.state_of(node)
        if state is None:
            return _Told()
        held = self._told.get(node)
        if held is not None and held[0] is state and held[1] == state.version:
            return held[2]
        told = _read_state(swim, node, state)
        if told.is_whole:
            self._told[node] = (state, state.version, told)
        return told


class _Told(msgspec.Struct, frozen=True):
    name: str = ""
    version: str = ""
    capabilities: tuple[CapabilitySummary, ...] = ()
    site: Site = NOWHERE
    is_whole: bool = True


def _read_state(swim: Swim, node: NodeId, state: NodeState) -> _Told:
    """Decode a state. A peer wrote it: what is not as it should be is left out.

    So is a summary so long that it is a document, until that is here.
    """
    capabilities = []
    is_whole = True
    for key in sorted(state.values()):
        if key.startswith(CAPABILITY_KEY):
            value = swim.value_of(node, key)
            if value is None:
                is_whole = False
                continue
            try:
                summary = msgspec.msgpack.decode(value, type=CapabilitySummary)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if is_name(summary.name) and key == CAPABILITY_KEY + summary.name:
                capabilities.append(summary)
    site = swim.value_of(node, SITE_KEY)
    is_whole = is_whole and (site is not None or SITE_KEY not in state.values())
    name = (swim.value_of(node, NAME_KEY) or b"").decode(errors="replace")
    version = (swim.value_of(node, VERSION_KEY) or b"").decode(errors="replace")
    return _Told(
        name=name if is_name(name) else "",
        version=version if is_name(version.replace("+", "-")) else "",
        capabilities=tuple(capabilities),
        site=_site(site),
        is_whole=is_whole,
    )


def _site(value: bytes | None) -> Site:
    """Region and labels as a peer wrote them; nothing where that is not as it should be."""
    if value is None:
        return NOWHERE
    try:
        region, labels = msgspec.msgpack.decode(value, type=tuple[str, dict[str, str]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NOWHERE
    site = Site(region, labels)
    return NOWHERE if site_faults(site) else site
