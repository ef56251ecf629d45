"""What a program offers can be called by its very next line."""

import asyncio

import pytest

from meshd import Mesh
from meshd.config import load_config
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform
from meshd.errors import MeshError, NoDaemonError

pytestmark = pytest.mark.net


@pytest.fixture
def lone(tmp_path, monkeypatch):
    """Settings of a node that nobody finds."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return {"mdns": False, "bind": "127.0.0.1:0", "state_dir": str(tmp_path / "state")}


async def test_an_embedded_node_answers_a_call_right_after_its_start(lone):
    mesh = Mesh("alone", embed=True, **lone)

    @mesh.agent("speaker")
    def shout(text: str) -> str:
        return text.upper()

    async with mesh:
        assert await mesh.call("shout", {"text": "a"}) == "A"


async def test_what_is_offered_later_can_be_called_at_once(lone):
    async with Mesh("alone", embed=True, **lone) as mesh:

        @mesh.agent("speaker")
        def shout(text: str) -> str:
            return text.upper()

        assert await mesh.call("shout", {"text": "a"}) == "A"


async def test_a_node_tells_how_much_work_it_hands_out(lone):
    mesh = Mesh("alone", embed=True, **lone)

    @mesh.agent("speaker")
    def shout(text: str) -> str:
        return text.upper()

    async with mesh:
        node = mesh._link.node
        assert node.own_load.now().dispatch_per_s == 0
        await mesh.call("shout", {"text": "a"})
        assert node.own_load.now().dispatch_per_s > 0


async def test_a_program_that_asks_again_and_again_lets_the_loop_learn_that_its_daemon_is_gone(
    lone, tmp_path
):
    path = str(tmp_path / "control.sock")
    config = load_config({"name": "short-lived", **lone}, {}, [], hostname="here").config
    node = Node(config, (), SystemPlatform(), control_path=path)
    await node.start()
    async with Mesh("program", control=path) as mesh:
        stopping = asyncio.create_task(node.stop(0.0))
        seen = []
        while not stopping.done() or not isinstance(seen[-1], NoDaemonError):
            assert len(seen) < 10_000, seen[-3:]
            try:
                seen.append(await mesh._request("peers", {}, 0.05))
            except MeshError as error:
                seen.append(error)
        await stopping
