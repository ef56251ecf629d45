"""What is late says so: a handler that answers all the same, a call whose sink is slow."""

import asyncio

import pytest
from rpc_bench import Bench, Socket

from meshd.errors import Code, DeadlineError
from meshd.rpc.channel import Channel
from meshd.rpc.dispatch import answer
from meshd.rpc.jsonrpc import parse_response
from meshd.rpc.messages import Request
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


async def test_a_handler_that_answers_after_its_time_is_over_has_answered():
    bench = Bench()

    async def stubborn(params, context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"

    bench.registry.add("stubborn", None, stubborn)

    async def ask(method):
        context = CallContext(deadline_s=0.01)
        request = Request(method, None, 1)
        return parse_response(await answer(request, bench.registry, context, bytes_max=1_000))

    async with asyncio.timeout(5):
        assert (await ask("stubborn")).result == "all the same"
        assert (await ask("hold")).error.code == Code.DEADLINE
        assert (await ask("cancelled")).error.code == Code.CANCELLED


class Mute(Socket):
    """A socket that takes all and says nothing until it is closed."""

    def __init__(self):
        super().__init__()
        self._end = asyncio.Event()

    def listen(self, on_frame):
        pass

    async def wait_silent(self):
        await self._end.wait()

    async def close(self):
        self.closed = True
        self._end.set()


async def test_a_call_whose_sink_is_slow_ends_at_its_time_though_the_link_is_lost():
    class Slow:
        async def part(self, value):
            await asyncio.Event().wait()

        def progress(self, fraction, message):
            raise AssertionError("there is none")

    socket = Mute()
    channel = Channel(socket)
    channel.start()
    call = asyncio.create_task(channel.call("m", timeout_s=0.1, sink=Slow()))
    await asyncio.sleep(0)
    channel._on_message(b'{"jsonrpc":"2.0","method":"part","params":{"id":1,"value":1}}')
    await channel.close()
    assert not call.done()
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineError):
            await call
