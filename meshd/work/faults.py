"""What callers are told of user code that fails."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import PurePath
from typing import Any, Final, NoReturn

from meshd.errors import MeshError, PeerError, UsageError, error_from_wire

ERROR_CHARS_MAX = 500

RAISED: Final = (Exception, SystemExit, asyncio.CancelledError)
"""What is caught of user code: sys.exit() in a handler must not end the daemon."""


async def guard(
    name: str, start: Callable[[], Awaitable[Any]], *, passes_errors: bool = False
) -> Any:
    """Await user code; whatever it raises becomes a MeshError, unless we ourselves cancelled it.

    `passes_errors` is for our own couriers, whose MeshErrors already say whether anything ran.
    """
    try:
        return await start()
    except RAISED as error:
        if passes_errors and isinstance(error, MeshError):
            raise
        raise_for(name, error)


def raise_for(name: str, error: BaseException) -> NoReturn:
    """Raise what callers are told of what user code raised, or its cancellation if it is ours."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        raise PeerError(f"{name} cancelled itself", definite=False) from error
    raise failed(name, error) from error


def failed(name: str, error: BaseException) -> MeshError:
    """What callers are told of a handler's exception: its type and message, no traceback or path.

    A UsageError is the handler's own word about its input and passes as it is. Other errors of the
    mesh pass with their code, but as indefinite: the handler had begun, whatever failed inside it.
    """
    if isinstance(error, MeshError):
        definite = isinstance(error, UsageError) and error.definite
        data = {**error.data, "hint": error.hint, "definite": definite}
        return error_from_wire(error.code, error.message, data)
    return PeerError(
        f"{name} failed: {type(error).__name__}: {_message(error)}"[:ERROR_CHARS_MAX],
        definite=False,
    )


def how_it_ended(what: str, code: int | None) -> str:
    """What a process's exit code says of its end; signals are negative."""
    if code is None:
        return f"{what} did not end"
    if code >= 0:
        return f"{what} failed with exit code {code}"
    try:
        return f"{what} was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"{what} was ended by signal {-code}"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        file = error.filename
        # Callers on other machines need not learn this machine's folders.
        return error.strerror + (f": {PurePath(file).name}" if isinstance(file, str) else "")
    return str(error)
