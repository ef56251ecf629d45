"""What a running node reads again: all of it or nothing, finished files, the newest read."""

import asyncio
import threading

import msgspec
import pytest
from small_mesh import start_node

from meshd import Mesh
from meshd.config import load_config
from meshd.daemon.event_commands import EventCommands
from meshd.daemon.lifecycle import reload_all
from meshd.daemon.routing_watch import POLL_S, SETTLE_S, RoutingWatch
from meshd.errors import UsageError

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]

NEW = """
[routing]
retries = 0

[[handler]]
query = "{query}"
command = ["true"]

[[capability]]
name = "{capability}"
command = ["cat"]
"""


class Watched:
    """One node whose policy file is `policies`, the settings that hold, and its watch."""

    def __init__(self, node, policies, more):
        self.node, self.policies = node, policies
        self.flags = {"routing_policy_file": policies, "config": more}
        self.more = more
        self.watch = RoutingWatch(node, self.reread)

    def reread(self):
        return load_config(self.flags).config

    def write(self, retries):
        """Another file in the place of the one before, so that no mark is like one before."""
        new = self.policies.with_name("new")
        new.write_text(f"[default]\nretries = {retries}\n")
        new.replace(self.policies)

    @property
    def retries(self):
        return self.node.dispatcher.settings_for("echo").retries

    @property
    def problem(self):
        return self.node.problems.get("routing", "")

    async def looks(self, count):
        return [await self.watch._look() for _ in range(count)]


@pytest.fixture
async def watched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    policies, more = tmp_path / "p.toml", tmp_path / "c.toml"
    policies.write_text("[default]\nretries = 1\n")
    more.write_text("")
    control = str(tmp_path / "a.sock")
    node = await start_node(tmp_path, control_path=control, routing_policy_file=policies)
    made = Watched(node, policies, more)
    await made.looks(2)
    assert made.retries == 1
    yield made
    await made.watch.stop()
    await node.stop(0)


async def test_a_reload_takes_all_of_it_or_nothing_where_an_attached_program_has_a_name(watched):
    node = watched.node
    commands = EventCommands(node)
    mesh = Mesh("program", control=node.control_path)

    @mesh.agent()
    def taken(x: int) -> int:
        return x

    mesh.on_query("answered")(lambda _query: "by the program")

    def held():
        names = sorted(manifest.name for manifest in node.worker.manifests())
        return names, sorted(node.happenings._answerers), watched.retries

    watched.flags = {"config": watched.more}
    async with mesh:
        before = held()
        assert before[1:] == (["answered"], 1)
        for query, capability in (("free", "taken"), ("answered", "free")):
            watched.more.write_text(NEW.format(query=query, capability=capability))
            with pytest.raises(UsageError, match=r"is offered here already|another program answer"):
                reload_all(node, commands, watched.watch)
            assert held() == before
        watched.more.write_text(NEW.format(query="free", capability="free"))
        changed, routing = reload_all(node, commands, watched.watch)
        assert changed == ("free",)
        assert "retries" in routing
        assert held() == (sorted([*before[0], "free"]), ["answered", "free"], 0)
    await commands.stop()


async def test_a_reload_is_refused_whole_where_routing_cannot_hold(watched):
    routing = watched.reread().routing
    wrong = msgspec.structs.replace(routing, tiers={**routing.tiers, "least": 0.99})
    with pytest.raises(UsageError, match="must go down"):
        watched.watch.check(wrong)
    assert "must go down" in watched.problem
    assert watched.retries == 1


async def test_a_policy_is_not_lost_where_another_file_was_wrong_at_that_moment(watched):
    watched.more.write_text("[routing]\nhops_max = 'many'\n")
    watched.write(retries=2)
    await watched.looks(2)
    assert watched.retries == 1
    assert "hops_max" in watched.problem
    watched.more.write_text("")
    await watched.looks(1)
    assert watched.retries == 2
    assert not watched.problem


async def test_a_problem_is_over_once_the_old_file_is_back(watched):
    old = watched.policies.with_name("old")
    old.hardlink_to(watched.policies)
    watched.write(retries=9)
    await watched.looks(2)
    assert "default.retries" in watched.problem
    old.replace(watched.policies)
    await watched.looks(2)
    assert not watched.problem
    assert watched.retries == 1


async def test_a_file_that_is_still_being_written_is_no_policy(watched):
    watched.policies.write_text("")
    assert await watched.looks(1) == [SETTLE_S]
    watched.policies.write_text("[default]\n")
    assert await watched.looks(1) == [SETTLE_S]
    watched.policies.write_text("[default]\nretries = 2\n")
    assert await watched.looks(1) == [SETTLE_S]
    assert watched.retries == 1
    assert await watched.looks(2) == [POLL_S, POLL_S]
    assert watched.retries == 2


async def test_a_file_that_is_read_is_read_once(watched):
    calls = []
    watched.watch._reread = lambda: calls.append(1) or watched.reread()
    watched.write(retries=0)
    await watched.looks(6)
    assert (len(calls), watched.retries) == (1, 0)


async def test_the_watch_survives_whatever_goes_wrong_and_says_so(watched):
    def fails():
        raise RuntimeError("a disk of dreams")

    watched.watch._reread = fails
    watched.write(retries=2)
    await watched.looks(2)
    assert "not to be read: RuntimeError('a disk of dreams')" in watched.problem
    watched.watch._reread = watched.reread
    await watched.looks(1)
    assert watched.retries == 2
    assert not watched.problem


@pytest.mark.parametrize("newer", ["read", "failure"])
async def test_a_read_that_began_before_a_reload_is_dropped(watched, newer):
    begun, go = threading.Event(), threading.Event()
    watched.write(retries=2)
    older = watched.reread()

    def slow():
        begun.set()
        assert go.wait(10)
        return older

    watched.watch._reread = slow
    await watched.looks(1)
    look = asyncio.create_task(watched.watch._look())
    assert await asyncio.to_thread(begun.wait, 10)
    watched.watch._reread = watched.reread
    watched.write(retries=3 if newer == "read" else 9)
    if newer == "read":
        watched.watch.use(watched.watch.read().routing)
    else:
        with pytest.raises(UsageError):
            watched.watch.read()
    go.set()
    await look
    assert watched.retries == (3 if newer == "read" else 1)
    assert bool(watched.problem) == (newer == "failure")


async def test_a_fault_of_a_read_that_began_before_a_reload_is_not_told(watched):
    begun, go = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go.wait(10)
        raise UsageError("half of a file")

    watched.watch._reread = slow
    watched.write(retries=2)
    await watched.looks(1)
    look = asyncio.create_task(watched.watch._look())
    assert await asyncio.to_thread(begun.wait, 10)
    watched.watch.use(watched.reread().routing)
    go.set()
    await look
    assert not watched.problem
    assert watched.retries == 2
