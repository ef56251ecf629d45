"""Full manifests are asked of their owners, and believed only as far as gossip vouches for them."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


@capability(timeout_s=5)
def count(text: str) -> int:
    """Count letters."""
    return len(text)


@pytest.fixture
async def pair(tmp_path, monkeypatch):
    """A node that offers nothing, and one that offers `count`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    nodes = []
    for name, definitions in (("a", ()), ("b", collect(count))):
        nodes.append(await start_node(tmp_path, name, definitions, join=nodes))
    await nodes[0].wait_view(lambda view: any(p.capabilities for p in view.peers), 5)
    yield nodes
    await asyncio.gather(*(node.stop(0) for node in nodes))


class Liar:
    """Answers every call with one forged manifest."""

    def __init__(self, **forged):
        self.forged = forged
        self.calls = 0

    async def invoke(self, target, method, params, *, timeout_s):
        self.calls += 1
        return {"capabilities": [{"name": "count", **self.forged}]}

    async def close(self):
        pass


async def described(node):
    answer = await node.registry.call("capabilities", {"name": "count"}, CallContext())
    (shape,) = answer["capabilities"]
    return shape


async def test_an_owners_manifest_is_fetched_once(pair):
    a, _ = pair
    assert (await described(a))["input_schema"]["required"] == ["text"]
    own, a.client = a.client, Liar()
    assert (await described(a))["input_schema"]["required"] == ["text"]
    assert a.client.calls == 0
    a.client = own


@pytest.mark.parametrize("forged", [{"description": "lies"}, {"description": "x" * 100_000}])
async def test_a_manifest_that_gossip_did_not_announce_is_not_believed(pair, forged):
    a, _ = pair
    own, a.client = a.client, Liar(**forged)
    shape = await described(a)
    assert a.client.calls == 1
    assert shape["description"] == "Count letters."
    assert "input_schema" not in shape
    a.client = own
    assert (await described(a))["input_schema"]["required"] == ["text"]
