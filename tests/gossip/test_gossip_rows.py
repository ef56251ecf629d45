"""The view shows what the machine knows, and leaves out what a peer wrote wrongly."""

import msgspec
import pytest
from fabric import Fabric, meshed, node_id

from meshd.capability.manifest import Manifest, encode_manifest, summarise
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.inputs import LoadSampled, StateSet
from meshd.gossip.rows import ViewBuilder, manifest_from, own_entries, stale_after_s
from meshd.model import Load, MemberState, Site
from meshd.view import ClusterView

MANIFEST = Manifest(name="count-words")
COUNT_WORDS = summarise(MANIFEST)


def build(fabric: Fabric, builder: ViewBuilder | None = None) -> ClusterView:
    return (builder or ViewBuilder(fabric.config)).build(fabric.nodes[0].swim)


@pytest.mark.parametrize(("members", "seconds"), [(1, 6.0), (2, 6.0), (11, 30.0)])
def test_silence_is_long_once_three_cycles_of_probes_went_by(members, seconds):
    assert stale_after_s(profile("lan"), members) == seconds


def test_a_row_shows_name_version_capabilities_and_load_of_a_peer():
    fabric = meshed(2)
    peer = fabric.nodes[1]
    fabric.step(peer, StateSet(own_entries("anna", "1.2.3", (MANIFEST,))))
    fabric.step(peer, LoadSampled(Load(queue=3)))
    fabric.run(2)
    row = build(fabric).by_node[peer.id]
    assert (row.name, row.version, row.capabilities) == ("anna", "1.2.3", (COUNT_WORDS,))
    assert (row.state, row.address) == (MemberState.ALIVE, peer.address)
    assert row.load.queue == 3
    assert row.heard_at >= row.load_at > fabric.now - 2
    assert row.rtt_s > 0
    assert row.reachable


def test_a_row_shows_where_and_what_a_peer_says_that_it_is():
    fabric = meshed(2)
    peer = fabric.nodes[1]
    site = Site("eu-west", {"gpu": "a100"})
    fabric.step(peer, StateSet(own_entries("anna", "1.2.3", (MANIFEST,), site)))
    fabric.run(1)
    row = build(fabric).by_node[peer.id]
    assert (row.region, row.labels, row.name) == ("eu-west", {"gpu": "a100"}, "anna")
    assert "site" not in own_entries("anna", "1.2.3", ())


def test_labels_so_long_that_they_are_a_document_are_in_the_row_once_they_are_here():
    fabric = meshed(2)
    peer = fabric.nodes[1]
    builder = ViewBuilder(fabric.config)
    site = Site("eu", {f"label-{n}" + "x" * 40: "y" * 50 for n in range(16)})
    fabric.step(peer, StateSet(own_entries("anna", "1.2.3", (), site)))
    assert fabric.run(1, until=lambda: build(fabric, builder).by_node[peer.id].name == "anna")
    assert build(fabric, builder).by_node[peer.id].region == ""
    fabric.run(1)
    assert build(fabric, builder).by_node[peer.id].labels == site.labels


@pytest.mark.parametrize(
    "odd", [b"\xc1", msgspec.msgpack.encode(("e u", {})), msgspec.msgpack.encode(("eu", [1]))]
)
def test_a_site_that_is_not_as_it_should_be_is_left_out(odd):
    fabric = meshed(2)
    peer = fabric.nodes[1]
    fabric.step(peer, StateSet({"name": b"anna", "site": odd}))
    fabric.run(1)
    row = build(fabric).by_node[peer.id]
    assert (row.name, row.region, row.labels) == ("anna", "", {})


def test_a_node_that_says_nothing_goes_by_its_id_and_one_that_lies_keeps_only_what_is_right():
    fabric = meshed(2)
    peer = fabric.nodes[1]
    builder = ViewBuilder(fabric.config)
    assert build(fabric, builder).by_node[peer.id].name == peer.id.hex()
    entries = {
        "name": b"\xff bad", "version": b"1 2", "cap/broken": b"\xc1",
        "cap/other-name": msgspec.msgpack.encode(COUNT_WORDS),
    }  # fmt: skip
    fabric.step(peer, StateSet(entries))
    fabric.run(1)
    row = build(fabric, builder).by_node[peer.id]
    assert (row.name, row.version, row.capabilities) == (peer.id.hex(), "", ())


def test_a_summary_that_is_a_document_is_in_the_row_once_it_is_here():
    fabric = meshed(2)
    peer = fabric.nodes[1]
    long = Manifest(name="long", tags=tuple("t" * 30 + str(n) for n in range(16)))
    builder = ViewBuilder(fabric.config)
    fabric.step(peer, StateSet(own_entries("anna", "1.2.3", (long, MANIFEST))))
    assert fabric.run(1, until=lambda: build(fabric, builder).by_node[peer.id].name == "anna")
    assert build(fabric, builder).by_node[peer.id].capabilities == (COUNT_WORDS,)
    fabric.run(1)
    row = build(fabric, builder).by_node[peer.id]
    assert row.capabilities == (COUNT_WORDS, summarise(long))
    fabric.step(fabric.nodes[0], LoadSampled(Load(queue=1)))
    assert build(fabric, builder).by_node[peer.id] is row


DEEP = b'{"name":"count-words","input_schema":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"{}", b'{"name":"count-words","unknown":1}', DEEP,
        encode_manifest(Manifest(name="count-words", description="another")),
        encode_manifest(Manifest(name="count-words", timeout_s=-1.0)),
    ],
)  # fmt: skip
def test_only_the_manifest_that_the_summary_is_of_is_taken(body):
    assert manifest_from(body, COUNT_WORDS) is None
    assert manifest_from(encode_manifest(MANIFEST), COUNT_WORDS) == MANIFEST
    other_name = msgspec.structs.replace(COUNT_WORDS, name="other")
    assert manifest_from(encode_manifest(MANIFEST), other_name) is None


def test_only_what_changed_is_made_anew():
    fabric = meshed(3)
    builder = ViewBuilder(fabric.config)
    before = build(fabric, builder)
    builder.member_changed(node_id(1), fabric.now)
    fabric.step(fabric.nodes[0], LoadSampled(Load(queue=1)))
    after = build(fabric, builder)
    assert after.version == before.version + 1
    assert after.by_node[node_id(2)] is before.by_node[node_id(2)]
    assert after.self_peer.load.queue == 1
    assert before.self_peer.load is None


def test_news_of_load_by_rumour_counts_as_having_heard():
    fabric = meshed(3)
    fabric.run(0.5)
    silent, subject = fabric.nodes[0], fabric.nodes[2]
    fabric.drop = lambda a, b: {a, b} == {silent, subject}
    fabric.run(1)
    heard = silent.swim.heard_at(subject.id)
    fabric.step(subject, LoadSampled(Load(queue=7)))
    fabric.run(1)
    row = build(fabric).by_node[subject.id]
    assert row.load.queue == 7
    assert row.heard_at == row.load_at > heard


def test_the_forgotten_leave_the_view():
    fabric = meshed(3, config=GossipConfig(tombstone_s=60.0))
    builder = ViewBuilder(fabric.config)
    assert len(build(fabric, builder).by_node) == 3
    fabric.crash(fabric.nodes[2])
    fabric.run(30)
    assert build(fabric, builder).by_node[node_id(2)].state is MemberState.DEAD
    fabric.run(150)
    assert set(build(fabric, builder).by_node) == {node_id(0), node_id(1)}
