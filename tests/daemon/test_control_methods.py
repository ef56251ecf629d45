"""What people ask of their own daemon: joining, pinging, naming."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.errors import UsageError
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


@pytest.fixture
async def two(tmp_path, monkeypatch):
    """Two nodes that do not know each other."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    nodes = [await start_node(tmp_path, name) for name in ("a", "b")]
    yield nodes
    await asyncio.gather(*(node.stop(0) for node in nodes))


async def ask(asked, method, **params):
    return await asked.registry.call(method, params, CallContext(remote="x", local=True))


async def test_joining_through_oneself_is_no_joining(two):
    a, b = two
    with pytest.raises(UsageError, match="is this node itself"):
        await ask(a, "join", addresses=[str(a.address)])
    done = await ask(a, "join", addresses=[str(a.address), str(b.address)])
    assert done == {"joined": 1, "contacted": 2}


async def test_a_seed_that_is_told_under_another_address_was_joined(two):
    a, b = two
    seed = str(b.gossip.bound)
    b.gossip.set_address(type(b.address)("127.0.0.1", 1))
    await b.wait_view(lambda view: view.self_peer.address.port == 1, 5)
    assert (await ask(a, "join", addresses=[seed]))["joined"] == 1
    assert a.view().by_node[b.node_id].address.port == 1


async def test_no_datagram_goes_to_oneself(two):
    with pytest.raises(UsageError, match="a is this node"):
        await ask(two[0], "probe", node="a", via="udp")
    (reply,) = (await ask(two[0], "probe", node="a", via="rpc"))["replies"]
    assert reply["rtt_ms"] > 0


async def test_a_name_means_the_living_one_of_its_bearers(two, tmp_path):
    a = two[0]
    old = await start_node(tmp_path / "old", "c", join=[a])
    await a.wait_view(lambda view: len(view.named("c")) == 1, 5)
    await old.stop(0)
    new = await start_node(tmp_path / "new", "c", join=[a])
    try:
        await a.wait_view(lambda view: len(view.named("c")) == 2, 5)
        assert len(a.view().named("c")) == 2
        assert (await ask(a, "explain", node="c"))["node"] == new.node_id.hex()
    finally:
        await new.stop(0)
