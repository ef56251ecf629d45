"""Running a program as a capability: input on stdin, result on stdout, no shell, nothing left."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import PurePath
from typing import Final, cast

from meshd.capability.definition import CommandHandler
from meshd.errors import Code, PeerError

STDERR_TAIL_BYTES = 4_096
KILL_WAIT_S = 2.0
"""How long a killed program may take to be gone before it is left to the system."""

_STDOUT = 1
_STDERR = 2


class _Program(asyncio.SubprocessProtocol):
    """Collects a bounded stdout and the tail of stderr.

    `ended` is resolved when there is nothing to wait for: the program and its pipes are closed, or
    it wrote too much. `closed` is resolved when it is gone.
    """

    def __init__(self, output_bytes_max: int) -> None:
        loop = asyncio.get_running_loop()
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

    def connection_lost(self, exc: Exception | None) -> None:
        """The program has ended and all its pipes are closed."""
        del exc
        _resolve(self.ended)
        _resolve(self.closed)


async def run_command(
    handler: CommandHandler, stdin: bytes, name: str, output_bytes_max: int
) -> bytes:
    """What the program writes to stdout when given `stdin`.

    If the caller is cancelled, or the program writes more than `output_bytes_max`, its whole
    process group is killed.

    Raises:
        PeerError: it could not be started (definite), or it failed (indefinite).
    """
    starting = asyncio.ensure_future(_start(handler, name, output_bytes_max))
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
    finally:
        await _end(transport, program)
    if program.is_too_long:
        raise PeerError(
            f"{name}: the command wrote more than {output_bytes_max} bytes", definite=False
        )
    code = transport.get_returncode()
    if code != 0:
        raise PeerError(f"{name}: {_how_it_ended(code)}{_said(program.tail)}", definite=False)
    return bytes(program.output)


async def _start(
    handler: CommandHandler, name: str, output_bytes_max: int
) -> tuple[asyncio.SubprocessTransport, _Program]:
    loop = asyncio.get_running_loop()
    try:
        return await loop.subprocess_exec(
            lambda: _Program(output_bytes_max),
            *handler.argv,
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


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "the command did not end"
    if code >= 0:
        return f"the command failed with exit code {code}"
    try:
        return f"the command was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the command was ended by signal {-code}"


def _said(tail: bytes) -> str:
    text = tail.decode("utf-8", "replace").strip()
    return f": {text}" if text else ""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
