"""A delegation with a key is done once, whichever node it would be sent to the second time."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.rpc.methods import CallContext

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
