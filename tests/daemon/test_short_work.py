"""Plain calls of `work` over real links: begun without a task of the link's, answered all the same.

What a caller sees must not depend on the way that its call takes.
"""

import asyncio
import gc
import weakref
from dataclasses import dataclass

import pytest
from small_mesh import start_node

from meshd import Mesh, charge
from meshd.capability.definition import capability, collect
from meshd.errors import BusyError, Code, DeadlineError, MeshError, NoCandidateError, UsageError
from meshd.routing.signals import load_from_wire
from meshd.rpc.client import connect_channel
from meshd.rpc.methods import CallContext
from meshd.work.origin import ORIGIN

pytestmark = pytest.mark.net

ID = "0123456789abcdef"
FAR = CallContext("192.0.2.1", local=False, deadline_s=30.0)


class Panic(BaseException):
    """What extensions written in other languages raise where nobody should go on."""


@dataclass
class Typed:
    """What a user's own type may do when it is made."""

    how: str

    def __post_init__(self):
        match self.how:
            case "usage":
                raise UsageError("odd", hint=None, definite=1)
            case "number":
                raise UsageError(123, definite=0)
            case "data":
                error = UsageError("odd")
                error.data = 5
                raise error
            case "stop":
                next(iter(()))
            case "late":
                raise TimeoutError
            case "exit":
                raise SystemExit(3)


WELL = {"typed": {"how": "well"}}


class Doings:
    """Capabilities, of which one waits until it is let go."""

    def __init__(self):
        self.open = asyncio.Event()
        self.began = asyncio.Semaphore(0)
        self.cancelled = asyncio.Semaphore(0)

    @capability
    async def echo(self, text: str) -> str:
        return text

    @capability
    async def wait(self) -> str:
        self.began.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return "let go"

    @capability
    async def whence(self) -> list[object]:
        origin = ORIGIN.get()
        return [list(origin.hops), origin.deadline is not None]

    @capability
    async def scan(self, pages: int) -> int:
        charge(pages)
        return pages

    @capability
    async def take(self, typed: Typed) -> str:
        return typed.how

    @capability
    async def fail(self, how: str) -> object:
        match how:
            case "panic":
                raise Panic(how)
            case "usage":
                raise UsageError("not like this", hint="like that", data={"place": 3})
            case "mesh":
                raise MeshError("mine", code=-32_050)
            case _:
                return object()


@pytest.fixture
async def doings():
    return Doings()


@pytest.fixture
async def node(tmp_path, doings):
    tmp_path.chmod(0o700)
    started = await start_node(
        tmp_path, "a", collect([doings]), control_path=str(tmp_path / "a.sock"), slots=1, queue=1
    )
    yield started
    doings.open.set()
    await started.stop(0)


@pytest.fixture
async def link(node):
    channel = await connect_channel(node.control_path)
    yield channel
    await channel.close()


async def soon(event):
    async with asyncio.timeout(5):
        await event.acquire()


async def until(wanted):
    async with asyncio.timeout(5):
        while not wanted():
            await asyncio.sleep(0)


def work(link, name, value=None, **more):
    return asyncio.create_task(link.call("work", {"capability": name, "input": value, **more}, 10))


def is_sane(load):
    return load_from_wire(load) is not None


async def test_an_answer_is_the_same_the_short_way_and_by_a_task(node, link):
    short = await work(link, "echo", {"text": "a"})
    general = await work(link, "echo", {"text": "a"}, idempotency_key="k")
    for told in (short, general):
        assert told.pop("rpc_latency_ms") >= 0
        assert told.pop("load")["in_flight"] == 0, "the load is that after the work"
    assert short == general == {"agent": "a", "node": "a", "result": "a"}
    assert (await work(link, "scan", 3))["units"] == 3.0


async def test_work_is_told_the_way_that_it_came_and_its_deadline(node, link):
    told = await work(link, "whence", hops=[ID])
    assert told["result"] == [[ID], True]
    assert (await work(link, "whence"))["result"] == [[], True]


@pytest.mark.parametrize(
    ("more", "is_short"),
    [
        ({}, True),
        ({"priority": 5, "hops": [ID], "deadline_ms": 50.0, "trace": "t"}, True),
        ({"text": "a"}, False),
        ({"capability": ""}, False),
        ({"idempotency_key": "k"}, False),
        ({"only_joins": True}, False),
        ({"hops": ["zz"]}, False),
        ({"unknown": 1}, False),
    ],
)
async def test_only_plain_calls_go_the_short_way(node, more, is_short):
    told = asyncio.Queue()
    params = {"capability": "echo", "input": "a", **more}
    begun = node.registry.begin("work", params, FAR, told.put_nowait)
    assert (begun is not None) is is_short
    if is_short:
        assert (await told.get())["result"] == "a"
    assert told.empty()


async def test_parameters_by_position_and_partial_results_go_the_general_way(node):
    told = asyncio.Queue()
    watched = CallContext(sink=object())
    for params, context in ((["echo", "a"], FAR), (None, FAR), ({"capability": "echo"}, watched)):
        assert node.registry.begin("work", params, context, told.put_nowait) is None
    assert told.empty()


async def test_a_call_that_is_called_off_cancels_its_work(node, link, doings):
    call = work(link, "wait")
    await soon(doings.began)
    call.cancel()
    await soon(doings.cancelled)
    await until(lambda: not node.worker.load().in_flight)
    assert node.worker.counters.cancelled == 1
    assert (await work(link, "echo", "b"))["result"] == "b"


async def test_a_call_whose_link_is_lost_cancels_its_work(node, link, doings):
    call = work(link, "wait")
    await soon(doings.began)
    await link.close()
    await soon(doings.cancelled)
    with pytest.raises(MeshError):
        await call
    await until(lambda: not node.worker.load().in_flight)


async def test_a_call_that_waits_and_whose_link_is_lost_never_runs(node, link, doings):
    other = await connect_channel(node.control_path)
    first, second = work(link, "wait"), work(other, "echo", "b")
    await until(lambda: node.worker.load().queue)
    await other.close()
    await until(lambda: not node.worker.load().queue)
    doings.open.set()
    assert (await first)["result"] == "let go"
    with pytest.raises(MeshError):
        await second
    assert node.worker.counters.done == 1


async def test_a_full_node_refuses_with_its_load(node, link, doings):
    calls = [work(link, "wait") for _ in range(2)]
    with pytest.raises(BusyError) as caught:
        await work(link, "echo", "c")
    assert caught.value.definite
    assert caught.value.data["reason"] == "queue_full"
    assert caught.value.data["load"]["in_flight"] == 1
    doings.open.set()
    assert [told["result"] for told in await asyncio.gather(*calls)] == ["let go"] * 2


async def test_time_that_runs_out_in_the_queue_is_definite_and_at_work_it_is_not(
    node, link, doings
):
    first = work(link, "wait", deadline_ms=200.0)
    await soon(doings.began)
    with pytest.raises(DeadlineError) as waited:
        await work(link, "echo", "b", deadline_ms=20.0)
    with pytest.raises(DeadlineError) as ran:
        await first
    assert (waited.value.definite, ran.value.definite) == (True, False)
    assert is_sane(waited.value.data["load"])
    assert is_sane(ran.value.data["load"])
    await soon(doings.cancelled)


async def test_no_call_gets_more_time_than_its_link_gives(node, doings):
    told = asyncio.Queue()
    brief = CallContext(deadline_s=0.02)
    node.registry.begin("work", {"capability": "wait"}, brief, told.put_nowait)
    async with asyncio.timeout(5):
        assert isinstance(await told.get(), DeadlineError)


@pytest.mark.parametrize(
    ("how", "code", "definite", "text"),
    [
        ("panic", Code.INTERNAL, False, "Panic"),
        ("usage", Code.INVALID_PARAMS, True, "not like this"),
        ("mesh", -32_050, False, "mine"),
        ("object", Code.UPSTREAM, False, "not JSON"),
    ],
)
async def test_whatever_goes_wrong_at_work_is_told_with_the_load(
    node, link, how, code, definite, text
):
    with pytest.raises(MeshError, match=text) as caught:
        await work(link, "fail", how)
    error = caught.value
    assert (error.code, error.definite) == (code, definite)
    assert error.data["load"]["in_flight"] == 0
    assert node.worker.load().in_flight == 0


@pytest.mark.parametrize("more", [{}, {"idempotency_key": "k"}], ids=["short", "long"])
@pytest.mark.parametrize(
    ("how", "code", "definite", "text"),
    [
        ("usage", Code.INVALID_PARAMS, True, "odd"),
        ("number", Code.INVALID_PARAMS, False, "123"),
        ("data", Code.INTERNAL, False, "internal error"),
        ("stop", Code.UPSTREAM, False, "take failed: StopIteration"),
        ("late", Code.UPSTREAM, False, "take failed: TimeoutError"),
        ("exit", Code.UPSTREAM, False, "take failed: SystemExit"),
    ],
)
async def test_whatever_goes_wrong_in_the_type_of_a_parameter_is_told(
    node, link, how, code, definite, text, more
):
    assert (await work(link, "take", WELL))["result"] == "well"
    with pytest.raises(MeshError, match=text) as caught:
        await work(link, "take", {"typed": {"how": how}}, **more)
    assert (caught.value.code, caught.value.definite) == (code, definite)
    assert node.worker.load().in_flight == 0
    assert (await work(link, "take", WELL))["result"] == "well"


async def test_what_does_not_begin_is_told_with_the_load(node, link):
    with pytest.raises(NoCandidateError, match="no capability") as unknown:
        await work(link, "ech")
    with pytest.raises(UsageError, match="missing parameter") as misfit:
        await work(link, "echo", {})
    with pytest.raises(UsageError, match="priority") as odd:
        await work(link, "echo", "a", priority=9)
    with pytest.raises(DeadlineError, match="on arrival"):
        await work(link, "echo", "a", deadline_ms=0)
    for caught in (unknown, misfit, odd):
        assert caught.value.definite
        assert is_sane(caught.value.data["load"])


async def test_a_stopping_node_lets_calls_end(node, link, doings):
    call = work(link, "wait")
    await soon(doings.began)
    draining = asyncio.create_task(node.worker.drain(5.0))
    await until(lambda: node.worker.load().draining)
    with pytest.raises(BusyError, match="draining"):
        await work(link, "echo", "b")
    doings.open.set()
    assert (await call)["result"] == "let go"
    assert await draining == 0


async def test_a_programs_work_is_told_to_who_called_its_daemon(node, link):
    program = Mesh("program", control=node.control_path)
    theirs = Doings()

    @program.agent()
    async def path() -> list[object]:
        return await theirs.whence()

    @program.agent()
    async def hold() -> str:
        return await theirs.wait()

    @program.agent()
    async def broken(how: str) -> object:
        return await theirs.fail(how)

    @program.agent(cost_usd_per_unit=0.5, unit="page")
    async def scanned(pages: int) -> int:
        return await theirs.scan(pages)

    async with program:
        assert (await work(link, "path", hops=[ID]))["result"] == [[ID], True]
        assert (await work(link, "scanned", 2))["units"] == 2.0
        with pytest.raises(UsageError, match="not like this"):
            await work(link, "broken", "usage")
        with pytest.raises(MeshError, match="missing parameter"):
            await work(link, "broken", {})
        call = work(link, "hold")
        await soon(theirs.began)
        call.cancel()
        await soon(theirs.cancelled)
        # Its slot is free again, at the daemon as well.
        assert (await work(link, "path"))["result"] == [[], True]


class Caller:
    """One who keeps what was begun for it, as a link does."""

    def __init__(self):
        self.begun = None
        self.ends = asyncio.Queue()

    def told(self, end):
        self.ends.put_nowait(end)


@pytest.mark.parametrize("ending", ["answer", "refusal", "cancel"])
async def test_a_call_and_its_caller_are_gone_without_the_collector(node, ending):
    gc.disable()
    try:
        caller = Caller()
        params = {
            "capability": {"answer": "echo", "cancel": "wait"}.get(ending, "no"),
            "input": "a",
        }
        if ending == "cancel":
            params["input"] = None
        caller.begun = node.registry.begin("work", params, FAR, caller.told)
        if ending == "cancel":
            caller.begun.cancel(None)
            caller.begun.cancel(None)
        else:
            async with asyncio.timeout(5):
                await caller.ends.get()
        await until(lambda: not node.worker.load().in_flight)
        assert caller.ends.empty()
        gone = weakref.ref(caller)
        del caller
        assert gone() is None
    finally:
        gc.enable()
