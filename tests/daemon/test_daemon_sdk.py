"""Programs in the mesh: attached to a daemon or embedding a node, offering and calling."""

import asyncio
import os
from pathlib import Path

import pytest
from processes import HERE

from meshd import Mesh, capability
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    NoDaemonError,
    PeerError,
    UsageError,
)
from meshd.work.origin import ORIGIN

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("place"),
]  # fmt: skip
SERVED = ("--capability", "served")
PROGRAM = str(HERE / "attached_program.py")


def attached(daemon, name="program", **choices):
    return Mesh(name, control=daemon.control.path, **choices)


def embedded(name, *seeds, **choices):
    settings = {"bind": "127.0.0.1:0", "mdns": False, "profile": "local"} | choices
    return Mesh(name, embed=True, join=[seed.address for seed in seeds], **settings)


async def ask(daemon, capability_name, value=None, timeout_s=20.0, **params):
    """Delegate by a daemon's control socket, from a thread."""
    given = {"capability": capability_name, "input": value, **params}
    return await asyncio.to_thread(daemon.call, "delegate", given, timeout_s)


# Offering


async def test_an_attached_program_serves_the_whole_mesh(site):
    a, b = site.start_mesh("a", "b")
    mesh = attached(a)

    @mesh.agent("greeter", tags=["polite"])
    async def greet(name: str) -> str:
        """Greet someone."""
        return f"hello {name}"

    @mesh.agent()
    def pid() -> int:
        return os.getpid()

    async with mesh:
        await asyncio.to_thread(b.offers, "greet")
        answer = await ask(b, "greet", {"name": "bo"})
        assert answer["peer_result"]["result"] == "hello bo"
        assert answer["delegated_to"]["agent"] == "greeter"
        assert answer["delegated_to"]["node"] == "a"
        assert (await ask(b, "pid"))["peer_result"]["result"] == os.getpid()
        assert (await ask(b, "pid"))["delegated_to"]["agent"] == "program"
        manifest = await mesh.manifest("greet")
        assert (manifest.description, manifest.tags) == ("Greet someone.", ("polite",))
    await asyncio.to_thread(b.offers, "greet", 0)


async def test_classes_and_objects_are_agents(site):
    daemon = site.start("a")
    mesh = attached(daemon)

    @mesh.agent("counter")
    class Counter:
        def __init__(self) -> None:
            self.value = 0

        @capability
        def count(self) -> int:
            self.value += 1
            return self.value

    class Echo:
        @capability("repeat")
        async def say(self, text: str) -> str:
            return text

    mesh.offer(Echo())
    async with mesh:
        assert [await mesh.call("count") for _ in range(3)] == [1, 2, 3]
        assert await mesh.call("repeat", {"text": "x"}) == "x"
        assert (await mesh.delegate("count"))["peer_result"]["agent"] == "counter"


async def test_what_is_offered_later_appears_elsewhere(site):
    a, b = site.start_mesh("a", "b")

    @capability
    def late() -> str:
        return "late"

    async with attached(a) as mesh:
        assert not await mesh.discover("late")
        assert mesh.offer(late) == ("late",)
        assert await mesh.call("late") == "late"
        await asyncio.to_thread(b.offers, "late")
        assert (await ask(b, "late"))["peer_result"]["result"] == "late"
        with pytest.raises(UsageError, match="already offered here: late"):
            mesh.offer(late)


async def test_a_name_that_another_program_has_is_refused(site):
    daemon = site.start("a", *SERVED)

    @capability
    def shout(text: str) -> str:
        return text

    mesh = attached(daemon)
    mesh.offer(shout)
    with pytest.raises(UsageError, match="shout"):
        await mesh.start()


# The life of program and daemon


async def test_a_killed_program_takes_its_capabilities_and_its_running_call_along(site):
    a, b = site.start_mesh("a", "b")
    program = site.program(PROGRAM, a.control.path, "mortal")
    await asyncio.to_thread(b.offers, "once")
    call = asyncio.create_task(ask(b, "once", {"seconds": 60}))
    await asyncio.to_thread(
        b.until, lambda: b.row("a")["load"]["in_flight"] == 1, "the running task"
    )
    program.kill()
    with pytest.raises(PeerError, match=r"went away|got lost") as caught:
        await call
    assert not caught.value.definite
    await asyncio.to_thread(b.offers, "once", 0)
    with pytest.raises(NoCandidateError):
        await ask(b, "once", {"seconds": 0})


async def test_an_idempotent_call_of_a_killed_program_moves_on(site):
    a, b, c = site.start_mesh("a", "b", "c")
    first = site.program(PROGRAM, b.control.path, "first")
    await asyncio.to_thread(a.offers, "again")
    call = asyncio.create_task(ask(a, "again", {"seconds": 6}))
    await asyncio.to_thread(
        a.until, lambda: a.row("b")["load"]["in_flight"] == 1, "the running task"
    )
    second = site.program(PROGRAM, c.control.path, "second")
    await asyncio.to_thread(a.offers, "again", 2)
    first.kill()
    answer = await call
    assert answer["peer_result"]["result"] == second.pid
    assert [attempt["name"] for attempt in answer["attempts"]] == ["b", "c"]


async def test_a_program_attaches_again_after_its_daemon_was_started_anew(site):
    a, b = site.start_mesh("a", "b")
    mesh = attached(a)

    @mesh.agent()
    def here() -> str:
        return "here"

    async with mesh:
        await asyncio.to_thread(b.offers, "here")
        a.kill()
        await asyncio.to_thread(b.offers, "here", 0)
        with pytest.raises(MeshError):
            await ask(b, "here")
        call = asyncio.create_task(mesh.call("here"))
        again = await asyncio.to_thread(site.start, "a", join=[b])
        assert await call == "here"
        await asyncio.to_thread(b.offers, "here")
        assert (await ask(b, "here"))["peer_result"]["result"] == "here"
        assert again.logged("attached")


async def test_a_cancelled_call_is_cancelled_in_the_program(site):
    a, b = site.start_mesh("a", "b")
    mesh = attached(a)
    began, cancelled = asyncio.Event(), asyncio.Event()

    @mesh.agent()
    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with mesh:
        await asyncio.to_thread(b.offers, "endless")
        with pytest.raises(DeadlineError):
            await ask(b, "endless", deadline_ms=500)
        async with asyncio.timeout(5):
            await cancelled.wait()
        other = attached(b, "other")
        for leave in (lambda call: call.cancel(), lambda call: other.stop()):
            # Whether its caller is cancelled or goes away as a whole: it is told on.
            began.clear()
            cancelled.clear()
            await other.start()
            call = asyncio.create_task(other.call("endless", deadline_s=60))
            async with asyncio.timeout(5):
                await began.wait()
            left = leave(call)
            if left is not True:
                await left
            with pytest.raises((MeshError, asyncio.CancelledError)):
                await call
            async with asyncio.timeout(5):
                await cancelled.wait()
            await other.stop()


async def test_an_embedded_node_is_part_of_the_daemons_mesh(site):
    a, b = site.start_mesh("a", "b", flags=SERVED)
    mesh = embedded("inside", a)

    @mesh.agent()
    def inner(number: int) -> int:
        return number + 1

    async with mesh:
        await asyncio.to_thread(b.sees, a="alive", b="alive", inside="alive")
        await asyncio.to_thread(b.offers, "inner")
        assert (await ask(b, "inner", {"number": 1}))["peer_result"]["result"] == 2
        assert await mesh.call("inner", {"number": 2}) == 3
        assert await mesh.call("shout", {"text": "x"}, to="b") == "X"
        assert {row["name"] for row in await mesh.peers()} == {"a", "b", "inside"}
        (found, *_) = await mesh.discover("say a text loudly")
        assert (found.capability, len(found.nodes)) == ("shout", 2)
    await asyncio.to_thread(b.sees, a="alive", b="alive", inside="left")


def test_scripts_that_do_not_await_have_the_same_methods(site):
    daemon = site.start("a", *SERVED)
    with attached(daemon, "script") as mesh:
        assert mesh.call_sync("shout", {"text": "x"}) == "X"
        assert mesh.delegate_sync("shout", {"text": "x"})["delegated_to"]["node"] == "a"
        assert mesh.discover_sync("loudly")[0].capability == "shout"
        assert [row["name"] for row in mesh.peers_sync()] == ["a"]
        with pytest.raises(NoCandidateError):
            mesh.call_sync("absent")
    with pytest.raises(UsageError, match="not started"):
        mesh.call_sync("shout", {"text": "x"})


def test_without_a_choice_a_program_attaches_where_a_daemon_runs_and_else_embeds(site):
    settings = {"bind": "127.0.0.1:0", "mdns": False}
    with Mesh("alone", **settings) as mesh:
        assert [(row["name"], row["self"]) for row in mesh.peers_sync()] == [("alone", True)]
    site.start("a")
    with Mesh("guest", **settings) as mesh:
        assert [(row["name"], row["self"]) for row in mesh.peers_sync()] == [("a", True)]


# Calls within calls


async def test_work_in_a_circle_is_refused(site):
    a, b = site.start_mesh("a", "b")
    left, right = attached(a, "left"), attached(b, "right")
    hops = {}

    @left.agent()
    async def to_right(depth: int) -> int:
        hops[depth] = len(ORIGIN.get().hops)
        return await left.call("to_left", {"depth": depth + 1})

    @right.agent()
    async def to_left(depth: int) -> int:
        hops[depth] = len(ORIGIN.get().hops)
        return await right.call("to_right", {"depth": depth + 1})

    async with left, right:
        await asyncio.to_thread(a.offers, "to_left")
        await asyncio.to_thread(b.offers, "to_right")
        with pytest.raises(PeerError) as caught:
            await ask(a, "to_right", {"depth": 0})
    assert caught.value.code == Code.CYCLE
    assert not caught.value.definite
    # There and back, but not there again: the chain is known wherever it goes.
    assert hops == {0: 1, 1: 2}


async def test_calls_within_a_call_have_no_more_time_than_it(site):
    a, b = site.start_mesh("a", "b")
    outer, inner = attached(a, "outer"), attached(b, "inner")
    told, ended = [], asyncio.Event()

    @outer.agent()
    async def ask_inner() -> str:
        return await outer.call("think", deadline_s=600)

    @outer.agent()
    def ask_inner_from_a_thread() -> str:
        return outer.call_sync("think")

    @inner.agent()
    async def think() -> str:
        deadline = ORIGIN.get().deadline
        assert deadline is not None
        told.append(deadline.remaining(asyncio.get_running_loop().time()))
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async with outer, inner:
        await asyncio.to_thread(a.offers, "think")
        for name in ("ask_inner", "ask_inner_from_a_thread"):
            ended.clear()
            with pytest.raises(DeadlineError):
                await ask(a, name, deadline_ms=1_000)
            async with asyncio.timeout(5):
                await ended.wait()
    assert [0 < left_s < 1.0 for left_s in told] == [True, True]


# Bad handlers


async def test_handlers_that_block_do_not_kill_their_node(site):
    a, b = site.start_mesh("a", "b", flags=(*SERVED, "--slots", "2"))
    jams = [asyncio.create_task(ask(a, "jam", {"seconds": 2.0}, to="b"))]
    jams += [asyncio.create_task(ask(a, "nap", {"seconds": 2.0}, to="b"))]
    # In profile local a dead node is found in about a second.
    done, _ = await asyncio.wait(jams)
    assert {task.result()["peer_result"]["result"] for task in done} == {b.pid}
    assert not a.logged("member_dead")
    assert not a.logged("member_suspect")


async def test_errors_are_typed_and_say_whether_anything_happened(site):
    a, b = site.start_mesh("a", "b", flags=(*SERVED, "--slots", "1"))
    async with attached(a) as mesh:
        with pytest.raises(NoCandidateError) as caught:
            await mesh.call("absent")
        assert caught.value.definite
        with pytest.raises(UsageError, match="text") as caught:
            await mesh.call("shout", {"txt": "x"}, to="b")
        assert caught.value.definite
        with pytest.raises(PeerError, match="ValueError: oh") as caught:
            await mesh.call("fail", {"text": "oh"}, to="b")
        assert not caught.value.definite
        with pytest.raises(DeadlineError) as caught:
            await mesh.call("doze", {"seconds": 30}, to="b", deadline_s=0.5)
        assert not caught.value.definite
        busy = asyncio.create_task(mesh.call("doze", {"seconds": 3}, to="b"))
        await asyncio.to_thread(
            a.until, lambda: a.row("b")["load"]["in_flight"] == 1, "the running task"
        )
        with pytest.raises((BusyError, DeadlineError)) as caught:
            await mesh.call("doze", {"seconds": 0}, to="b", deadline_s=0.3)
        assert caught.value.definite
        assert await busy == b.pid
    with pytest.raises(UsageError, match="not started"):
        await mesh.call("shout", {"text": "x"})
    with pytest.raises(NoDaemonError):
        await Mesh(control=Path(site.path) / "nowhere.sock").start()
    with pytest.raises(UsageError):
        Mesh(embed=True, node="a")
