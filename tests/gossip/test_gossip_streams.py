"""Pings over the call port: what they count for, how many there are, and when somebody is told."""

import asyncio
from collections import Counter

import pytest
from fabric import Fabric, meshed, node_id

from meshd.clock import Instant
from meshd.gossip.effects import MemberChanged, ProbeCompleted, StreamPing
from meshd.gossip.inputs import StreamPinged
from meshd.gossip.members import in_state, new_member
from meshd.gossip.streams import TELL_AFTER, UNDER_WAY_MAX, StreamPings
from meshd.model import Address, Epoch, MemberState

ALIVE, SUSPECT, DEAD, LEFT = MemberState
NODE = node_id(7)
WHERE = Address("10.0.0.8", 6374)


def blocked_pair() -> Fabric:
    """Two nodes, of whom none hears the other's datagrams any more."""
    fabric = meshed(2)
    fabric.drop = lambda _one, _other: True
    return fabric


def answer_streams(fabric: Fabric, *, ok: bool = True, sequence_off: int = 0) -> None:
    """Let each stream ping be answered in the next moment."""

    def answer(node, effects):
        for effect in effects:
            if isinstance(effect, StreamPing):
                told = StreamPinged(effect.node, effect.sequence + sequence_off, ok)
                node.effects += node.swim.step(told, Instant(fabric.now + 0.01))

    fabric.watchers.append(answer)


def test_whoever_answers_calls_is_not_suspected_although_no_datagram_gets_through():
    fabric = blocked_pair()
    answer_streams(fabric)
    fabric.run(120)
    assert (fabric.state(0, 1), fabric.state(1, 0)) == (ALIVE, ALIVE)
    one = fabric.nodes[0]
    rounds = [e for e in one.effects if isinstance(e, ProbeCompleted)]
    assert rounds[-1].succeeded
    assert rounds[-1].rtt_s is None
    assert one.swim.health == 0
    assert one.swim.is_reachable(fabric.nodes[1].id)
    assert fabric.now - one.swim.heard_at(fabric.nodes[1].id) < 2


def test_a_member_is_asked_by_stream_at_its_own_address_within_the_round():
    fabric = blocked_pair()
    fabric.run(2)
    asked = [e for e in fabric.nodes[0].effects if isinstance(e, StreamPing)]
    config = fabric.config
    for each in asked:
        assert (each.node, each.address) == (fabric.nodes[1].id, fabric.nodes[1].address)
        assert each.timeout_s % (config.probe_interval_s - config.probe_timeout_s) == 0
    assert asked


@pytest.mark.parametrize(("ok", "sequence_off"), [(False, 0), (True, 1)])
def test_a_stream_ping_that_failed_or_answers_another_round_saves_nobody(ok, sequence_off):
    fabric = blocked_pair()
    answer_streams(fabric, ok=ok, sequence_off=sequence_off)
    assert fabric.run(60, until=lambda: fabric.state(0, 1) is DEAD)


def test_an_answer_by_stream_after_the_ack_or_after_the_verdict_changes_nothing():
    fabric = meshed(2)
    one = fabric.nodes[0]
    fabric.run(1)
    current = one.swim._prober._round
    assert current.acked
    one.effects.clear()
    fabric.step(one, StreamPinged(current.target, current.sequence, ok=True))
    one.swim._prober._round = None
    fabric.step(one, StreamPinged(current.target, current.sequence, ok=True))
    assert one.effects == []


class Streams:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[bool]] = []
        self.is_closed = False

    async def ping(self, node, address, timeout_s):
        assert (node, address, timeout_s) == (NODE, WHERE, 0.5)
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def close(self):
        self.is_closed = True


class Shell:
    def __init__(self, streams: Streams | None) -> None:
        self.told: list[StreamPinged] = []
        self.counters: Counter[str] = Counter()
        self.pings = StreamPings(streams, self.told.append, self.counters)

    async def ping(self, streams: Streams, *, ok: bool) -> None:
        self.pings.start(StreamPing(NODE, WHERE, 3, 0.5))
        await asyncio.sleep(0)
        streams.asked.pop().set_result(ok)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_answers_are_counted_handed_on_and_told_once_they_are_the_rule():
    streams = Streams()
    shell = Shell(streams)
    await shell.ping(streams, ok=False)
    assert shell.told == [StreamPinged(NODE, 3, ok=False)]
    for _ in range(TELL_AFTER - 1):
        await shell.ping(streams, ok=True)
    assert shell.pings.only_by_stream() == ()
    shell.pings.on_probe_completed(ProbeCompleted(NODE, succeeded=True, rtt_s=None))
    await shell.ping(streams, ok=True)
    assert shell.pings.only_by_stream() == (NODE,)
    assert shell.counters == {"stream_pings_failed": 1, "stream_pings_ok": TELL_AFTER}
    shell.pings.on_probe_completed(ProbeCompleted(NODE, succeeded=True, rtt_s=0.1))
    assert shell.pings.only_by_stream() == ()


async def test_of_who_is_gone_nothing_is_told():
    streams = Streams()
    shell = Shell(streams)
    for _ in range(TELL_AFTER):
        await shell.ping(streams, ok=True)
    member = new_member(NODE, Epoch(1), WHERE)
    shell.pings.on_member_changed(MemberChanged(in_state(member, SUSPECT), ALIVE, ""))
    assert shell.pings.only_by_stream() == (NODE,)
    shell.pings.on_member_changed(MemberChanged(in_state(member, DEAD), SUSPECT, ""))
    assert shell.pings.only_by_stream() == ()


async def test_only_a_few_are_under_way_and_a_stop_ends_them():
    streams = Streams()
    shell = Shell(streams)
    for _ in range(UNDER_WAY_MAX + 3):
        shell.pings.start(StreamPing(NODE, WHERE, 3, 0.5))
        await asyncio.sleep(0)
    assert len(streams.asked) == UNDER_WAY_MAX
    await shell.pings.close()
    assert all(each.cancelled() for each in streams.asked)
    assert streams.is_closed
    assert shell.told == []


async def test_without_a_way_to_ask_nobody_is_asked():
    shell = Shell(None)
    shell.pings.start(StreamPing(NODE, WHERE, 3, 0.5))
    await shell.pings.close()
    assert shell.told == []
