"""The control socket's file: made without a race, stolen only from the dead, removed if ours."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshd.errors import Code, UsageError

PROBE_TIMEOUT_S = 1.0
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A listening socket and the file that it stands behind."""

    socket: socket.socket
    path: Path
    inode: int

    def remove_file(self) -> None:
        """Remove the file unless another daemon has put its own there meanwhile."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self.inode:
                self.path.unlink()


def bind_control_socket(path: Path) -> BoundSocket:
    """Bind and listen on `path` (mode 0600) inside a directory of our own (mode 0700).

    A file that no process answers behind is replaced.

    Raises:
        UsageError: permission denied, a path too long, something there that is no socket, or a
            daemon that already answers there.
    """
    try:
        _make_private(path.parent)
        with _only_one(path.parent):
            _clear_stale(path)
            return _bind(path)
    except PermissionError as error:
        raise UsageError(
            f"permission denied on {error.filename or path}",
            hint="run as the user who owns it, or choose another place with --socket",
            code=Code.FORBIDDEN,
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot make the control socket {path}: {error.strerror or error}",
            hint="choose another place with --socket",
        ) from None


def _make_private(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, "it belongs to somebody else", str(directory))
    if stat.S_IMODE(found.st_mode) & 0o077:
        # Not ours to tighten: it may be a shared place such as /tmp.
        raise UsageError(
            f"the control socket's directory {directory} is open to others",
            hint=f"chmod 700 {directory}, or choose another place with --socket",
        )


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Keep other starting daemons out: one that has bound but not yet listens looks stale."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(
            f"{path} exists and is no socket", hint="move it away, or use another --socket"
        )
    if _answers(path):
        raise _already_running(path)
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether a process listens there. A full queue means that one does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (TimeoutError, BlockingIOError):
            return True
        return True


def _bind(path: Path) -> BoundSocket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Between bind and chmod nobody can come: the directory is ours alone, and nothing listens.
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _already_running(path) from None
        raise
    return BoundSocket(listener, path, path.stat().st_ino)


def _already_running(path: Path) -> UsageError:
    return UsageError(
        f"a daemon is already running behind {path}",
        hint="see `meshd status`, or start a second node with another --name",
    )
