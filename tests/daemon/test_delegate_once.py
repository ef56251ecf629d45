"""A delegation with a key is done once, whichever node it would be sent to the second time."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.errors import PeerError
from meshd.rpc.flow import WINDOW_BYTES
from meshd.rpc.methods import CallContext
from meshd.sink import PartQueue

pytestmark = pytest.mark.net


@pytest.fixture
async def three(tmp_path, monkeypatch):
    """A node that offers nothing, two that can pay, and the list of all payments."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    nodes, paid = [], []

    @capability
    async def pay(amount: int) -> int:
        paid.append(amount)
        return len(paid)

    for name in ("a", "b", "c"):
        definitions = collect(pay) if nodes else ()
        nodes.append(await start_node(tmp_path, name, definitions, join=nodes))
    await nodes[0].wait_view(lambda v: sum(bool(p.capabilities) for p in v.peers) == 2, 5)
    yield nodes[0], paid
    await asyncio.gather(*(node.stop(0) for node in nodes))


async def test_a_repeated_key_returns_the_first_result(three):
    node, paid = three

    async def pay(key):
        params = {
            "capability": "pay",
            "input": {"amount": 5},
            "policy": "round_robin",
            "idempotency_key": key,
        }
        answer = await node.registry.call("delegate", params, CallContext())
        return answer["delegated_to"]["node"], answer["peer_result"]["result"]

    first = await pay("k1")
    assert await asyncio.gather(*(pay("k1") for _ in range(4))) == [first] * 4
    assert paid == [5]
    assert await pay("k2") != first
    assert paid == [5, 5]


class Reader:
    """A sink that takes nothing before it is let, and says when the first part came."""

    def __init__(self):
        self.began, self.room = asyncio.Event(), asyncio.Event()

    async def part(self, value):
        self.began.set()
        await self.room.wait()

    def progress(self, fraction, message):
        pass


@pytest.fixture
async def two(tmp_path, monkeypatch):
    """A node that asks, one that streams more than a window, and how often that began."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    began = []

    @capability
    async def pages(count: int):
        began.append(count)
        for number in range(count):
            yield [number, "x" * (WINDOW_BYTES // 4)]

    a = await start_node(tmp_path, "a")
    b = await start_node(tmp_path, "b", collect(pages), join=[a])
    await a.wait_view(lambda v: any(p.capabilities for p in v.peers), 5)
    yield a, b, began
    await asyncio.gather(a.stop(0), b.stop(0))


async def test_a_stream_with_a_key_goes_on_when_the_link_is_lost_and_is_joined(two):
    a, b, began = two
    params = {"capability": "pages", "input": {"count": 12}, "idempotency_key": "k"}
    reader = Reader()
    asking = asyncio.create_task(
        a.links.invoke(b.address, "work", params, timeout_s=30, sink=reader)
    )
    await asyncio.wait_for(reader.began.wait(), 10)
    await a.links._peers[b.address].channel.close()
    reader.room.set()
    with pytest.raises(PeerError) as caught:
        await asyncio.wait_for(asking, 10)
    assert not caught.value.definite
    answer = await a.links.invoke(b.address, "work", params, timeout_s=30)
    assert [number for number, _ in answer["result"]] == list(range(12))
    assert began == [12]


async def test_who_joins_a_streaming_call_gets_the_whole_though_the_first_caller_leaves(two):
    a, _, began = two
    params = {"capability": "pages", "input": {"count": 12}, "idempotency_key": "k"}
    parts = PartQueue()
    first = parts.of(
        a.registry.call("delegate", params, CallContext(sink=parts)), lambda answer: answer
    )
    await asyncio.wait_for(anext(first), 10)
    joined = asyncio.create_task(a.registry.call("delegate", params, CallContext()))
    await asyncio.sleep(0)
    await first.aclose()
    answer = await asyncio.wait_for(joined, 10)
    assert [number for number, _ in answer["peer_result"]["result"]] == list(range(12))
    assert began == [12]
