"""Messages of one turn leave in one frame; a slow reader holds up whoever sends more."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_bench import Socket

from meshd.rpc.frames import (
    FRAME_BYTES_MAX,
    URGENT_BYTES_MAX,
    WAITING_BYTES_MAX,
    FrameWriter,
    messages_in,
)
from meshd.rpc.jsonrpc import parse_message
from meshd.rpc.limits import CallGate
from meshd.rpc.messages import Refused


def message(number, size=0):
    return json.dumps({"n": number, "x": "x" * size}).encode()


async def send(writer, message):
    """As a channel sends."""
    if not writer.put(message):
        await writer.wait_for_room(message)


async def turn():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_lone_message_leaves_at_once_as_it_is():
    socket = Socket()
    await send(FrameWriter(socket), message(1))
    assert socket.frames == [message(1)]


async def test_messages_of_one_turn_leave_together_and_in_order():
    socket = Socket()
    writer = FrameWriter(socket)
    for number in range(20):
        await send(writer, message(number))
    await turn()
    assert len(socket.frames) == 2
    assert [m for frame in socket.frames for m in map(json.loads, messages_in(frame))] == [
        json.loads(message(number)) for number in range(20)
    ]
    for number in range(20, 23):
        await send(writer, message(number))
    assert len(socket.frames) == 2, "after a crowd the first of the next turn waits for others"
    await turn()
    assert len(messages_in(socket.frames[2])) == 3
    await send(writer, message(23))
    await turn()
    await send(writer, message(24))
    assert socket.frames[3:] == [message(23), message(24)], "alone again"


async def test_a_large_message_has_a_frame_of_its_own():
    socket = Socket()
    writer = FrameWriter(socket)
    sizes = (0, 0, FRAME_BYTES_MAX, 0, 0)
    for number, size in enumerate(sizes):
        await send(writer, message(number, size))
    await turn()
    assert [len(messages_in(frame)) for frame in socket.frames] == [1, 1, 1, 2]


async def test_who_sends_to_a_slow_reader_waits_beyond_the_bound():
    socket = Socket()
    writer = FrameWriter(socket)
    size = WAITING_BYTES_MAX // 4
    socket.room.clear()
    sending = [asyncio.create_task(send(writer, message(number, size))) for number in range(12)]
    await turn()
    waiting = sum(not task.done() for task in sending)
    assert waiting > 3
    socket.room.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*sending)
        while len(socket.frames) < 12:
            await asyncio.sleep(0)
    assert [json.loads(frame)["n"] for frame in socket.frames] == list(range(12))


async def test_while_the_first_send_waits_each_later_turn_waits_behind_it():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    sending = []
    for number in range(12):
        sending.append(asyncio.create_task(send(writer, message(number, WAITING_BYTES_MAX // 4))))
        await turn()
    assert [json.loads(frame)["n"] for frame in socket.frames] == [0]
    assert sum(not task.done() for task in sending) == 8, "beyond the bound, who sends waits too"
    socket.room.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*sending)
        await writer.flush()
    assert [json.loads(frame)["n"] for frame in socket.frames] == list(range(12))


async def test_who_gives_up_waiting_takes_his_message_back_and_harms_nobody_elses():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    sizes = (0, WAITING_BYTES_MAX, WAITING_BYTES_MAX, 0)
    sending = [asyncio.create_task(send(writer, message(n, size))) for n, size in enumerate(sizes)]
    await turn()
    for task in sending:
        task.cancel()
    await turn()
    late = [asyncio.create_task(send(writer, message(number))) for number in (7, 8)]
    await turn()
    socket.room.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*late)
        await writer.flush()
    texts = [json.loads(text) for frame in socket.frames for text in messages_in(frame)]
    assert [text["n"] for text in texts] == [0, 7, 8]


async def test_what_is_posted_waits_for_nothing_and_leaves_first():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    for number in range(4):
        await send(writer, message(number))
    assert writer.post(message(9))
    socket.room.set()
    async with asyncio.timeout(5):
        await writer.flush()
    texts = [json.loads(text) for frame in socket.frames for text in messages_in(frame)]
    assert [text["n"] for text in texts] == [0, 9, 1, 2, 3]


async def test_what_is_posted_has_a_bound():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    half = message(1, URGENT_BYTES_MAX // 2 - 100)
    assert [writer.post(half) for _ in range(4)] == [True, True, True, False], "one is under way"
    writer.close()


async def test_a_lone_posted_message_leaves_at_once():
    socket = Socket()
    assert FrameWriter(socket).post(message(1))
    assert socket.frames == [message(1)]


async def test_what_is_posted_in_one_turn_leaves_together_after_the_first():
    socket = Socket()
    writer = FrameWriter(socket)
    for number in range(4):
        assert writer.post(message(number))
    assert socket.frames == [message(0)]
    await turn()
    assert [json.loads(text)["n"] for text in messages_in(socket.frames[1])] == [1, 2, 3]


async def test_flushing_waits_until_all_has_left():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    for number in range(3):
        await send(writer, message(number))
    flush = asyncio.create_task(writer.flush())
    await turn()
    assert not flush.done()
    socket.room.set()
    await asyncio.wait_for(flush, 5)
    assert sum(len(messages_in(frame)) for frame in socket.frames) == 3


async def test_closing_lets_go_whoever_waits():
    socket = Socket()
    writer = FrameWriter(socket)
    socket.room.clear()
    sending = [asyncio.create_task(send(writer, message(n, WAITING_BYTES_MAX))) for n in range(3)]
    await turn()
    writer.close()
    socket.room.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*sending)


async def test_a_lost_link_is_told_to_who_sends_and_drops_what_waits():
    socket = Socket()
    writer = FrameWriter(socket)
    await send(writer, message(1))
    await send(writer, message(2))
    socket.error = ConnectionResetError("lost")
    await turn()
    assert socket.frames == [message(1)]
    await send(writer, message(3))
    await turn()
    with pytest.raises(ConnectionResetError):
        await send(writer, message(4))


@given(st.lists(st.text().map(lambda text: json.dumps({"t": text}).encode()), min_size=2))
def test_what_is_put_together_comes_apart_as_it_was(messages):
    async def together():
        socket = Socket()
        writer = FrameWriter(socket)
        for each in messages:
            await send(writer, each)
        await turn()
        return socket.frames

    frames = asyncio.run(together())
    texts = [json.loads(text) for frame in frames for text in messages_in(frame)]
    assert texts == [json.loads(each) for each in messages]


def test_a_window_that_is_no_number_of_bytes_is_no_request():
    for window in (-1, 1.5, "1", True, None):
        text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "m", "window": window})
        parsed = parse_message(text)
        assert isinstance(parsed, Refused), window
        assert parsed.id == 1
    good = parse_message(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "m", "window": 5}))
    assert good.window == 5


def test_a_gate_bounds_the_bytes_of_all_requests_but_lets_a_lone_large_one_in():
    gate = CallGate(10, 10, bytes_max=100)
    assert gate.enter("a", 150) is None
    refused = gate.enter("b", 1)
    assert refused.data["bound"] == "bytes"
    gate.leave("a", 150)
    assert gate.enter("b", 60) is None
    assert gate.enter("c", 60) is not None
    assert gate.enter("c", 40) is None
    assert gate.running == 2


@pytest.mark.parametrize("bytes_max", [60, 200, FRAME_BYTES_MAX])
async def test_messages_put_together_are_no_more_than_the_other_side_takes_at_once(bytes_max):
    socket = Socket()
    writer = FrameWriter(socket, bytes_max)
    sent = [message(number, number % 20) for number in range(40)]
    for each in sent:
        await send(writer, each)
    await turn()
    assert [m for frame in socket.frames for m in messages_in(frame)] == sent
    assert max(map(len, socket.frames)) <= bytes_max
