"""Who calls over a link that takes nothing waits, and so does who answers."""

import asyncio
import json

from rpc_bench import Socket

from meshd.rpc.channel import Channel
from meshd.rpc.frames import WAITING_BYTES_MAX, messages_in
from meshd.rpc.methods import Registry

LARGE = "x" * (WAITING_BYTES_MAX // 3)


def slow():
    """A socket that takes one frame, and the next ones once it has room."""
    socket = Socket()
    socket.room.clear()
    return socket


def sent(socket, member):
    """The ids of the messages that have left with this member."""
    messages = [json.loads(text) for frame in socket.frames for text in messages_in(frame)]
    return [each["id"] for each in messages if member in each and "id" in each]


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_who_is_called_off_while_a_call_waits_for_room_has_sent_nothing():
    socket = slow()
    channel = Channel(socket)
    calls = [asyncio.create_task(channel.call("m", LARGE)) for _ in range(8)]
    await until(lambda: channel.calls == 8)
    calls[7].cancel()
    await asyncio.wait((calls[7],))
    socket.room.set()
    await until(lambda: len(sent(socket, "method")) >= 7)
    await asyncio.sleep(0)
    assert sent(socket, "method") == [1, 2, 3, 4, 5, 6, 7]
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_calls_whose_answers_nobody_takes_are_not_over():
    registry = Registry()

    async def large(params, context):
        return LARGE

    registry.add("large", None, large)
    socket = slow()
    channel = Channel(socket, methods=registry)
    for number in range(8):
        channel._on_message(
            json.dumps({"jsonrpc": "2.0", "id": number, "method": "large"}).encode()
        )
    await until(lambda: socket.frames)
    for _ in range(20):
        await asyncio.sleep(0)
    assert channel.calls > 0, "what they hold is still counted"
    socket.room.set()
    await until(lambda: channel.calls == 0 and len(sent(socket, "result")) == 8)
