"""Functions run in other processes and on a cluster, and what becomes of those that end badly."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from meshd.capability.definition import Declaration, capability, define
from meshd.errors import BusyError, PeerError, UsageError
from meshd.work import pools as pools_module
from meshd.work.executors import Tools, execute, prepare
from meshd.work.pools import Pools, check_executor, open_executor

HERE = Path(__file__).parent
DEADLINE_S = 30.0


class OwnError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def where(text: str) -> dict[str, object]:
    return {"text": text, "pid": os.getpid()}


def fail(how: str) -> None:
    if how == "own":
        raise OwnError(1, 2)
    if how == "refuse":
        raise UsageError("not this", hint="another")
    if how == "busy":
        raise BusyError("later")
    if how == "exit":
        sys.exit("bye")
    if how == "die":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def hang(port: int) -> None:
    """Say that it runs; the connection ends with the process."""
    with socket.create_connection(("127.0.0.1", port)) as there:
        there.sendall(b"x")
        time.sleep(60)  # plays work: it does not end by itself


def unlike_json() -> object:
    return object()


def defined(function, executor="process"):
    return define(function, Declaration(executor=executor))


@pytest.fixture
async def pools():
    made = Pools(ThreadPoolExecutor(1), 2)
    yield made
    await made.close()


@pytest.fixture
def run(pools):
    async def run(function, executor="process", **value):
        definition = defined(function, executor)
        return await execute(definition, prepare(definition, value), Tools(pools), timeout_s=5.0)

    return run


class Listener:
    """Hears that a process runs, and that it is gone."""

    async def __aenter__(self):
        self._readers = asyncio.Queue()
        self._server = await asyncio.start_server(
            lambda *streams: self._readers.put_nowait(streams), "127.0.0.1", 0
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def runs(self):
        async with asyncio.timeout(DEADLINE_S):
            self._reader, self._writer = await self._readers.get()
            await self._reader.readexactly(1)

    async def is_gone(self):
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                assert await self._reader.read() == b""
            self._writer.close()


@pytest.mark.slow
async def test_a_function_runs_in_a_process_of_its_own_and_its_errors_come_back_in_words(run):
    first = await run(where, text="a")
    assert first["text"] == "a"
    assert first["pid"] != os.getpid()
    with pytest.raises(PeerError, match="fail failed: OwnError: 1 and 2") as caught:
        await run(fail, how="own")
    assert not caught.value.definite
    with pytest.raises(UsageError, match="not this") as caught:
        await run(fail, how="refuse")
    assert (caught.value.definite, caught.value.hint) == (True, "another")
    with pytest.raises(BusyError, match="later") as caught:
        await run(fail, how="busy")
    assert not caught.value.definite
    with pytest.raises(PeerError, match="SystemExit: bye"):
        await run(fail, how="exit")
    with pytest.raises(PeerError, match="unlike_json"):
        await run(unlike_json)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "told"), [("die", "exit code 7"), ("kill", "SIGKILL")])
async def test_a_process_that_ends_is_a_failed_run_and_others_go_on(run, how, told):
    with pytest.raises(PeerError, match=told) as caught:
        await run(fail, how=how)
    assert not caught.value.definite
    assert (await run(where, text="after"))["text"] == "after"


@pytest.mark.slow
@pytest.mark.net
async def test_a_cancelled_run_ends_its_process_and_no_other(run):
    async with Listener() as listener:
        task = asyncio.create_task(run(hang, port=listener.port))
        await listener.runs()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await listener.is_gone()
    assert (await run(where, text="after"))["text"] == "after"


@pytest.mark.slow
@pytest.mark.net
async def test_closing_ends_the_processes_whatever_they_do():
    pools = Pools(ThreadPoolExecutor(1), 1)
    async with Listener() as listener:
        running = await pools.submit("process", hang, listener.port)
        await listener.runs()
        await pools.close()
        await listener.is_gone()
    # The thread that watches the processes hears of their ends in its own time.
    done, _ = await asyncio.to_thread(wait, [running], 30)
    assert running in done


@pytest.mark.slow
async def test_a_broken_pool_is_replaced(pools):
    first = await pools.get("process")
    first.shutdown(cancel_futures=True)
    running = await pools.submit("process", where, "b")
    assert (await asyncio.wrap_future(running))["text"] == "b"
    assert await pools.get("process") is not first


async def test_a_pool_that_stays_broken_is_the_nodes_end(pools, monkeypatch):
    class Closed(ThreadPoolExecutor):
        def submit(self, *_arguments):
            raise RuntimeError("closed")

    monkeypatch.setitem(pools_module._KINDS, "odd", lambda _address, slots: Closed(slots))
    definition = defined(where, "odd")
    with pytest.raises(PeerError, match="stopping") as caught:
        await execute(definition, {"text": "a"}, Tools(pools), timeout_s=5.0)
    assert caught.value.definite


async def test_a_kind_comes_by_an_entry_point(monkeypatch, run):
    asked = []

    class Point:
        name = "lab"

        def load(self):
            return lambda address, slots: asked.append((address, slots)) or ThreadPoolExecutor(1)

    monkeypatch.setattr(pools_module, "entry_points", lambda group: [Point()])
    check_executor("lab:here")
    assert (await run(where, "lab:here", text="x"))["pid"] == os.getpid()
    assert (await run(where, "lab:here", text="y"))["text"] == "y"
    assert asked == [("here", 2)]


async def test_what_cannot_be_opened_is_tried_again_by_the_next_call(monkeypatch, pools):
    opened = []

    def open_it(_address, slots):
        opened.append(1)
        if len(opened) == 1:
            raise PeerError("not now")
        return ThreadPoolExecutor(slots)

    monkeypatch.setitem(pools_module._KINDS, "odd", open_it)
    with pytest.raises(PeerError, match="not now") as caught:
        await pools.get("odd")
    assert caught.value.definite
    assert await pools.get("odd") is await pools.get("odd")
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [("proces", "there is no executor 'proces'"), ("process:here", "have no address")],
)
def test_a_wrong_executor_is_refused_with_what_there_is(name, text):
    with pytest.raises(UsageError, match=text):
        open_executor(name, 1)


def test_what_cannot_move_is_refused_where_it_is_declared():
    async def slow() -> None: ...

    def stream():
        yield 1

    def local() -> None: ...

    for function, text in ((slow, "plain functions"), (stream, "plain"), (local, "import")):
        with pytest.raises(UsageError, match=text):
            defined(function)
    assert define(capability(executor="thread")(local)).handler.executor == ""


# Dask

CLUSTER = """
import sys
from distributed import LocalCluster
cluster = LocalCluster(
    n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None,
    host="127.0.0.1", protocol="tcp://",
)
print(cluster.scheduler_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def cluster():
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    try:
        yield process.stdout.readline().decode().strip(), process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.net
@pytest.mark.filterwarnings("ignore")
async def test_a_node_is_the_door_to_a_dask_cluster(run):
    with cluster() as (address, pid):
        assert await run(where, f"dask:{address}", text="a") == {"text": "a", "pid": pid}
        with pytest.raises(PeerError, match="OwnError: 1 and 2"):
            await run(fail, f"dask:{address}", how="own")


@pytest.mark.net
@pytest.mark.filterwarnings("ignore")
async def test_a_cluster_that_does_not_answer_is_a_clear_and_definite_error(run, monkeypatch):
    monkeypatch.setattr(pools_module, "OPEN_TIMEOUT_S", 0.2)
    with pytest.raises(PeerError, match="cannot be reached") as caught:
        await run(where, "dask:tcp://127.0.0.1:9", text="a")
    assert caught.value.definite
    assert "tcp://10.0.0.5:8786" in caught.value.hint


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="needs Dask") as caught:
        open_executor("dask:tcp://127.0.0.1:8786", 1)
    assert "meshd-gossip[dask]" in caught.value.hint
