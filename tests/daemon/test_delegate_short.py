"""A plain `delegate` takes the short way, and whatever it asks for ends as by the long one."""

import asyncio
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.daemon.short_ways import ShortWays
from meshd.errors import Code, DeadlineError, MeshError, NoCandidateError
from meshd.model import Address
from meshd.routing.direct import no_wire
from meshd.routing.settings import Overrides, RoutingSettings
from meshd.rpc.client import connect_channel
from meshd.rpc.dispatch import run
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


class CountedWire:
    """The real one, over which calls go the short way."""

    def __init__(self, pair, wire):
        self._pair, self._wire = pair, wire
        self.call_off = wire.call_off

    def begin(self, *given):
        self._pair.shorts += 1
        return self._wire.begin(*given)


class Pair:
    """A node that asks, one that does the work, and what the test wants to know of both."""

    def __init__(self):
        self.hold, self.held, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.shorts = 0

    async def start(self, path, **more):
        @capability
        async def add(a: int, b: int = 0) -> int:
            if a == HOLDS:
                self.held.set()
                try:
                    await self.hold.wait()
                finally:
                    self.left.set()
            return a + b

        self.far = await start_node(path, "far", collect(add))
        self.near = await start_node(path, "near", join=[self.far], **more)
        await self.near.wait_view(lambda v: any(p.capabilities for p in v.peers), 5)
        dispatcher = self.near.dispatcher
        real = dispatcher._wires

        def wires(target):
            wire = real(target)
            return wire and CountedWire(self, wire)

        dispatcher._wires = wires
        async with asyncio.timeout(10):
            while not self.shorts:  # first it has to be seen that the work is short
                await run(self.near.registry, "delegate", PLAIN, CallContext())

    async def stop(self):
        self.hold.set()
        await asyncio.gather(self.near.stop(0), self.far.stop(0))

    async def end_of(self, params, context, *, is_short=True):
        """What it comes to, without what differs from call to call."""
        dispatcher = self.near.dispatcher
        wires = dispatcher._wires
        if not is_short:
            dispatcher._wires = no_wire
        try:
            async with asyncio.timeout(10):
                return steady(await run(self.near.registry, "delegate", params, context))
        except MeshError as error:
            return type(error), error.code, error.message, error.hint, steady(error.data)
        finally:
            dispatcher._wires = wires


async def started(path, **more):
    pair = Pair()
    await pair.start(path, **more)
    return pair


HOLDS = 1_000
PLAIN = {"capability": "add", "input": {"a": 1, "b": 2}}
CHANGING = {"latency_ms", "rpc_latency_ms", "cpu", "mem", "load", "elapsed_s", "error_id"}


def steady(told):
    """It without figures that are measured."""
    if isinstance(told, dict):
        return {key: steady(value) for key, value in told.items() if key not in CHANGING}
    return [steady(each) for each in told] if isinstance(told, list) else told


def either(usual, *others):
    """The usual value half of the time, so that most calls are wrong in one thing alone."""
    return st.one_of(st.just(usual), st.sampled_from([usual, *others]))


ABSENT = object()
NAMED = st.fixed_dictionaries(
    {
        "capability": either(
            "add", "nope", "", "ad d", "x" * 65, "x" * 100_000, "\ud800", None, 3, True, ["add"],
            ABSENT,
        ),
        "input": either({"a": 1, "b": 2}, {}, None, "text", {"a": "one"}, {"a": math.nan}, ABSENT),
        "deadline_ms": either(
            ABSENT, None, 0, -1, 0.001, 1, 5_000, 5_000.5, "5000", True, math.nan, math.inf,
            -math.inf, 86_400_000, 86_400_001, 1e300, 10**400,
        ),
        "priority": either(ABSENT, 0, 4, 9, 10, -1, True, 4.0, "4", None, 10**30),
        "extra": either(
            {}, {"wait": True}, {"policy": "random"}, {"unknown": 1}, {"need": "add"},
            {"text": "add it"}, {"explain": False}, {"hops": []}, {"trace": 1}, {7: 8},
            {"idempotency_key": "k"}, {"to": "far"},
        ),
    }
)  # fmt: skip
PARAMS = st.one_of(
    *[NAMED.map(lambda d: {k: v for k, v in {**d, **d["extra"]}.items()
                           if v is not ABSENT and k != "extra"})] * 9,
    st.sampled_from([None, [], ["add"]]),
)  # fmt: skip
CONTEXTS = st.builds(
    CallContext, deadline_s=either(None, 5.0, 0.0005, 86_400.0), caller=st.sampled_from(["", "me"])
)


TABLES = {
    "add": Overrides(retries=1, deadline_s=3.0), "nope": Overrides(fallback=("add",)),
    "ad*": Overrides(retries=2),
}  # fmt: skip


@pytest.mark.parametrize("tables", [{}, TABLES], ids=["plain", "tables"])
def test_whatever_is_asked_ends_as_by_the_long_way(tmp_path, monkeypatch, tables):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with asyncio.Runner() as runner:
        pair = runner.run(started(tmp_path))
        pair.near.dispatcher.use(RoutingSettings(by_capability=tables))

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(PARAMS, CONTEXTS)
        def alike(params, context):
            short = runner.run(pair.end_of(params, context))
            assert short == runner.run(pair.end_of(params, context, is_short=False))

        before = pair.shorts
        alike()
        assert pair.shorts > before
        counters = pair.near.dispatcher.counters
        assert not pair.near.dispatcher.is_busy
        assert counters["calls"] >= pair.shorts
        runner.run(pair.stop())


@pytest.fixture
async def pair(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pair = await started(tmp_path, control_path=str(tmp_path / "c.sock"))
    yield pair
    await pair.stop()


async def held(pair, call, *, is_short=True):
    """The call, once its work has begun, by the short way or the long one."""
    before = pair.shorts
    task = asyncio.ensure_future(call)
    async with asyncio.timeout(5):
        await pair.held.wait()
    assert pair.shorts == before + is_short
    return task


HELD = {"capability": "add", "input": {"a": HOLDS}}


@pytest.mark.parametrize("why", ["enough", None, 5])
@pytest.mark.parametrize("more", [{}, {"hops": []}], ids=["short", "long"])
async def test_a_program_that_embeds_a_node_may_cancel_its_call(pair, why, more):
    call = run(pair.near.registry, "delegate", {**HELD, **more}, CallContext())
    task = await held(pair, call, is_short=not more)
    task.cancel(why)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await pair.left.wait()
    assert not pair.near.dispatcher.is_busy
    assert await pair.end_of(PLAIN, CallContext())


async def test_a_program_that_is_attached_may_cancel_its_call(pair, tmp_path):
    channel = await connect_channel(str(tmp_path / "c.sock"))
    assert (await channel.call("delegate", PLAIN))["peer_result"]["result"] == 3
    task = await held(pair, channel.call("delegate", HELD))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await pair.left.wait()
    assert not pair.near.dispatcher.is_busy
    await channel.close()


async def test_work_whose_caller_is_gone_is_cancelled(pair, tmp_path):
    channel = await connect_channel(str(tmp_path / "c.sock"))
    task = await held(pair, channel.call("delegate", HELD))
    await channel.close()
    async with asyncio.timeout(5):
        await pair.left.wait()
        with pytest.raises(MeshError):
            await task
    assert not pair.near.dispatcher.is_busy


async def test_a_call_has_no_more_time_than_its_caller(pair):
    short = await pair.end_of(HELD, CallContext(deadline_s=0.2))
    async with asyncio.timeout(5):
        await pair.left.wait()
    long = await pair.end_of(HELD, CallContext(deadline_s=0.2), is_short=False)
    assert short[:2] == long[:2] == (DeadlineError, Code.DEADLINE)
    assert pair.shorts >= 2


def test_a_name_that_is_none_costs_no_time_that_grows_with_it():
    short = ShortWays(None)  # the node is not asked at all
    assert short.delegate({"capability": "x" * 65}, CallContext(), None) is None


async def test_only_a_link_that_takes_calls_right_now_is_ready(pair):
    links, far = pair.near._links, pair.far.address
    channel = links.ready(far)
    assert channel is not None
    assert links.ready(Address("127.0.0.1", 1)) is None
    waiting = channel._writer._waiting
    size, waiting.size = waiting.size, 10**9
    assert links.ready(far) is None
    waiting.size = size
    assert links.ready(far) is channel
    channel.is_resting = True
    assert links.ready(far) is None


async def test_who_names_what_nobody_offers_is_told_so(pair):
    with pytest.raises(NoCandidateError):
        await pair.near.methods.delegate({"capability": "nope"}, CallContext())
