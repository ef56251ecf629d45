"""A program's link to a daemon in the same process: what is told over it, and when."""

import asyncio
import threading

import pytest
from small_mesh import start_node

from meshd import Mesh, capability
from meshd.errors import (
    MeshError,
    NoCandidateError,
    NoDaemonError,
    PeerError,
    UsageError,
)

pytestmark = pytest.mark.net


@pytest.fixture
async def daemon(tmp_path, monkeypatch):
    """A function that starts the daemon, or starts it anew at the same control socket."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    running = []

    async def start():
        while running:
            await running.pop().stop(0)
        running.append(await start_node(tmp_path, control_path=str(tmp_path / "a.sock")))
        return running[0]

    yield start
    while running:
        await running.pop().stop(0)


def program(node, name="program"):
    return Mesh(name, control=node.control_path)


async def hold_on(what):
    async with asyncio.timeout(5):
        return await what


async def test_a_caller_who_is_cancelled_cancels_the_work(daemon):
    began, ended = asyncio.Event(), asyncio.Event()
    mesh = program(await daemon())

    @mesh.agent()
    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with mesh:
        call = asyncio.create_task(mesh.call("endless"))
        await hold_on(began.wait())
        call.cancel()
        await hold_on(ended.wait())
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_program_that_goes_while_it_calls_takes_its_capabilities_along(daemon):
    node = await daemon()
    mesh = program(node)

    @mesh.agent()
    async def endless() -> None:
        await asyncio.Event().wait()

    await mesh.start()
    call = asyncio.create_task(mesh.call("endless"))
    while not node.worker.load().in_flight:
        await asyncio.sleep(0)
    await mesh._link._channel.close()
    while node.worker.manifests():
        await asyncio.sleep(0)
    await mesh.stop()
    with pytest.raises(PeerError):
        await call


async def test_work_of_before_a_restart_is_not_taken_for_new_work(daemon):
    began, release = asyncio.Event(), threading.Event()
    mesh = program(await daemon())
    loop = asyncio.get_running_loop()

    @mesh.agent()
    def stuck() -> None:
        loop.call_soon_threadsafe(began.set)
        release.wait(10)

    @mesh.agent()
    async def quick() -> str:
        return "done"

    mesh._slots = 2
    async with mesh:
        call = asyncio.create_task(mesh.call("stuck"))
        await hold_on(began.wait())
        await daemon()
        with pytest.raises(MeshError):
            await call
        try:
            assert await mesh.call("quick") == "done"
        finally:
            release.set()


async def test_a_later_offer_that_the_daemon_refuses_is_told_once_and_spoils_nothing(daemon):
    node = await daemon()
    async with program(node, "first") as first, program(node, "second") as second:

        @first.agent()
        async def taken() -> str:
            return "first"

        assert await first.call("taken") == "first"

        @second.agent(capability_name="taken")
        async def also_taken() -> str:
            return "second"

        with pytest.raises(UsageError, match="'taken' is offered here already"):
            await second.peers()

        @second.agent()
        async def free() -> str:
            return "second"

        assert await second.call("free") == "second"
        assert await second.call("taken") == "first"
        lost = asyncio.Event()
        second._link._channel.on_closed(lambda _: lost.set())
        await second._link._channel.close()
        await hold_on(lost.wait())
        assert await second.call("free") == "second"


async def test_scripts_offer_from_their_own_thread(daemon):
    node = await daemon()

    def script():
        with program(node) as mesh:

            @mesh.agent()
            def add(one: int, other: int) -> int:
                return one + other

            return mesh.call_sync("add", {"one": 1, "other": 2})

    assert await asyncio.to_thread(script) == 3


async def test_what_is_offered_while_the_program_attaches_is_offered(daemon):
    node = await daemon()
    mesh = program(node)
    async with mesh:

        @mesh.agent()
        async def before() -> str:
            return "before"

        await mesh.call("before")
        told = asyncio.Event()
        register = mesh._link._register

        async def slowly(channel, names):
            await register(channel, names)
            if not told.is_set():
                told.set()
                await asyncio.sleep(0)

        mesh._link._register = slowly
        await mesh._link._channel.close()
        await hold_on(told.wait())

        @mesh.agent()
        async def meanwhile() -> str:
            return "meanwhile"

        assert await mesh.call("meanwhile") == "meanwhile"


async def test_a_lost_daemon_is_an_error_and_no_accident(daemon, monkeypatch):
    monkeypatch.setattr("meshd.daemon.link.AWAY_S", 0.05)
    node = await daemon()
    async with program(node) as mesh:
        await node.stop(0)
        with pytest.raises(NoDaemonError, match="is away"):
            await mesh.call("anything")


async def test_what_is_offered_while_the_program_starts_is_offered(daemon):
    mesh = program(await daemon())
    starting = asyncio.create_task(mesh.start())
    await asyncio.sleep(0)

    @mesh.agent()
    async def early() -> str:
        return "early"

    await starting
    assert await mesh.call("early") == "early"
    await mesh.stop()


async def test_a_daemon_that_is_older_than_its_program_is_asked_in_the_way_that_it_knows(daemon):
    node = await daemon()
    del node.registry._entries["call"]

    @capability
    def double(n: int) -> int:
        return 2 * n

    mesh = program(node)
    mesh.offer(double)
    async with mesh:
        assert await hold_on(mesh.call("double", {"n": 4})) == 8
        with pytest.raises(NoCandidateError):
            await hold_on(mesh.call("nobody_offers_this", {}))
