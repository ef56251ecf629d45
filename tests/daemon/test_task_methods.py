"""What a node makes of the methods of tasks: what it keeps of their parameters, when it looks."""

import asyncio

import msgspec
import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.model import Load
from meshd.routing.request import DEADLINE_MS_MAX
from meshd.rpc.limits import ServerLimits
from meshd.rpc.links import LINK_LIMITS
from meshd.rpc.methods import CallContext
from meshd.tasks.keeper import DEADLINE_MAX_S

pytestmark = pytest.mark.net


@capability
async def plain(x: int) -> int:
    return x


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    node = await start_node(tmp_path, "a", collect(plain))
    yield node
    await node.stop(0)


async def submit(node, **params):
    given = {"input": {"x": 1}, **params}
    return await node.registry.call("task.submit", given, CallContext())


async def test_a_task_keeps_all_that_delegate_takes(node):
    hops = ["ab" * 8]
    told = await submit(
        node, capability="fancy", fallback=["plain"], offers=2, hops=hops, priority=4, to="a"
    )
    kept = node.task_methods.tasks.get(told["id"]).params
    assert (kept["fallback"], kept["offers"], kept["hops"]) == (["plain"], 2, hops)
    ended = await node.registry.call("task.wait", {"id": told["id"]}, CallContext())
    assert (ended["state"], ended["result"]) == ("completed", 1)


def test_no_bound_of_calls_is_below_the_longest_deadline():
    longest_s = DEADLINE_MS_MAX / 1_000
    assert LINK_LIMITS.call_timeout_s == ServerLimits().call_timeout_s == longest_s
    assert longest_s == DEADLINE_MAX_S


async def test_what_nobody_offers_is_not_said_to_do_no_harm(node):
    assert not node.methods.is_idempotent("unknown")


class Waiting:
    """Tasks that wait."""

    def __init__(self):
        self.is_waiting = True
        self.looks = 0

    def look_again(self):
        self.looks += 1

    async def close(self):
        pass


async def test_loads_and_signs_of_life_wake_nobody_who_waits(node):
    kept, node.task_methods._tasks = node.task_methods.tasks, Waiting()
    tasks, see = node.task_methods._tasks, node.task_methods.on_view

    def seen(**changes):
        view = node.view()
        me = msgspec.structs.replace(view.self_peer, **changes)
        see(type(view)(version=1, me=view.me, by_node={view.me: me}, stale_after_s=5.0))
        return tasks.looks

    first = seen(load=Load(slots=4))
    assert seen(load=Load(slots=4, in_flight=3, full=True)) == first
    assert seen(load=Load(slots=4, in_flight=3), rtt_s=0.5) == first
    assert seen(load=Load(slots=4, draining=True)) == first + 1
    assert seen(load=Load(slots=4), capabilities=()) == first + 2
    tasks.is_waiting = False
    assert seen(load=Load(slots=4)) == first + 2
    node.task_methods._tasks = kept


async def test_a_node_that_leaves_without_a_journal_ends_what_waits_and_says_so(node):
    told = await submit(node, capability="nobody")
    waiting = asyncio.create_task(
        node.registry.call("task.wait", {"id": told["id"], "timeout_s": 60}, CallContext())
    )
    await asyncio.sleep(0)
    await node.stop(0.1)
    ended = await asyncio.wait_for(waiting, 5)
    assert (ended["state"], ended["error"]["data"]["definite"]) == ("rejected", True)
