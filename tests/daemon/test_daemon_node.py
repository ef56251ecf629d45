"""A node in this very process, on a machine that does not always answer."""

import asyncio
import threading

import pytest

from meshd.config import load_config
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform
from meshd.errors import PeerError
from meshd.platform import MachineLoad
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net
BUSY = MachineLoad(cpu_fraction=0.5, mem_fraction=0.25)


class FickleMachine(SystemPlatform):
    """Cannot say how busy it is, until it can."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.is_well = False
        self.news = asyncio.Event()

    def sample_load(self) -> MachineLoad:
        self.asked += 1
        self.news.set()
        if self.asked > 1 and not self.is_well:
            raise OSError("no /proc here")
        return BUSY


@pytest.fixture
async def fickle(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = {"bind": "127.0.0.1:0", "mdns": False, "state_dir": str(tmp_path / "state")}
    loaded = load_config({"name": "n", **settings})
    machine = FickleMachine()
    node = Node(loaded.config, (), machine, control_path="")
    await node.start()
    yield node, machine
    await node.stop(0.0)


@pytest.mark.slow
async def test_a_tick_that_fails_is_told_and_does_not_end_the_ticking(fickle):
    node, machine = fickle
    async with asyncio.timeout(10):
        while machine.asked < 3:
            machine.news.clear()
            await machine.news.wait()
        assert "no /proc here" in node.problems["tick"]
        machine.is_well = True
        while node.problems:
            machine.news.clear()
            await machine.news.wait()
    assert node.own_load.now().cpu_fraction == 0.5


async def test_a_call_to_a_node_that_has_stopped_ends_with_an_error_of_ours(fickle):
    node, _ = fickle
    await node.stop(0.0)
    params = {"capability": "echo", "input": {}, "idempotency_key": "k"}
    with pytest.raises(PeerError, match="stopping"):
        await node.registry.call("delegate", params, CallContext())


async def test_who_waits_until_it_is_described_waits_for_what_was_said_last(fickle):
    node, _ = fickle
    held = threading.Event()
    node.gossip._call(held.wait, 10)  # the protocol's thread is busy
    node._describe()
    waiting = asyncio.ensure_future(node.described())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done(), "though what is offered is as before"
    held.set()
    async with asyncio.timeout(5):
        await waiting
    assert node.view().description == node.gossip.descriptions == 2
