"""What a node does with happenings when much comes at once, or its main loop is away."""

import asyncio
import threading

import msgspec
import pytest
from small_mesh import start_node

from meshd.capability.manifest import CapabilitySummary
from meshd.daemon import happenings
from meshd.errors import BusyError, UsageError
from meshd.gossip.effects import (
    ConflictSeen,
    EventHeard,
    MemberChanged,
    QueryAnswered,
    QueryEnded,
    QueryHeard,
    StateChanged,
)
from meshd.gossip.events import EVENTS_BURST
from meshd.gossip.members import in_state, new_member
from meshd.gossip.recent import Buckets
from meshd.model import Address, Epoch, MemberState, NodeId
from meshd.view import ClusterView

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]
STRANGER = new_member(NodeId(b"stranger"), Epoch(1), Address("127.0.0.1", 9))


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = await start_node(tmp_path, "a")
    yield made
    await made.stop(0)


def types(node):
    page = node.happenings.log.read(0, lambda each: each.node == STRANGER.node.hex())
    return [each.type for each in page.events]


async def test_a_newcomer_without_a_name_is_told_of_at_its_next_change(node):
    here = node.happenings
    here.on_effect(MemberChanged(STRANGER, None, "heard of"))
    assert types(node) == []
    suspect = in_state(STRANGER, MemberState.SUSPECT)
    here.on_effect(MemberChanged(suspect, MemberState.ALIVE, "no answer to a probe"))
    assert types(node) == ["joined", "suspect"]


async def test_a_newcomer_whose_name_does_not_come_is_told_of_after_a_second(node, monkeypatch):
    monkeypatch.setattr(happenings, "NAMELESS_MS", -1)
    node.happenings.on_effect(MemberChanged(STRANGER, None, "heard of"))
    node.happenings.on_view(node.view())
    assert types(node) == ["joined"]


async def test_what_the_protocol_tells_while_a_view_is_looked_at_is_not_lost(node, monkeypatch):
    monkeypatch.setattr(happenings, "NAMELESS_MS", 10**9)
    here, ended = node.happenings, threading.Event()
    started = threading.Event()

    def tell() -> None:
        for number in range(2_000):
            other = new_member(NodeId(b"%08d" % number), Epoch(1), Address("127.0.0.1", 9))
            here.on_effect(StateChanged(other.node))
            here.on_effect(MemberChanged(other, None, "heard of"))
            started.set()
        ended.set()

    thread = threading.Thread(target=tell)
    thread.start()
    started.wait()
    while not ended.is_set():
        here.on_view(node.view())
    thread.join()
    assert len(here._nameless) == 2_000


async def test_a_change_is_looked_for_in_a_view_that_has_it(node):
    here, old = node.happenings, node.view()

    def later(**changes):
        me = msgspec.structs.replace(old.self_peer, **changes)
        return ClusterView(
            version=old.version + 1, me=old.me, by_node={old.me: me}, stale_after_s=1.0
        )

    here.on_effect(StateChanged(node.node_id))
    here.on_view(later())
    here.on_effect(StateChanged(node.node_id))
    here.on_view(old)  # was on its way already
    offered = CapabilitySummary("greet", "1.0.0", False, "a", "", (), b"")
    here.on_view(later(capabilities=(offered,)))
    page = here.log.read(0, lambda each: each.type == "updated")
    assert [each.reason for each in page.events] == ["offers greet 1.0.0"]


async def test_what_the_forgotten_offered_is_forgotten(node):
    here = node.happenings
    here.on_view(node.view())
    for number in range(50):
        peer = msgspec.structs.replace(node.view().self_peer, node=NodeId(b"%08d" % number))
        here._compare(peer)
    here.on_view(node.view())
    assert set(here._described) <= {node.node_id}


async def test_conflicts_and_health_are_events_too(node):
    node.happenings.on_effect(ConflictSeen(Address("10.0.0.9", 1)))
    node.happenings._health = 3
    node.happenings.look_at_health()
    page = node.happenings.log.read(0, lambda each: each.node == node.node_id.hex())
    found = [(each.type, each.reason) for each in page.events]
    assert ("conflict", "another process at 10.0.0.9:1 runs with this node's key") in found
    assert ("health", "local health is 0, was 3 (0 is well)") in found


async def test_answers_to_queries_that_nobody_remembers_are_dropped(node, monkeypatch):
    monkeypatch.setattr(happenings, "QUERIES_KEPT_MAX", 1)
    ask = {"timeout_s": 0.2, "nodes": (), "capability": ""}
    first = await node.happenings.ask("x", b"", **ask)
    second = await node.happenings.ask("x", b"", **ask)
    with pytest.raises(UsageError, match=f"no query {first}"):
        node.happenings.gathering(first)
    node.happenings.on_effect(QueryAnswered(first, node.node_id, b""))
    node.happenings.on_effect(QueryEnded(first))
    gathering = node.happenings.gathering(second)
    await node.happenings.wait_until(lambda: gathering.has_ended, 10)
    assert gathering.has_ended
    with pytest.raises(UsageError, match="valid name"):
        await node.happenings.ask("not a name", b"", **ask)
    assert len(node.happenings._gatherings) == 0


async def test_too_many_queries_at_once_are_refused_in_words(node, monkeypatch):
    monkeypatch.setattr(happenings, "ANSWERING_MAX", 1)
    held = asyncio.Event()

    async def slow(_asked):
        await held.wait()
        return b"done"

    node.happenings.answer_with(("x",), slow, node)
    ask = {"timeout_s": 10.0, "nodes": (node.node_id,), "capability": ""}
    queries = [await node.happenings.ask("x", b"", **ask) for _ in range(2)]
    second = node.happenings.gathering(queries[1])
    await node.happenings.wait_until(lambda: second.has_ended, 10)
    assert [(r.payload, r.is_error) for r in second.replies if r.payload is not None] == [
        (b"too many queries at once", True)
    ]
    held.set()
    first = node.happenings.gathering(queries[0])
    await node.happenings.wait_until(lambda: first.has_ended, 10)
    assert first.replies[-1].payload == b"done"


async def test_a_handler_that_takes_too_long_gives_no_answer(node):
    async def endless(_asked):
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    node.happenings.answer_with(("x",), endless, node)
    query = await node.happenings.ask("x", b"", timeout_s=0.3, nodes=(), capability="")
    gathering = node.happenings.gathering(query)
    await node.happenings.wait_until(lambda: gathering.has_ended, 10)
    assert all(reply.payload is None for reply in gathering.replies)


async def test_waiting_for_what_is_there_or_never_comes_ends(node):
    await node.happenings.wait_until(lambda: True, 10)
    await node.happenings.wait_until(lambda: False, 0.01)


async def test_a_blocked_loop_keeps_a_bounded_number_of_queries(node):
    for number in range(happenings.INBOX_MAX + 9):
        node.happenings.on_effect(QueryHeard(STRANGER.node, number, "nobody", b"", 1.0))
    assert len(node.happenings._inbox) == happenings.INBOX_MAX


async def test_one_node_may_tell_so_much_and_no_more(node, monkeypatch):
    for _ in range(EVENTS_BURST):
        await node.happenings.emit("much", b"", coalesce=False)
    monkeypatch.setattr(Buckets, "take", lambda *_: False)
    with pytest.raises(BusyError, match="10 events a second"):
        await node.happenings.emit("more", b"", coalesce=False)


async def test_after_the_end_nothing_is_told_and_news_wake_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = await start_node(tmp_path, "gone")
    service = made.gossip
    await made.stop(0)
    made.happenings.on_effect(EventHeard(1, STRANGER.node, "late", b"", False, 0.0))
    with pytest.raises(UsageError, match="not running"):
        await service.wish(happenings.EventFired("late"))


async def test_news_for_a_loop_that_has_closed_are_nobodys(node):
    other = asyncio.new_event_loop()
    other.close()
    node.happenings._loop = other
    node.happenings._is_waking = False
    node.happenings.on_effect(EventHeard(1, STRANGER.node, "late", b"", False, 0.0))
    assert node.happenings._is_closed
