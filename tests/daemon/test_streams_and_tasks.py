"""Partial results and tasks across real daemons: by the SDK, the command line and plain HTTP."""

import asyncio
import json
import subprocess
import sys

import aiohttp
import pytest

from meshd import Mesh, progress
from meshd.errors import Code, DeadlineError, NoCandidateError, PeerError
from meshd.routing.settings import HOPS_MAX
from meshd.work.idempotency import KEYS_MAX

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("place"),
]  # fmt: skip


def attached(daemon, name="program", **choices):
    return Mesh(name, control=daemon.control.path, **choices)


def offering(daemon, name="worker"):
    """A program with a stream, a slow task and a gate, attached to a daemon."""
    mesh = attached(daemon, name)
    mesh.gate, mesh.began = asyncio.Event(), asyncio.Semaphore(0)
    mesh.counted = asyncio.Semaphore(0)

    @mesh.agent()
    async def count(to: int):
        try:
            for number in range(to):
                progress(number / to, f"at {number}")
                yield number
        finally:
            mesh.counted.release()

    @mesh.agent()
    async def gated(text: str) -> str:
        mesh.began.release()
        await mesh.gate.wait()
        return text.upper()

    return mesh


async def cli(site, daemon, *arguments, code=0):
    command = [sys.executable, "-m", "meshd", "--socket", daemon.control.path, *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, env=site.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done


async def test_a_stream_comes_part_by_part_through_two_daemons(site):
    a, b = site.start_mesh("a", "b")
    told = []
    async with offering(b) as worker, attached(a, "caller") as caller:
        await asyncio.to_thread(a.offers, "count")
        parts = [
            part
            async for part in caller.stream(
                "count", {"to": 5}, on_progress=lambda fraction, text: told.append(text)
            )
        ]
        assert parts == [0, 1, 2, 3, 4]
        assert "at 4" in told
        assert await caller.call("count", {"to": 3}) == [0, 1, 2], "in one for who wants it so"
        for _ in range(2):
            await asyncio.wait_for(worker.counted.acquire(), 20)
        async for part in caller.stream("count", {"to": 10**9}):
            if part == 100:
                break
        # Whoever leaves cancels the work.
        await asyncio.wait_for(worker.counted.acquire(), 20)
        with pytest.raises(DeadlineError):
            await anext(caller.stream("gated", "x", deadline_s=0.2))


async def test_progress_that_its_reader_cannot_take_ends_the_stream_and_no_other_call(site):
    (a,) = site.start_mesh("a")

    def cannot(fraction, text):
        raise ZeroDivisionError("mine")

    async with offering(a) as worker, attached(a, "caller") as caller:
        beside = asyncio.create_task(caller.call("gated", {"text": "x"}))
        await asyncio.wait_for(worker.began.acquire(), 20)
        with pytest.raises(ZeroDivisionError, match="mine"):
            async for _ in caller.stream("count", {"to": 10**9}, on_progress=cannot):
                pass
        await asyncio.wait_for(worker.counted.acquire(), 20)
        worker.gate.set()
        assert await beside == "X"


async def test_a_stream_for_scripts_and_the_command_line_and_http(site):
    (a,) = site.start_mesh("a")
    async with offering(a):

        def script():
            with attached(a, "script") as mesh:
                return list(mesh.stream_sync("count", {"to": 4}))

        assert await asyncio.to_thread(script) == [0, 1, 2, 3]
        done = await cli(site, a, "call", "--stream", "count", "to=3")
        assert done.stdout == "0\n1\n2\n"
        assert "at 2" in done.stderr
        body = {"jsonrpc": "2.0", "id": 7, "method": "delegate",
                "params": {"capability": "count", "input": {"to": 2}}}  # fmt: skip
        headers = {"Accept": "text/event-stream"}
        url = f"http://{a.address}/rpc"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers=headers) as answer,
        ):
            assert answer.headers["Content-Type"] == "text/event-stream"
            events = [
                json.loads(line.removeprefix(b"data: "))
                async for line in answer.content
                if line.strip()
            ]
        assert [e["params"]["value"] for e in events if e.get("method") == "part"] == [0, 1]
        assert events[-1]["id"] == 7
        assert events[-1]["result"]["peer_result"]["result"] is None


async def test_a_task_is_handed_in_here_and_fetched_elsewhere(site):
    a, b = site.start_mesh("a", "b")
    async with offering(b) as worker, attached(a, "caller") as caller:
        task = await caller.submit("gated", {"text": "later"})
        await asyncio.wait_for(worker.began.acquire(), 20)
        assert (await task.status()).state == "working"
        with pytest.raises(DeadlineError, match="goes on"):
            await task.result(0.05)
        shown = await cli(site, b, "task", "show", task.id, "--json")
        assert json.loads(shown.stdout)["state"] == "working"
        events = caller.task(task.id).events()
        assert (await anext(events))["state"] == "working"
        worker.gate.set()
        assert await task.result(20) == "LATER"
        assert [event["state"] async for event in events][-1] == "completed"
        assert (await cli(site, b, "task", "wait", task.id)).stdout == "LATER\n"
        assert [status.id for status in await caller.tasks("completed")] == [task.id]


async def test_tasks_by_the_command_line(site):
    (a,) = site.start_mesh("a")
    async with offering(a) as worker:
        handed = (await cli(site, a, "call", "--detach", "gated", "text=x")).stdout.strip()
        await asyncio.wait_for(worker.began.acquire(), 20)
        listed = (await cli(site, a, "task", "list", "--state", "working")).stdout
        assert handed in listed
        assert "gated" in listed
        waited = await cli(site, a, "task", "wait", handed, "--timeout", "100ms", code=5)
        assert "goes on" in waited.stderr
        assert (await cli(site, a, "task", "cancel", handed)).stdout == "cancelled\n"
        gone = f"{handed[:17]}{'0' * 16}"
        assert "no task" in (await cli(site, a, "task", "show", gone, code=4)).stderr
        both = await cli(site, a, "call", "--detach", "--stream", "gated", code=2)
        assert "exclude each other" in both.stderr
        wrong = await cli(site, a, "task", "show", "nonsense", code=2)
        assert "wrong parameters" in wrong.stderr
        stranger = f"{'f' * 16}-{'0' * 16}"
        assert "not in the mesh" in (await cli(site, a, "task", "show", stranger, code=4)).stderr


async def test_a_task_waits_for_somebody_who_can(site):
    (a,) = site.start_mesh("a")
    async with attached(a, "caller") as caller:
        task = await caller.submit("count", {"to": 2})
        with pytest.raises(NoCandidateError):
            await caller.call("count", {"to": 2})
        async with offering(a):
            assert await task.result(30) == [0, 1]


async def test_accepted_work_survives_the_death_of_the_node_that_accepted_it(site):
    worker = site.start("w")
    entry = site.start("e", "--journal", join=[worker])
    async with offering(worker) as program:
        async with attached(entry, "caller") as caller:
            task = await caller.submit("gated", {"text": "kept"})
            await asyncio.wait_for(program.began.acquire(), 20)
        entry.kill()
        again = site.start("e", "--journal", join=[worker])
        async with attached(again, "caller") as caller:
            program.gate.set()
            assert await caller.task(task.id).result(40) == "KEPT"
        # The run that was under way was joined: nothing began a second time.
        assert program.began.locked()


async def test_accepted_work_survives_a_restart_of_the_node_that_accepted_it(site):
    worker = site.start("w")
    entry = site.start("e", "--journal", "--drain", "100ms", join=[worker])
    async with offering(worker) as program:
        async with attached(entry, "caller") as caller:
            task = await caller.submit("gated", {"text": "kept"})
            await asyncio.wait_for(program.began.acquire(), 20)
        assert await asyncio.to_thread(entry.stop) == 0
        again = site.start("e", "--journal", join=[worker])
        async with attached(again, "caller") as caller:
            program.gate.set()
            assert await caller.task(task.id).result(40) == "KEPT"
        assert program.began.locked(), "nothing began a second time"


async def test_work_that_its_worker_has_forgotten_is_not_done_twice(site):
    worker = site.start("w")
    entry = site.start("e", "--journal", join=[worker])
    async with offering(worker) as program:
        async with attached(entry, "caller") as caller:
            task = await caller.submit("gated", {"text": "once"})
            await asyncio.wait_for(program.began.acquire(), 20)
        entry.kill()
        program.gate.set()
        async with attached(worker, "others") as others:
            for first in range(0, KEYS_MAX + 8, 8):
                keys = [f"k{number}" for number in range(first, first + 8)]
                await asyncio.gather(
                    *(others.call("count", {"to": 0}, idempotency_key=key) for key in keys)
                )
        again = site.start("e", "--journal", join=[worker])
        async with attached(again, "caller") as caller:
            with pytest.raises(PeerError, match="may have been done") as caught:
                await caller.task(task.id).result(40)
            assert not caught.value.definite
        assert program.began.locked(), "nothing began a second time"


async def test_work_that_hands_itself_in_again_comes_to_an_end(site):
    (a,) = site.start_mesh("a")
    mesh = attached(a)

    @mesh.agent()
    async def again(step: int) -> str:
        return (await mesh.submit("again", {"step": step + 1})).id

    async with mesh:

        async def follow(task_id):
            for _ in range(HOPS_MAX + 1):
                task_id = await mesh.task(task_id).result(20)

        first = await mesh.submit("again", {"step": 0})
        with pytest.raises(PeerError, match="passed on") as caught:
            await follow(first.id)
        assert caught.value.code == Code.CYCLE


async def test_without_a_journal_a_task_is_gone_with_its_node_and_that_is_said(site):
    worker = site.start("w")
    entry = site.start("e", join=[worker])
    async with offering(worker):
        async with attached(entry, "caller") as caller:
            task = await caller.submit("count", {"to": 1})
            await task.result(20)
        entry.kill()
        again = site.start("e", join=[worker])
        async with attached(again, "caller") as caller:
            with pytest.raises((NoCandidateError, PeerError), match="no task"):
                await caller.task(task.id).result(5)
