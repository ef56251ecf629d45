"""Who is remembered on disk for the next run."""

from types import SimpleNamespace

from meshd.clock import Instant
from meshd.daemon.finding import Finding
from meshd.discovery.cache import PeerCache
from meshd.model import Address, Epoch, Incarnation, MemberState, NodeId
from meshd.view import ClusterView, Peer

ME, HEARD, HEARSAY, DEAD = (NodeId(bytes([n]) * 8) for n in range(4))


def peer(node: NodeId, state: MemberState = MemberState.ALIVE) -> Peer:
    return Peer(
        node=node, name="n", address=Address("10.0.0.1", node[0] + 1), state=state,
        epoch=Epoch(1), incarnation=Incarnation(0), heard_at=Instant(1.0),
    )  # fmt: skip


def test_only_those_whom_this_node_heard_itself_are_remembered(tmp_path):
    peers = (peer(ME), peer(HEARD), peer(HEARSAY), peer(DEAD, MemberState.DEAD))
    view = ClusterView(
        version=1, me=ME, by_node={each.node: each for each in peers}, stale_after_s=9.0,
        view_hash="1",
    )  # fmt: skip
    node = SimpleNamespace(
        config=SimpleNamespace(node=SimpleNamespace(join=[])),
        view=lambda: view,
        clock=SimpleNamespace(now=lambda: Instant(5.0), wall_ms=lambda: 5_000),
        gossip=SimpleNamespace(is_heard=lambda node: node in {ME, HEARD, DEAD}),
    )
    finding = Finding(node)
    finding.remember()  # before the start there is nothing to write to
    finding._cache = cache = PeerCache(tmp_path / "peers.cache")
    finding.remember()
    assert [each.node for each in cache.peers] == [HEARD]
