"""Calls that begin and end without a task, at either end of a link."""

import asyncio
import json

import pytest
from rpc_bench import Bench, Socket

from meshd.errors import LINK_LOST, BusyError, Code, MeshError, PeerError, UsageError
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.client import connect_channel
from meshd.rpc.frames import WAITING_BYTES_MAX, messages_in
from meshd.rpc.limits import CallGate
from meshd.rpc.methods import CallContext, Registry
from meshd.rpc.server import RpcServer

pytestmark = pytest.mark.net


class Begun:
    """A call that a test answers; `cancels` are the messages with which it was called off."""

    def __init__(self, shorts, params, context, answered):
        self.shorts, self.params, self.context, self.answered = shorts, params, context, answered
        self.cancels = []
        shorts.begun.put_nowait(self)

    def cancel(self, msg=None):
        self.cancels.append(msg)
        self.shorts.cancelled.put_nowait(self)


class Shorts:
    """Methods that have a short way; each has a handler, too, that says so."""

    def __init__(self, registry):
        self.begun, self.cancelled = asyncio.Queue(), asyncio.Queue()
        self.handled = 0
        add = registry.add
        add("short", None, self.handle, beginner=self.held)
        add("at_once", None, self.handle, beginner=self.at_once)
        add("never", None, self.handle, beginner=lambda *_: None)
        add("broken", None, self.handle, beginner=self.broken)
        add("both", None, self.handle, beginner=self.both)
        add("own", None, self.handle, beginner=self.held, control=True)

    async def handle(self, params, context):
        self.handled += 1
        return "the long way"

    def held(self, params, context, answered):
        return Begun(self, params, context, answered)

    def at_once(self, params, context, answered):
        begun = Begun(self, params, context, answered)
        answered(params)
        return begun

    def broken(self, params, context, answered):
        raise RuntimeError("/etc/secret/path is broken")

    def both(self, params, context, answered):
        answered("at once")

    async def next(self, queue=None):
        async with asyncio.timeout(5):
            return await (queue or self.begun).get()


class Link:
    """Both ends of a link over a socket: `near` calls, `far` has the methods and the gate."""

    def __init__(self, near, far, shorts, gate):
        self.near, self.far, self.shorts, self.gate = near, far, shorts, gate

    async def at_rest(self):
        """No call is counted any more at either end."""
        await until(lambda: self.near.calls == self.far.calls == self.gate.running == 0)
        assert self.gate._by_remote == {}
        assert self.gate._bytes == 0


@pytest.fixture
async def link(tmp_path):
    """A link whose far end has the methods, counted by a gate of its own."""
    tmp_path.chmod(0o700)
    attached = asyncio.Queue()
    server = RpcServer(Registry(), on_attach=attached.put)
    path = str(tmp_path / "d.sock")
    await server.start_control(path)
    registry = Bench().registry
    shorts = Shorts(registry)
    far = await connect_channel(path, methods=registry, limits=ChannelLimits(heartbeat_s=None))
    far._gate = CallGate(8, 8)
    async with asyncio.timeout(5):
        near = await attached.get()
    yield Link(near, far, shorts, far._gate)
    await far.close()
    await server.stop(1.0)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def begin(channel, method, params=None):
    """Begin a call; returns its number and a future of its answer."""
    future = asyncio.get_running_loop().create_future()
    number = channel.begin(method, params, lambda *end: future.set_result(end))
    return number, future


async def end_of(future):
    async with asyncio.timeout(5):
        return await future


async def test_a_call_begins_and_its_answer_comes_later(link):
    number, future = begin(link.near, "echo", {"text": "hi"})
    assert number is not None
    assert not future.done()
    assert link.near.calls == 1
    assert await end_of(future) == ({"text": "hi"}, None)
    await link.at_rest()


@pytest.mark.parametrize("method", ["fail", "refuse", "nope", "odd"])
async def test_its_error_is_that_which_a_call_would_raise(link, method):
    result, error = await end_of(begin(link.near, method)[1])
    assert result is None
    with pytest.raises(MeshError) as caught:
        await link.near.call(method)
    assert (error.code, error.message, error.definite) == (
        caught.value.code, caught.value.message, caught.value.definite,
    )  # fmt: skip
    await link.at_rest()


async def test_a_call_that_is_called_off_ends_there_and_is_not_answered(link):
    number, future = begin(link.near, "short")
    begun = await link.shorts.next()
    link.near.call_off(number)
    link.near.call_off(number)
    assert link.near.calls == 0
    assert await link.shorts.next(link.shorts.cancelled) is begun
    assert begun.cancels == [None]
    begun.answered("too late")
    assert await link.near.call("echo", ["after it"]) == {"text": "after it"}
    assert link.near.late_answers == 0
    assert not future.done()
    await link.at_rest()


async def test_what_is_no_json_or_too_large_is_not_sent(link):
    size = link.near.limits.message_bytes_max
    for params in ({"x": object()}, "x" * size):
        with pytest.raises(UsageError) as caught:
            link.near.begin("echo", params, lambda *_: None)
        assert caught.value.definite
    await link.at_rest()


async def test_no_more_begin_than_may_wait_and_none_over_a_closed_link(link):
    link.near.limits = ChannelLimits(outgoing_max=2)
    for _ in range(2):
        assert link.near.has_room
        assert begin(link.near, "short")[0] is not None
    assert not link.near.has_room
    assert begin(link.near, "short")[0] is None
    (await link.shorts.next()).answered(1)
    await until(lambda: link.near.has_room)
    await link.near.close()
    with pytest.raises(PeerError, match="closed") as caught:
        link.near.begin("echo", None, lambda *_: None)
    assert caught.value.definite


async def test_where_the_link_is_lost_each_begun_call_is_told_once_and_may_not_begin_again(link):
    ends = []

    def told(result, error):
        ends.append(error)
        with pytest.raises(PeerError):
            link.near.begin("short", None, told)

    for _ in range(3):
        link.near.begin("short", None, told)
    for _ in range(3):
        await link.shorts.next()
    await link.far.close()
    await until(lambda: len(ends) == 3)
    assert len(set(map(id, ends))) == 3, "each has an error of its own"
    assert not any(error.definite for error in ends)
    await link.near.wait_closed()
    assert link.near.calls == 0


async def test_a_begun_call_that_is_answered_before_it_returns(link):
    assert await link.near.call("at_once", {"a": [1]}) == {"a": [1]}
    begun = await link.shorts.next()
    begun.answered("again")
    assert await link.near.call("at_once") is None
    assert begun.cancels == []
    assert link.shorts.handled == link.near.late_answers == 0
    await link.at_rest()


async def test_a_begun_call_that_is_answered_later(link):
    first, second = begin(link.near, "short", [1]), begin(link.near, "short", [2])
    one, two = await link.shorts.next(), await link.shorts.next()
    assert (one.params, two.params) == ([1], [2])
    assert one.context.deadline_s == link.far.limits.call_timeout_s
    assert link.far.calls == link.gate.running == 2
    two.answered({"n": 2})
    two.answered({"n": 3})
    one.answered({"n": 1})
    assert await end_of(first[1]) == ({"n": 1}, None)
    assert await end_of(second[1]) == ({"n": 2}, None)
    assert link.near.late_answers == 0
    await link.at_rest()


async def test_a_begun_call_that_ends_with_an_error(link):
    future = begin(link.near, "short")[1]
    (await link.shorts.next()).answered(BusyError("no slot", hint="later", data={"eta_s": 3}))
    _, error = await end_of(future)
    assert (error.code, error.message, error.hint) == (Code.BUSY, "no slot", "later")
    assert error.data == {"eta_s": 3}
    await link.at_rest()


async def test_a_begun_call_whose_answer_is_no_json(link, caplog):
    for end in (object(), RuntimeError("/etc/secret/path is broken")):
        future = begin(link.near, "short")[1]
        (await link.shorts.next()).answered(end)
        _, error = await end_of(future)
        assert error.message == "internal error"
        assert "secret" not in error.hint
        assert error.data["error_id"] in caplog.text
    await link.at_rest()


async def test_a_begun_call_whose_answer_is_too_large(link):
    future = begin(link.near, "short")[1]
    (await link.shorts.next()).answered("x" * link.far.limits.message_bytes_max)
    _, error = await end_of(future)
    assert "more than the" in error.message
    assert not error.definite
    await link.at_rest()


async def test_a_beginner_that_breaks_costs_one_call(link, caplog):
    _, error = await end_of(begin(link.near, "broken")[1])
    assert error.message == "internal error"
    assert error.data["error_id"] in caplog.text
    assert await link.near.call("echo", ["on"]) == {"text": "on"}
    await link.at_rest()


async def test_a_beginner_that_does_nothing_leaves_the_call_to_the_handler(link):
    assert await link.near.call("never") == "the long way"
    assert link.shorts.handled == 1
    await link.at_rest()


async def test_a_beginner_that_answers_and_says_that_it_did_nothing_has_answered(link):
    assert await link.near.call("both") == "at once"
    assert await link.near.call("both") == "at once"
    assert link.shorts.handled == link.near.late_answers == 0
    await link.at_rest()


async def test_where_the_link_is_lost_each_begun_call_is_cancelled_once(link):
    for _ in range(3):
        begin(link.near, "short")[1].add_done_callback(lambda _: None)
    begun = [await link.shorts.next() for _ in range(3)]
    link.near._socket.abort()
    await link.far.wait_closed()
    assert [each.cancels for each in begun] == [[LINK_LOST]] * 3
    for each in begun:
        each.answered("too late")
    assert link.far.calls == link.gate.running == 0


async def test_draining_waits_for_begun_calls_and_their_answers(link):
    future = begin(link.near, "short")[1]
    begun = await link.shorts.next()
    draining = asyncio.ensure_future(link.far.drain(5.0))
    await until(lambda: link.far.is_draining)
    with pytest.raises(BusyError):
        await link.near.call("short")
    assert not draining.done()
    begun.answered("done")
    await draining
    assert await end_of(future) == ("done", None)
    await link.at_rest()


async def test_draining_waits_no_longer_than_it_may(link):
    begin(link.near, "short")
    begun = await link.shorts.next()
    await link.far.drain(0.01)
    assert link.far.calls == 1
    await link.far.close()
    assert begun.cancels == [LINK_LOST]


async def test_the_gate_counts_begun_calls(link):
    futures = [begin(link.near, "short")[1] for _ in range(8)]
    begun = [await link.shorts.next() for _ in range(8)]
    with pytest.raises(BusyError):
        await link.near.call("short")
    for each in begun:
        each.answered(None)
    for future in futures:
        assert await end_of(future) == (None, None)
    await link.at_rest()


async def test_notifications_and_streamed_calls_go_the_long_way(link):
    await link.near.notify("short")
    await until(lambda: link.shorts.handled == 1)

    class Nothing:
        async def part(self, value):
            raise AssertionError("there are no parts")

        def progress(self, fraction, message):
            raise AssertionError("there is no progress")

    assert await link.near.call("short", sink=Nothing()) == "the long way"
    assert link.shorts.begun.empty()
    await link.at_rest()


async def test_calls_of_one_id_are_told_apart_where_they_run_and_called_off_together(link):
    for _ in range(2):
        link.near._put(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "short"}).encode())
    one, two = await link.shorts.next(), await link.shorts.next()
    one.answered(1)
    await until(lambda: link.near.late_answers == 1)
    assert link.far.calls == 1
    link.near._put(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "short"}).encode())
    three = await link.shorts.next()
    await link.near.notify("cancel", {"id": 7.0})
    await link.near.notify("cancel", {"id": True})
    await link.near.notify("cancel", {"id": 7})
    await link.shorts.next(link.shorts.cancelled)
    await link.shorts.next(link.shorts.cancelled)
    assert [each.cancels for each in (one, two, three)] == [[], [None], [None]]
    await link.at_rest()


async def test_a_call_that_ends_with_the_one_that_is_called_off_before_it_harms_nobody(link):
    for _ in range(2):
        link.near._put(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "short"}).encode())
    one, two = await link.shorts.next(), await link.shorts.next()
    one.cancel = lambda msg=None: two.answered("its end")
    await link.near.notify("cancel", {"id": 7})
    await until(lambda: link.near.late_answers == 1)
    assert two.cancels == []
    assert await link.near.call("echo", ["on"]) == {"text": "on"}
    await link.at_rest()


async def test_control_methods_begin_only_for_programs_of_this_machine(link):
    asked = begin(link.near, "own")[1]
    (await link.shorts.next()).answered("mine")
    assert await end_of(asked) == ("mine", None)
    link.far.context = CallContext(remote=link.far.context.remote, local=False)
    _, error = await end_of(begin(link.near, "own")[1])
    assert error.code == Code.METHOD_NOT_FOUND
    assert link.shorts.begun.empty()
    await link.at_rest()


async def test_a_registry_begins_what_its_parent_has():
    parent = Registry()
    shorts = Shorts(parent)
    child = Registry(parent)
    answers = []
    begun = child.begin("short", [1], CallContext(), answers.append)
    assert begun.params == [1]
    assert child.begin("nope", None, CallContext(), answers.append) is None
    assert child.begin("own", None, CallContext(local=False), answers.append) is None
    assert answers == []
    assert shorts.handled == 0


LARGE = "x" * (WAITING_BYTES_MAX // 3)


def request(number, method="short"):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method}).encode()


async def test_calls_whose_answers_nobody_takes_do_not_begin_the_short_way():
    """Their answers would wait without bound: a call that waits for room is counted meanwhile."""
    registry = Registry()

    async def large(params, context):
        return LARGE

    registry.add("short", None, large, beginner=lambda p, c, answered: answered(LARGE))
    socket = Socket()
    socket.room.clear()
    channel = Channel(socket, methods=registry, limits=ChannelLimits(incoming_max=8))
    for number in range(64):
        channel._on_message(request(number))
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert channel.calls == 8, "what they hold is still counted"
    assert channel._writer._waiting.size < 16 * len(LARGE)
    socket.room.set()
    await until(lambda: channel.calls == 0)
    messages = [json.loads(text) for frame in socket.frames for text in messages_in(frame)]
    refused = [m for m in messages if "error" in m]
    assert len(messages) == 64
    assert 0 < len(refused) < 64


async def test_no_call_begins_over_a_link_that_takes_nothing():
    socket = Socket()
    socket.room.clear()
    channel = Channel(socket)
    begun = [channel.begin("m", LARGE, lambda *_: None) for _ in range(8)]
    assert None not in begun[:4]
    assert begun[-1] is None
    assert not channel.has_room
    assert channel.calls == len([number for number in begun if number is not None])
    socket.room.set()
    await until(lambda: channel.has_room)


async def test_a_link_that_breaks_while_an_answer_is_sent_does_not_reach_who_answers():
    registry = Registry()
    shorts = Shorts(registry)
    socket = Socket()
    channel = Channel(socket, methods=registry)
    channel._on_message(request(1))
    begun = await shorts.next()
    socket.error = ConnectionResetError("gone")
    begun.answered("done")
    assert channel.calls == 0


async def test_a_fault_over_one_answer_costs_no_other_call_of_the_link(link, caplog):
    def fault(result, error):
        raise RuntimeError("a fault over an answer")

    link.near.begin("at_once", {"a": 1}, fault)
    assert await link.near.call("at_once", {"a": 2}) == {"a": 2}
    assert "a fault over an answer" in caplog.text
    link.near.begin("short", {}, fault)
    other = asyncio.create_task(link.near.call("short", {}))
    for _ in range(2):
        await link.shorts.begun.get()
    await link.far.close()
    with pytest.raises(PeerError):
        await other
    await link.near.wait_closed()
