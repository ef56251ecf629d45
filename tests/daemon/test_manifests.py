"""Whole manifests reach every node by gossip, and are believed as far as their summary goes."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.capability.definition import (
    AgentDefinition,
    CapabilityDefinition,
    CommandHandler,
    capability,
    collect,
)
from meshd.capability.manifest import MANIFEST_BYTES_MAX, Manifest, encode_manifest
from meshd.errors import UsageError
from meshd.gossip.inputs import StateSet
from meshd.gossip.rows import own_entries
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


@capability(timeout_s=5)
def count(text: str) -> int:
    """Count letters."""
    return len(text)


def command(name: str, example_bytes: int) -> CapabilityDefinition:
    """A capability whose manifest is made long by an example."""
    examples = ("e" * example_bytes,)
    manifest = Manifest(name=name, description="Say it back. " * 20, examples=examples)
    return CapabilityDefinition(manifest, CommandHandler(("cat",)))


@pytest.fixture
async def start(tmp_path, monkeypatch):
    """Starts nodes that offer what they are given; each joins those before it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    nodes = []

    async def one(*definitions):
        name = "abcdef"[len(nodes)]
        nodes.append(await start_node(tmp_path, name, definitions, join=nodes))
        return nodes[-1]

    yield one
    await asyncio.gather(*(node.stop(0) for node in nodes))


async def described(node, name: str) -> dict:
    answer = await node.registry.call("capabilities", {"name": name}, CallContext())
    (shape,) = answer["capabilities"]
    return shape


async def offered(node, name: str) -> None:
    view = await node.wait_view(lambda v: any(p.offers(name) for p in v.peers), 10)
    assert any(peer.offers(name) for peer in view.peers)


class Unused:
    """A client that nobody may call by."""

    async def close(self):
        pass


async def test_a_manifest_of_64_kib_is_seen_whole_on_other_nodes(start):
    spare = len(encode_manifest(command("big", 0).manifest))
    big = command("big", MANIFEST_BYTES_MAX - spare)
    assert len(encode_manifest(big.manifest)) == MANIFEST_BYTES_MAX
    await start(big)
    for node in (await start(), await start()):
        await offered(node, "big")
        own, node.client = node.client, Unused()
        shape = await described(node, "big")
        node.client = own
        assert tuple(shape["examples"]) == big.manifest.examples
        assert shape["description"] == big.manifest.description


async def test_all_manifests_and_what_is_discovered_come_from_gossip(start):
    await start(*collect(count), command("say", 500))
    node = await start()
    await offered(node, "say")
    assert (await described(node, "count"))["input_schema"]["required"] == ["text"]
    await described(node, "say")
    answer = await node.registry.call("capabilities", {}, CallContext())
    assert all("input_schema" in shape for shape in answer["capabilities"])
    found = await node.registry.call("discover", {"query": "say it back"}, CallContext())
    assert found["matches"][0]["description"] == "Say it back. " * 20


async def test_a_manifest_that_its_summary_is_not_of_is_not_believed(start):
    owner, node = await start(), await start()
    told, meant = Manifest(name="count", description="Count letters."), Manifest(name="count")
    entries = own_entries("a", "1", (told,)) | {"doc/count": encode_manifest(meant)}
    owner.gossip._submit(StateSet(entries))
    await offered(node, "count")
    shape = await described(node, "count")
    assert shape["description"] == "Count letters."
    assert "input_schema" not in shape


async def test_more_than_a_node_may_describe_is_refused_and_nothing_changes(start):
    node = await start(command("one", 40_000))
    agent = AgentDefinition.of("agent", command("two", 30_000))
    with pytest.raises(UsageError, match="documents would be"):
        node.worker.add(agent.capabilities)
    assert [manifest.name for manifest in node.worker.manifests()] == ["one"]
    assert node.worker.add([command("three", 10_000)]) == ("three",)
