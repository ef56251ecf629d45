"""Two daemons with one key, as from a copied state directory."""

import asyncio
import shutil

import pytest
from small_mesh import start_node

from meshd.errors import UsageError
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


async def problems(node):
    status = await node.registry.call("status", {}, CallContext())
    return [p for p in status["problems"] if "key" in p]


async def test_the_copy_takes_no_part_and_both_say_how_to_mend_it(tmp_path):
    other = await start_node(tmp_path, "other")
    first = await start_node(tmp_path, "first", join=[other])
    await first.wait_view(lambda view: len(view.by_node) == 2, 10)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    copy = await start_node(tmp_path, "copy", join=[other])
    assert copy.node_id == first.node_id

    def is_told(_view):
        return "identity" in first.problems and "takes no part" in copy.problems.get("identity", "")

    await copy.wait_view(is_told, 10)
    (told,) = await problems(copy)
    assert f"at {first.address} runs with this node's key and began first" in told
    assert f"remove {tmp_path / 'copy' / 'node.key'}" in told
    (told,) = await problems(first)
    assert f"at {copy.address} runs with this node's key" in told
    assert "give it a state directory of its own" in told
    # Others go on to see the first where it is.
    await other.wait_view(lambda view: view.get(first.node_id).address == first.address, 10)
    with pytest.raises(UsageError, match="takes no part"):
        await copy.happenings.emit("x", b"", coalesce=False)
    async with asyncio.timeout(3.0):
        assert await copy.leave(0.0) == 0
        await copy.stop(0.0)
    for node in (first, other):
        await node.stop(0.0)
