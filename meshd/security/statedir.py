"""The directory in which one node keeps what must outlive it; one daemon at a time."""

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from meshd.errors import UsageError
from meshd.model import Epoch, Incarnation
from meshd.security.files import DamagedError, read_checked, set_aside, write_checked

LOCK_FILE = "lock"
RUN_FILE = "run"
EVENTS_FILE = "events"
_PID_BYTES_MAX = 32
_BUSY = {errno.EACCES, errno.EAGAIN}

logger = logging.getLogger(__name__)


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last run of the node: its epoch (ms since 1970) and its highest incarnation."""

    epoch: int = 0
    incarnation: int = 0


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to which Lamport time users' events were heard."""

    clock: int = 0


Record = TypeVar("Record", Run, Heard)


class StateDir:
    """A state directory, locked from `open` until `close`.

    After `open` nothing here raises: a disk that is full or read-only costs one warning until it
    takes a write again. `problem` then says in a sentence what is wrong, for status and doctor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._lock: int | None = None

    def open(self) -> None:
        """Make the directory (0700) and take the lock.

        Raises:
            UsageError: another daemon holds it, or the path is no directory; nothing changed.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"the state directory {self.path} is not a directory",
                hint="give another one with --state-dir",
            ) from error
        except OSError as error:
            self._failed("cannot make", self.path, error)
            return
        self._take_lock()

    def _take_lock(self) -> None:
        path = self.path / LOCK_FILE
        descriptor = self._open_lock(path)
        if descriptor is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(descriptor, _PID_BYTES_MAX, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if error.errno not in _BUSY:
                # A file system without locks (some network mounts): go on, unprotected.
                self._failed("cannot lock", path, error)
                return
            raise UsageError(
                f"another meshd daemon (pid {pid or 'unknown'}) uses the state directory"
                f" {self.path}",
                hint="see `meshd status`; a second node here needs its own --name or --state-dir",
                data={"locked": True},
            ) from error
        self._lock = descriptor
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def _open_lock(self, path: Path) -> int | None:
        """Open the lock file; for reading only where it cannot be written: flock needs no more."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._failed("cannot open", path, error)
            return None

    def close(self) -> None:
        """Release the lock. Idempotent. The lock file stays: removing it would race."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_run(self) -> Run:
        """The last run; zeros if there was none or its record is damaged (kept aside, warned)."""
        return self._read(RUN_FILE, Run)

    def read_event_clock(self) -> int:
        """Up to which Lamport time earlier runs heard users' events; 0 as with `read_run`."""
        return max(0, self._read(EVENTS_FILE, Heard).clock)

    def _read(self, name: str, kind: type[Record]) -> Record:
        path = self.path / name
        try:
            return msgspec.json.decode(read_checked(path), type=kind)
        except FileNotFoundError:
            return kind()
        except OSError as error:
            self._failed("cannot read", path, error)
            return kind()
        except (DamagedError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            aside = set_aside(path)
            fields = {"path": path, "reason": error, "kept_as": aside or "(not kept)"}
            logger.warning("%s_record_damaged", name, extra={"fields": fields})
            return kind()

    def write_run(self, epoch: Epoch, incarnation: Incarnation) -> bool:
        """Keep what the next start must go past. False if the disk would not take it."""
        return self._write(RUN_FILE, Run(int(epoch), int(incarnation)))

    def write_event_clock(self, clock: int) -> bool:
        """Keep up to where events were heard. False if the disk would not take it."""
        return self._write(EVENTS_FILE, Heard(clock))

    def _write(self, name: str, record: Run | Heard) -> bool:
        path = self.path / name
        try:
            write_checked(path, msgspec.json.encode(record))
        except OSError as error:
            self._failed("cannot write", path, error)
            return False
        self.problem = ""
        return True

    def begin_run(self, wall_ms: int) -> Epoch:
        """The epoch of the run that starts now, already on disk: later than any earlier one."""
        epoch = next_epoch(self.read_run(), wall_ms)
        self.write_run(epoch, Incarnation(0))
        return epoch

    def _failed(self, what: str, path: Path, error: OSError) -> None:
        first = not self.problem
        self.problem = f"{what} {path}: {error.strerror}"
        if first:
            fields = {"path": path, "reason": error.strerror, "effect": "state is not kept"}
            logger.warning("state_dir_failed", extra={"fields": fields})


def next_epoch(last: Run, wall_ms: int) -> Epoch:
    """An epoch past the last run's, even where the clock was set back in between."""
    return Epoch(max(wall_ms, last.epoch + 1))
