"""Handlers run: functions, threads, programs, URLs, attached programs, and how each may fail."""

import asyncio
import contextvars
import functools
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from work_fakes import one

from meshd.capability.definition import (
    CapabilityDefinition,
    CommandHandler,
    HttpHandler,
    RemoteHandler,
    capability,
)
from meshd.capability.manifest import Manifest
from meshd.errors import (
    BusyError,
    Code,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.work import executors
from meshd.work.command import run_command
from meshd.work.executors import HttpReply, Tools, decode, execute, prepare
from meshd.work.faults import how_it_ended
from meshd.work.pools import Pools


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def run(threads):
    async def run(definition, value=None, forward=None):
        prepared = prepare(definition, value)
        return await execute(definition, prepared, Tools(Pools(threads, 2), forward), timeout_s=5.0)

    return run


def made_of(handler, check=None) -> CapabilityDefinition:
    return CapabilityDefinition(Manifest(name="cap"), handler, check)


def program(source: str, **options) -> CapabilityDefinition:
    return made_of(CommandHandler((sys.executable, "-S", "-c", source), **options))


async def test_async_functions_run_on_the_loop(run):
    async def where(text: str) -> dict[str, object]:
        return {"text": text, "main": threading.current_thread() is threading.main_thread()}

    assert await run(one(where), "a") == {"text": "a", "main": True}


async def test_plain_functions_run_in_a_thread_with_the_callers_context(run):
    trace = contextvars.ContextVar("trace")
    trace.set("t1")

    def where() -> list[object]:
        return [trace.get(), threading.current_thread() is threading.main_thread()]

    assert await run(one(where)) == ["t1", False]


async def test_plain_functions_that_make_coroutines_are_awaited(run):
    async def inner(text: str) -> set[str]:
        return {text}

    @functools.wraps(inner)
    def outer(text):
        return inner(text)

    assert await run(one(outer), "a") == ["a"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no way"), "cap failed: ValueError: no way"),
        (SystemExit(3), "cap failed: SystemExit: 3"),
        (OSError("odd"), "cap failed: OSError: odd"),
        (FileNotFoundError(2, "No such file", "/secret/place/a.csv"), "No such file: a.csv"),
        (PermissionError(13, "Denied"), "cap failed: PermissionError: Denied"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_exceptions_become_indefinite_errors_without_paths(run, error, words, is_async):
    def plain():
        raise error

    async def later():
        raise error

    with pytest.raises(PeerError) as caught:
        await run(one(capability("cap")(later if is_async else plain)))
    assert words in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.code == Code.UPSTREAM
    assert not caught.value.definite


async def test_a_stop_iteration_from_a_thread_does_not_hang_its_caller(run):
    def plain():
        raise StopIteration("x")

    with pytest.raises(PeerError, match="StopIteration: x"):
        await run(one(plain))


async def test_usage_errors_of_a_handler_pass_and_others_become_indefinite(run):
    errors = [
        UsageError("bad", hint="good", data={"a": 1}),
        BusyError("busy below"),
        NoCandidateError("none below"),
    ]

    def fail(n: int):
        raise errors[n]

    with pytest.raises(UsageError) as usage:
        await run(one(fail), 0)
    assert (usage.value.hint, usage.value.definite, usage.value.data) == ("good", True, {"a": 1})
    with pytest.raises(BusyError) as busy:
        await run(one(fail), 1)
    assert not busy.value.definite
    with pytest.raises(NoCandidateError) as nobody:
        await run(one(fail), 2)
    assert not nobody.value.definite


async def test_a_handler_that_cancels_itself_is_a_failure_and_no_cancellation(run):
    async def giving_up():
        raise asyncio.CancelledError

    with pytest.raises(PeerError, match="cancelled itself"):
        await run(one(giving_up))


async def test_results_that_are_no_json_are_refused_in_threads_too(run):
    def odd():
        return object()

    with pytest.raises(PeerError, match="not JSON"):
        await run(one(odd))


async def test_a_cancelled_thread_is_waited_for(threads):
    started, may_end = threading.Event(), threading.Event()
    ended = []

    def slow():
        started.set()
        may_end.wait(10)
        ended.append(1)

    task = asyncio.create_task(execute(one(slow), {}, Tools(Pools(threads, 2)), timeout_s=5.0))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]


async def test_a_function_that_waits_for_a_thread_is_cancelled_at_once():
    may_end = threading.Event()
    ran = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(may_end.wait, 10)
        definition = one(_mark(ran))
        task = asyncio.create_task(execute(definition, {}, Tools(Pools(pool, 1)), timeout_s=5.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()
    assert ran == []


def _mark(ran):
    def mark():
        ran.append(1)

    return mark


async def test_a_function_after_the_threads_are_gone_is_refused_definitely(threads):
    threads.shutdown()
    with pytest.raises(PeerError, match="stopping") as caught:
        await execute(one(_mark([])), {}, Tools(Pools(threads, 2)), timeout_s=1.0)
    assert caught.value.definite


def test_input_is_checked_before_anything_runs():
    def refuse(value):
        raise UsageError("schema says no")

    with pytest.raises(UsageError, match="schema says no"):
        prepare(made_of(HttpHandler("http://localhost/"), refuse), {})
    with pytest.raises(UsageError, match="not JSON"):
        prepare(made_of(HttpHandler("http://localhost/")), object())
    with pytest.raises(UsageError, match="missing parameter"):
        prepare(one(_needs), {})


def _needs(text: str): ...


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (b'{"a": [1, null]}\n', {"a": [1, None]}),
        (b"plain text\n", "plain text"),
        (b"two\r\n", "two"),
        (b"\xff\n", "\ufffd"),
        (b"", ""),
        (b"42", 42),
    ],
)
def test_output_is_json_or_text(output, value):
    assert decode(output) == value


def test_output_nested_without_end_is_text():
    assert decode(b"[" * 100_000) == "[" * 100_000


# Programs


@pytest.mark.slow
async def test_a_command_gets_json_and_gives_json(run):
    source = "import json,sys; d=json.load(sys.stdin); print(json.dumps({'n': d['n'] + 1}))"
    assert await run(program(source), {"n": 1}) == {"n": 2}


@pytest.mark.slow
async def test_a_command_gets_its_folder_and_environment(run, tmp_path):
    source = "import os; print(os.getcwd()); print(os.environ['WORD'], 'PATH' in os.environ)"
    definition = program(source, cwd=str(tmp_path), env={"WORD": "x"})
    assert await run(definition) == f"{tmp_path}\nx True"


@pytest.mark.slow
async def test_a_command_may_ignore_a_large_input(run):
    assert await run(program("print('done')"), "x" * 4_000_000) == "done"


@pytest.mark.slow
async def test_a_command_gets_a_large_input_whole(run):
    source = "import sys; print(len(sys.stdin.buffer.read()))"
    assert await run(program(source), "x" * 4_000_000) == 4_000_002


@pytest.mark.slow
async def test_a_failing_command_tells_its_code_and_the_tail_of_stderr(run):
    source = "import sys; sys.stderr.write('x' * 100000 + 'the end'); sys.exit(7)"
    with pytest.raises(PeerError, match="exit code 7") as caught:
        await run(program(source))
    assert caught.value.message.endswith("the end")
    assert len(caught.value.message) < 5_000
    assert not caught.value.definite


@pytest.mark.slow
async def test_a_command_ended_by_a_signal_says_which(run):
    with pytest.raises(PeerError, match="ended by SIGKILL"):
        await run(program("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(PeerError, match="ended by signal 40"):
        await run(program("import os; os.kill(os.getpid(), 40)"))


@pytest.mark.slow
async def test_too_much_output_is_refused(run, monkeypatch):
    monkeypatch.setattr(executors, "RESULT_BYTES_MAX", 100_000)
    with pytest.raises(PeerError, match="more than 100000 bytes") as caught:
        await run(program("print('x' * 100_000)"))
    assert not caught.value.definite
    with pytest.raises(PeerError, match="more than"):
        await run(program("import sys\nwhile True: sys.stdout.write('x' * 65536)"))


@pytest.mark.slow
async def test_a_cancelled_command_dies_with_its_whole_group(tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Both the program and its child hold the pipe's writing end; it ends when both are gone.
    source = (
        "import os,sys\n"
        f"fd = os.open({str(fifo)!r}, os.O_WRONLY)\n"
        "child = os.fork()\n"
        "os.write(fd, b'.')\n"
        "import signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pause()\n"
    )
    definition = program(source)
    assert isinstance(definition.handler, CommandHandler)
    task = asyncio.create_task(run_command(definition.handler, b"", "cap", 1_000))
    reader = await asyncio.to_thread(fifo.open, "rb", buffering=0)
    with reader:
        for _ in range(2):
            assert await asyncio.to_thread(reader.read, 1) == b"."
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(reader.read, 1) == b""


@pytest.mark.slow
async def test_a_command_cancelled_while_it_starts_leaves_nothing(tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    # Open at both ends, so that a program that came through would hold it and not wait for us.
    source = f"import os, signal; os.open({str(fifo)!r}, os.O_RDWR); signal.pause()"
    missing = CommandHandler(("meshd-no-such-program",))
    for handler in (CommandHandler((sys.executable, "-S", "-c", source)), missing):
        task = asyncio.create_task(run_command(handler, b"", "cap", 1_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(OSError, match="No such device"):
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.slow
async def test_programs_that_cannot_start_are_definite_errors(run, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("no program")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"\x7fELF garbage")
    wrong.chmod(0o755)
    for argv, cwd, words in (
        (("meshd-no-such-program",), None, "program 'meshd-no-such-program' is not found"),
        ((str(plain),), None, "program 'plain' may not be run"),
        ((str(wrong),), None, "program 'wrong' cannot be started"),
        ((sys.executable,), str(tmp_path / "gone"), "working directory cannot be used"),
        (("a\0b",), None, "cannot be started"),
    ):
        with pytest.raises(PeerError, match=words) as caught:
            await run(made_of(CommandHandler(argv, cwd)))
        assert caught.value.definite
        assert caught.value.code == Code.REJECTED
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.slow
def test_commands_run_on_uvloop_as_well():
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed here")
    reads = CommandHandler((sys.executable, "-S", "-c", "print(len(input()))"))
    ignores = CommandHandler((sys.executable, "-S", "-c", "print('done')"))
    waits = CommandHandler((sys.executable, "-S", "-c", "import signal; signal.pause()"))

    async def story():
        assert await run_command(reads, b"x" * 1_000_000, "cap", 100) == b"1000000\n"
        assert await run_command(ignores, b"x" * 1_000_000, "cap", 100) == b"done\n"
        # Some of them end before they can be given their input.
        for _ in range(100):
            assert await run_command(CommandHandler(("true",)), b"x", "cap", 100) == b""
        task = asyncio.create_task(run_command(waits, b"", "cap", 100))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


def test_an_end_without_a_code_is_told():
    assert how_it_ended("the command", None) == "the command did not end"


# URLs and attached programs, through fakes at their seams


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (HttpReply(200, b'{"a": 1}'), {"a": 1}),
        (HttpReply(204, b""), ""),
        (HttpReply(200, b"hi\n"), "hi"),
    ],
)
async def test_a_url_gets_json_and_its_answer_is_the_result(run, reply, value):
    seen = []

    async def forward(url, body, *, timeout_s, bytes_max):
        seen.append((url, json.loads(body), timeout_s))
        return reply

    assert await run(made_of(HttpHandler("http://localhost/x")), {"n": 1}, forward) == value
    assert seen == [("http://localhost/x", {"n": 1}, 5.0)]


@pytest.mark.parametrize(
    ("status", "words"), [(302, "redirect"), (404, "answered 404: gone"), (500, "answered 500")]
)
async def test_other_answers_of_a_url_are_indefinite_errors(run, status, words):
    async def forward(url, body, *, timeout_s, bytes_max):
        return HttpReply(status, b"gone")

    with pytest.raises(PeerError, match=words) as caught:
        await run(made_of(HttpHandler("http://localhost/x")), {}, forward)
    assert not caught.value.definite


async def test_a_forwards_own_errors_pass_as_they_are(run):
    async def forward(url, body, *, timeout_s, bytes_max):
        raise PeerError("refused", definite=True)

    with pytest.raises(PeerError) as caught:
        await run(made_of(HttpHandler("http://localhost/x")), {}, forward)
    assert caught.value.definite


async def test_without_a_forward_a_url_is_refused_definitely(run):
    with pytest.raises(PeerError, match="cannot forward") as caught:
        await run(made_of(HttpHandler("http://localhost/x")))
    assert caught.value.definite


async def test_an_attached_program_is_called_and_its_errors_pass(run):
    async def call(capability, value, timeout_s, sink):
        if value == "fail":
            raise PeerError("it said no", definite=True)
        if value == "break":
            raise RuntimeError("ours")
        return [capability, value, timeout_s]

    definition = made_of(RemoteHandler(call, "program"))
    assert await run(definition, "x") == ["cap", "x", 5.0]
    with pytest.raises(PeerError) as caught:
        await run(definition, "fail")
    assert caught.value.definite
    with pytest.raises(PeerError) as caught:
        await run(definition, "break")
    assert not caught.value.definite
