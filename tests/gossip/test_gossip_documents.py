"""Documents reach everybody: in parts, under loss, each once, checked, and within a budget."""

import random

import msgspec
import pytest
from fabric import MESH, Fabric, Node, meshed, node_id

from meshd.gossip import library
from meshd.gossip.broadcast import RICH_RUMOURS_MAX
from meshd.gossip.codec import decode, encode_body, encode_header, update_fields
from meshd.gossip.config import GossipConfig
from meshd.gossip.documents import QUESTION_CHUNKS_MAX, QUESTIONS_MAX
from meshd.gossip.effects import DatagramRejected, SendDatagram, StateChanged
from meshd.gossip.inputs import DatagramReceived, JoinRequested, StateSet
from meshd.gossip.library import digest_of
from meshd.gossip.messages import CHUNK_BYTES, Gossip, StateDelta, StatePull
from meshd.model import Member, MemberState

LARGE = random.Random(1).randbytes(65_536)


def give(fabric: Fabric, to: Node, source: Node, body: bytes):
    data = encode_header(MESH, to.id, source.id) + body
    return fabric.step(to, DatagramReceived(data, source.address))


def sent(node: Node, kind: type) -> list:
    all_sent = [decode(e.data, MESH).message for e in node.effects if isinstance(e, SendDatagram)]
    return [message for message in all_sent if isinstance(message, kind)]


def pulls(fabric: Fabric) -> list[StatePull]:
    return [pull for node in fabric.nodes for pull in sent(node, StatePull)]


def reasons(node: Node) -> list[str]:
    return [e.reason for e in node.effects if isinstance(e, DatagramRejected)]


def all_have(fabric: Fabric, key: str, value: bytes, *, of: int = 0) -> bool:
    owner = fabric.nodes[of].id
    return all(node.swim.value_of(owner, key) == value for node in fabric.nodes if node.up)


def with_change(owner: Node) -> tuple:
    """A node's own rumour as it says it first: with its last change."""
    me = owner.swim.me
    return update_fields(me, change=owner.swim._states.change_of(me))


def without_effects(fabric: Fabric) -> None:
    for node in fabric.nodes:
        node.effects.clear()


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_document_of_64_kib_arrives_everywhere_be_a_third_of_all_packets_lost(loss):
    fabric = meshed(10)
    fabric.lose(loss)
    fabric.step(fabric.nodes[0], StateSet({"doc/large": LARGE}))
    assert fabric.run(20, until=lambda: all_have(fabric, "doc/large", LARGE))
    for node in fabric.nodes:
        assert node.swim.pending()["pulls"] <= QUESTIONS_MAX + 8
    fabric.heal()
    fabric.run(2)
    assert [n.swim.pending()["pulls"] for n in fabric.nodes] == [0] * 10


def test_what_was_lost_is_asked_for_and_not_what_came():
    fabric = meshed(2)
    fabric.lose(0.2)
    fabric.step(fabric.nodes[0], StateSet({"doc/large": LARGE}))
    assert fabric.run(20, until=lambda: all_have(fabric, "doc/large", LARGE))
    parts = [part for answer in sent(fabric.nodes[0], StateDelta) for part in answer.parts]
    assert sum(len(part.data) for part in parts) < 1.6 * len(LARGE)


def test_small_documents_come_first_and_one_noisy_node_holds_up_nobody():
    fabric = meshed(3)
    asker, noisy, quiet = fabric.nodes
    fabric.drop = lambda a, b: {a, b} in ({noisy, quiet}, {asker, noisy}, {asker, quiet})
    small = {f"doc/{n}": bytes([n]) * 1_200 for n in range(20)}
    fabric.step(noisy, StateSet({**small, "doc/large": LARGE[:40_000]}))
    fabric.step(quiet, StateSet({"doc/quiet": LARGE[:20_000]}))
    fabric.run(0.3)
    fabric.heal()
    arrived = {}

    def look(node, _effects):
        if node is asker:
            for owner, keys in ((noisy, [*small, "doc/large"]), (quiet, ["doc/quiet"])):
                for key in keys:
                    if asker.swim.value_of(owner.id, key) is not None:
                        arrived.setdefault(key, fabric.now)

    fabric.watchers.append(look)
    assert fabric.run(10, until=lambda: len(arrived) == 22)
    assert max(arrived[key] for key in small) < arrived["doc/large"]
    assert arrived["doc/quiet"] < arrived["doc/large"]


def test_a_crowd_of_large_documents_comes_within_the_budget():
    config = GossipConfig(document_bytes_per_s=65_536.0)
    fabric = meshed(6, config=config)
    for number, node in enumerate(fabric.nodes):
        fabric.step(node, StateSet({"doc/large": bytes([number]) + LARGE[:-1]}))
    without_effects(fabric)
    fabric.run(2)
    for node in fabric.nodes:
        asked = sum(
            int.from_bytes(document.mask).bit_count()
            for pull in sent(node, StatePull)
            for document in pull.documents
        )
        assert 2 * 65_536 < asked * CHUNK_BYTES <= 3 * 65_536
    assert fabric.run(20, until=lambda: all(
        all_have(fabric, "doc/large", bytes([n]) + LARGE[:-1], of=n) for n in range(6)
    ))  # fmt: skip


def test_a_node_that_hands_out_too_much_says_not_now():
    fabric = meshed(2, config=GossipConfig(document_bytes_per_s=16_384.0))
    owner, asker = fabric.nodes
    fabric.step(owner, StateSet({"doc/large": LARGE}))
    body = encode_body(10, ((), [(digest_of(LARGE), b"\xff" * 16), (bytes(16), b"\x01")]))
    answered = []
    for _ in range(9):
        without_effects(fabric)
        give(fabric, owner, asker, body)
        parts = [part for answer in sent(owner, StateDelta) for part in answer.parts]
        assert parts[-1] == (parts[-1].__class__)(bytes(16), 0, b"")
        answered.append(sum(len(part.data) for part in parts))
    assert answered == [QUESTION_CHUNKS_MAX * CHUNK_BYTES] * 8 + [0]


def test_a_document_that_many_nodes_have_is_fetched_once():
    fabric = meshed(5)
    without_effects(fabric)
    for node in fabric.nodes:
        fabric.step(node, StateSet({"doc/same": LARGE[:5_000], "own": node.id}))
    fabric.run(3)
    assert all(all_have(fabric, "doc/same", LARGE[:5_000], of=n) for n in range(5))
    assert [pull for pull in pulls(fabric) if pull.documents] == []


def test_a_new_version_fetches_only_what_changed():
    fabric = meshed(3)
    fabric.step(fabric.nodes[0], StateSet({"doc/a": LARGE[:9_000], "doc/b": LARGE[:8_000]}))
    assert fabric.run(5, until=lambda: all_have(fabric, "doc/a", LARGE[:9_000]))
    without_effects(fabric)
    fabric.step(fabric.nodes[0], StateSet({"doc/b": LARGE[:700]}))
    assert fabric.run(5, until=lambda: all_have(fabric, "doc/b", LARGE[:700]))
    asked = {document.digest for pull in pulls(fabric) for document in pull.documents}
    assert asked == {digest_of(LARGE[:700])}
    assert all_have(fabric, "doc/a", LARGE[:9_000])


def test_a_restart_with_the_same_state_costs_no_pull():
    fabric = meshed(5)
    state = {"name": b"lab", "cap/a": b"a", "doc/a": LARGE[:9_000]}
    fabric.step(fabric.nodes[2], StateSet(state))
    assert fabric.run(5, until=lambda: all_have(fabric, "doc/a", LARGE[:9_000], of=2))
    others = [node for node in fabric.nodes if node is not fabric.nodes[2]]
    fabric.restart(2, epoch=1_010_000)
    fabric.step(fabric.nodes[2], StateSet(state))
    without_effects(fabric)
    fabric.knock(2)
    assert fabric.run(2, until=lambda: fabric.converged() and fabric.knows_state())
    fabric.run(1)
    assert all_have(fabric, "doc/a", LARGE[:9_000], of=2)
    assert [pull for node in others for pull in sent(node, StatePull)] == []
    newcomer = fabric.add()
    fabric.drop = lambda a, b: {a, b} == {newcomer, fabric.nodes[2]}
    fabric.knock(5)
    assert fabric.run(5, until=lambda: all_have(fabric, "doc/a", LARGE[:9_000], of=2))


def test_documents_of_the_dead_are_fetched_no_more():
    fabric = meshed(4)
    asker, owner = fabric.nodes[0], fabric.nodes[3]
    fabric.step(owner, StateSet({"doc/a": LARGE[:9_000]}))
    fabric.run(0.02)
    fabric.crash(owner)
    assert fabric.run(40, until=lambda: fabric.all_see(MemberState.DEAD, 3))
    fabric.run(5)
    without_effects(fabric)
    fabric.run(10)
    assert asker.swim.value_of(owner.id, "doc/a") is None
    assert pulls(fabric) == []
    assert asker.swim.pending()["pulls"] == 0


def test_in_a_full_library_the_documents_of_the_dead_make_room(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY_BYTES_MAX", 20_000)
    fabric = meshed(4)
    asker, _, one, two = fabric.nodes
    fabric.step(one, StateSet({"doc/a": LARGE[:12_000]}))
    assert fabric.run(5, until=lambda: all_have(fabric, "doc/a", LARGE[:12_000], of=2))
    fabric.step(two, StateSet({"doc/b": LARGE[1:12_001], "doc/c": LARGE[2:13_002]}))
    fabric.run(5)
    assert asker.swim.value_of(two.id, "doc/b") is None
    assert 1 <= asker.swim.documents_refused <= 6
    fabric.crash(one)
    assert fabric.run(40, until=lambda: all_have(fabric, "doc/b", LARGE[1:12_001], of=3))
    assert asker.swim.value_of(one.id, "doc/a") is None


def test_a_question_without_an_answer_ends_alone_and_is_asked_again():
    fabric = meshed(3)
    asker, one, two = fabric.nodes
    fabric.drop = lambda a, b: b is asker
    for owner in (one, two):
        fabric.step(owner, StateSet({"doc/a": owner.id * 100}))
        give(fabric, asker, owner, encode_body(5, ([with_change(owner)],)))
        fabric.run(0.3)
    assert asker.swim.pending()["pulls"] == 2
    fabric.run(0.3)
    fabric.heal()
    assert fabric.run(3, until=lambda: all_have(fabric, "doc/a", two.id * 100, of=2))
    assert fabric.run(1, until=lambda: all_have(fabric, "doc/a", one.id * 100, of=1))


def test_chunks_that_were_not_asked_for_are_refused():
    fabric = meshed(2)
    node, other = fabric.nodes
    part = (digest_of(b"x"), 0, b"x")
    give(fabric, node, other, encode_body(11, (1, (), [part])))
    assert reasons(node)[-1:] == ["unasked"]


def test_a_false_chunk_is_noticed_and_the_owner_asked():
    fabric = meshed(3)
    asker, liar, owner = fabric.nodes
    body = LARGE[:700]
    fabric.drop = lambda a, b: owner in {a, b}
    without_effects(fabric)
    fabric.step(owner, StateSet({"doc/a": body}))
    told = with_change(owner)
    give(fabric, asker, liar, encode_body(5, ([told],)))
    (missing,) = asker.swim._states.library.all_missing()
    missing.teller = liar.id
    fabric.drop = lambda a, b: a is liar or owner in {a, b}
    assert fabric.run(0.5, until=lambda: any(p.documents for p in sent(asker, StatePull)))
    digest = digest_of(body)
    forged = [(digest, 0, bytes(512)), (digest, 1, bytes(188)), (bytes(16), 0, b"")]
    give(fabric, asker, liar, encode_body(11, (1, (), forged)))
    assert reasons(asker)[-1:] == ["digest_mismatch"]
    assert missing.doubts == 1
    assert missing.not_before > fabric.now
    fabric.heal()
    assert fabric.run(2, until=lambda: all_have(fabric, "doc/a", body, of=2))
    assert [e.node for e in asker.effects if isinstance(e, StateChanged)][-1:] == [owner.id]


def test_a_false_state_is_noticed_and_the_owner_asked():
    fabric = meshed(3)
    asker, liar, owner = fabric.nodes
    fabric.drop = lambda a, b: a is liar or owner in {a, b}
    fabric.step(owner, StateSet({"k": b"v" * 350}))
    give(fabric, asker, liar, encode_body(5, ([update_fields(owner.swim.me)],)))
    assert fabric.run(0.5, until=lambda: bool(sent(asker, StatePull)))
    delta = (owner.id, owner.swim.me.epoch, 0, 1, [("k", 1, b"forged")])
    give(fabric, asker, liar, encode_body(11, (1, [delta])))
    assert reasons(asker)[-1:] == ["digest_mismatch"]
    assert asker.swim.state_of(owner.id) is None
    fabric.heal()
    assert fabric.run(2, until=fabric.knows_state)
    assert asker.swim.value_of(owner.id, "k") == b"v" * 350


@pytest.mark.parametrize("jump", [5, 2_000_000])
def test_a_state_that_its_owner_never_had_is_outranked(jump):
    fabric = meshed(4)
    owner = fabric.nodes[2]
    fabric.step(owner, StateSet({"k": b"v"}))
    fabric.run(2)
    me = owner.swim.me
    version = me.state_version + jump
    forged = msgspec.structs.replace(me, state_version=version, digest=b"forged__")
    for node in (fabric.nodes[0], owner):
        give(fabric, node, fabric.nodes[1], encode_body(5, ([update_fields(forged)],)))
    assert fabric.run(3, until=lambda: fabric.converged() and fabric.knows_state())
    fabric.run(1)
    assert fabric.knows_state()
    assert all_have(fabric, "k", b"v", of=2)
    if jump > 1_000_000:
        assert "version_jump" in reasons(fabric.nodes[0])
        assert owner.swim.me.epoch == me.epoch + 1


def test_a_forged_doubt_does_not_hide_a_version_that_never_was():
    fabric = meshed(4)
    owner = fabric.nodes[2]
    fabric.step(owner, StateSet({"k": b"v"}))
    fabric.run(2)
    me = owner.swim.me
    version = me.state_version + 3
    forged = msgspec.structs.replace(me, state=MemberState.SUSPECT, state_version=version)
    give(fabric, fabric.nodes[0], fabric.nodes[1], encode_body(5, ([update_fields(forged)],)))
    assert fabric.run(5, until=lambda: owner.swim.me.state_version > me.state_version + 3)
    assert fabric.run(3, until=fabric.knows_state)


def test_a_small_change_travels_with_its_rumour_and_nobody_pulls():
    fabric = meshed(20)
    fabric.step(fabric.nodes[0], StateSet({"name": b"lab", "cap/a": b"a" * 90}))
    fabric.run(3)
    without_effects(fabric)
    fabric.step(fabric.nodes[0], StateSet({"cap/a": b"b" * 90}))
    assert fabric.run(0.02, until=lambda: all_have(fabric, "cap/a", b"b" * 90))
    fabric.run(2)
    assert pulls(fabric) == []
    rumours = [u for n in fabric.nodes for g in sent(n, Gossip) for u in g.updates]
    assert {u.delta is None for u in rumours} == {True, False}


def test_a_change_that_comes_after_its_rumour_is_taken_all_the_same():
    fabric = meshed(3)
    node, teller, owner = fabric.nodes
    fabric.drop = lambda a, b: owner in {a, b}
    fabric.step(owner, StateSet({"k": b"v"}))
    me = owner.swim.me
    give(fabric, node, teller, encode_body(5, ([update_fields(me)],)))
    assert node.swim.state_of(owner.id) is None
    told = with_change(owner)
    give(fabric, node, teller, encode_body(5, ([told],)))
    assert node.swim.value_of(owner.id, "k") == b"v"
    give(fabric, node, teller, encode_body(5, ([told],)))
    assert node.swim.pending()["pulls"] == 0
    # An older change under a rumour that is known to be old is not taken for the newest one.
    fabric.step(owner, StateSet({"k": b"w" * 310}))
    give(fabric, node, teller, encode_body(5, ([update_fields(owner.swim.me)],)))
    give(fabric, node, teller, encode_body(5, ([told],)))
    assert node.swim.value_of(owner.id, "k") == b"v"
    assert node.swim._states.want(owner.id) is not None


def test_a_newcomer_brings_its_state_along_so_that_hardly_anybody_asks_for_it():
    fabric = meshed(30)
    newcomer = fabric.add()
    fabric.step(newcomer, StateSet({"name": b"new", "cap/echo": b"2"}))
    without_effects(fabric)
    fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
    assert fabric.run(3, until=lambda: all_have(fabric, "cap/echo", b"2", of=30))
    asked = [w for pull in pulls(fabric) for w in pull.wanted if w.node == newcomer.id]
    assert len(asked) <= 3


def test_in_a_crowd_of_rumours_changes_are_pulled():
    fabric = meshed(RICH_RUMOURS_MAX + 12)
    without_effects(fabric)
    for node in fabric.nodes[:6]:
        for step in range(2):
            fabric.step(node, StateSet({"cap/a": b"%d" % step + node.id}))
    busy = fabric.nodes[7]
    crowd = [
        update_fields(Member(node_id(n), 1_000_000, 1, MemberState.ALIVE, fabric.nodes[n].address))
        for n in range(10, 10 + RICH_RUMOURS_MAX)
    ]
    give(fabric, busy, fabric.nodes[8], encode_body(5, (crowd,)))
    fabric.step(busy, StateSet({"cap/a": b"busy"}))
    assert busy.swim._rumours.peek(busy.id) is not None
    fabric.run(3)
    rumours = [u for g in sent(busy, Gossip) for u in g.updates if u.node == busy.id]
    assert rumours
    assert [u for u in rumours if u.delta is not None] == []
    assert fabric.knows_state()
