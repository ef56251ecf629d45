"""Running a program as a capability: input on stdin, result on stdout, no shell, nothing left."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import PurePath
from typing import Final, cast

from meshd.capability.definition import CommandHandler
from meshd.errors import Code, PeerError
from meshd.work.faults import how_it_ended

STDERR_TAIL_BYTES = 4_096
KILL_WAIT_S = 2.0
"""How long a killed program may take to be gone before it is left to the system."""

_STDOUT = 1
_STDERR = 2


Take = Callable[[bytes], Awaitable[None]]


class _Program(asyncio.SubprocessProtocol):
    """Collects a bounded stdout and the tail of stderr.

    `ended` is resolved when there is nothing to wait for: the program and its pipes are closed, or
    it wrote too much. `closed` is resolved when it is gone. With `take`, each line of stdout is
    handed to it instead of being collected, and while it takes its time nothing is read.
    """

    def __init__(self, output_bytes_max: int, take: Take | None) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.SubprocessTransport | None = None
        self.handing: asyncio.Task[None] | None = None
        self._take = take
        self._lines: deque[bytes] = deque()
        self.ended: Final[asyncio.Future[None]] = loop.create_future()
        self.closed: Final[asyncio.Future[None]] = loop.create_future()
        self.output: Final = bytearray()
        self.tail = b""
        self.is_too_long = False
        self._output_bytes_max = output_bytes_max

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Take what it wrote."""
        if fd == _STDERR:
            self.tail = (self.tail + data)[-STDERR_TAIL_BYTES:]
        elif fd == _STDOUT and not self.is_too_long:
            self.is_too_long = len(self.output) + len(data) > self._output_bytes_max
            if self.is_too_long:
                self.output.clear()
                _resolve(self.ended)
            else:
                self.output.extend(data)
                if self._take is not None and b"\n" in data:
                    self._hand_over(self._take)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The program runs."""
        # A cast: uvloop's transports are no subclasses of asyncio's.
        self.transport = cast("asyncio.SubprocessTransport", transport)

    def _hand_over(self, take: Take) -> None:
        *lines, rest = bytes(self.output).split(b"\n")
        self.output[:] = rest
        self._lines.extend(lines)
        if self.handing is None:
            self.handing = asyncio.create_task(self._hand(take), name="meshd-lines")

    async def _hand(self, take: Take) -> None:
        """Hand over what waits; the pipe is read again when nothing does."""
        try:
            self._read(go_on=False)
            while self._lines:
                await take(self._lines.popleft())
            self._read(go_on=True)
            self.handing = None
        except BaseException:
            _resolve(self.ended)
            raise

    def _read(self, *, go_on: bool) -> None:
        assert self.transport is not None, "lines come from a program that runs"
        pipe = cast("asyncio.ReadTransport | None", self.transport.get_pipe_transport(_STDOUT))
        if pipe is not None and not pipe.is_closing():
            if go_on:
                pipe.resume_reading()
            else:
                pipe.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The program has ended and all its pipes are closed."""
        del exc
        _resolve(self.ended)
        _resolve(self.closed)


async def run_command(
    handler: CommandHandler,
    stdin: bytes,
    name: str,
    output_bytes_max: int,
    take: Take | None = None,
) -> bytes:
    """What the program writes to stdout when given `stdin`; with `take`, it gets line by line.

    A line, or all of the output, has at most `output_bytes_max` bytes. If the caller is cancelled,
    or the program writes more, its whole process group is killed.

    Raises:
        PeerError: it could not be started (definite), or it failed (indefinite).
    """
    starting = asyncio.ensure_future(_start(handler, name, output_bytes_max, take))
    try:
        transport, program = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # A loop that is interrupted while it starts a program may lose sight of it.
        await asyncio.wait((starting,))
        if starting.exception() is None:
            await _end(*starting.result())
        raise
    try:
        _feed(transport, stdin)
        await program.ended
        if program.handing is not None:
            await program.handing
        if take is not None and program.output and not program.is_too_long:
            await take(bytes(program.output))
    finally:
        if program.handing is not None:
            program.handing.cancel()
        await _end(transport, program)
    if program.is_too_long:
        raise PeerError(
            f"{name}: the command wrote more than {output_bytes_max} bytes", definite=False
        )
    code = transport.get_returncode()
    if code != 0:
        told = how_it_ended("the command", code)
        raise PeerError(f"{name}: {told}{_said(program.tail)}", definite=False)
    return bytes(program.output)


async def _start(
    handler: CommandHandler, name: str, output_bytes_max: int, take: Take | None
) -> tuple[asyncio.SubprocessTransport, _Program]:
    loop = asyncio.get_running_loop()
    try:
        return await loop.subprocess_exec(
            lambda: _Program(output_bytes_max, take),
            *_bounded(handler),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=handler.cwd,
            env={**os.environ, **handler.env} if handler.env else None,
            # A group of its own, so that what it starts can be killed with it.
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise _not_started(handler, name, error) from error


def _bounded(handler: CommandHandler) -> tuple[str, ...]:
    """The command line; a shell sets the bound of memory and gives way to the program."""
    if not handler.memory_bytes:
        return handler.argv
    kib = str(handler.memory_bytes // 1024)
    return "/bin/sh", "-c", 'ulimit -v "$0" && exec "$@"', kib, *handler.argv


async def _end(transport: asyncio.SubprocessTransport, program: _Program) -> None:
    """Leave nothing behind: kill the group unless the program ended by itself, and close pipes."""
    if not program.closed.done():
        _kill_group(transport)
    transport.close()
    if not program.closed.done():
        await asyncio.wait((program.closed,), timeout=KILL_WAIT_S)


def _not_started(handler: CommandHandler, name: str, error: Exception) -> PeerError:
    program = PurePath(handler.argv[0]).name
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and handler.cwd is not None and error.filename == handler.cwd:
        what, hint = f"its working directory cannot be used: {reason}", "correct cwd"
    elif isinstance(error, FileNotFoundError):
        what, hint = f"program {program!r} is not found", "install it, or correct command"
    elif isinstance(error, PermissionError):
        what, hint = f"program {program!r} may not be run: {reason}", "chmod +x it?"
    else:
        what, hint = f"program {program!r} cannot be started: {reason}", ""
    return PeerError(f"{name}: {what}", hint=hint, code=Code.REJECTED, definite=True)


def _feed(transport: asyncio.SubprocessTransport, stdin: bytes) -> None:
    """Write the input and close it. A program that does not read it is no failure."""
    # A cast: uvloop's transports are no subclasses of asyncio's.
    pipe = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
    if pipe.is_closing():
        return  # it has ended already: uvloop would raise
    pipe.write(stdin)
    pipe.write_eof()


def _kill_group(transport: asyncio.SubprocessTransport) -> None:
    # The group's number cannot belong to others yet: its leader is not reaped, or, where it is,
    # a member of the group still holds the pipes that we wait for.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(transport.get_pid(), signal.SIGKILL)


def _said(tail: bytes) -> str:
    text = tail.decode("utf-8", "replace").strip()
    return f": {text}" if text else ""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
