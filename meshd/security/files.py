"""Files that survive a crash in the middle of a write, and show when they did not."""

import contextlib
import hashlib
import os
from pathlib import Path

STATE_BYTES_MAX = 8 * 1024 * 1024
"""No state file of ours comes near it; a larger one is not read."""

ASIDE_MAX = 100
"""Damaged copies kept beside one file; past it the newest replaces the last."""

_MAGIC = b"meshd-state 1 "


class DamagedError(Exception):
    """A file's content is not what we wrote. The file is unchanged."""


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`: whoever reads it sees the old content or the new, never a mix.

    Raises:
        OSError: the disk refused; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename durable; file systems that cannot do it are left as they are."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bounded(path: Path, bytes_max: int = STATE_BYTES_MAX) -> bytes:
    """The content of `path`.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is larger than `bytes_max`.
    """
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise DamagedError(f"larger than {bytes_max} bytes")
    return data


def write_checked(path: Path, body: bytes) -> None:
    """Write `body` with a checksum, atomically.

    Raises:
        OSError: the disk refused; the old content is still there.
    """
    write_atomic(path, _MAGIC + _checksum(body) + b"\n" + body)


def read_checked(path: Path) -> bytes:
    """The body that `write_checked` wrote.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is cut, altered or no file of ours.
    """
    header, newline, body = read_bounded(path).partition(b"\n")
    if not newline or not header.startswith(_MAGIC):
        raise DamagedError("not a state file of meshd, or cut short")
    if header.removeprefix(_MAGIC) != _checksum(body):
        raise DamagedError("its checksum does not match its content")
    return body


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file to `<name>.damaged-<n>` and return that; None if that failed too."""
    for number in range(1, ASIDE_MAX + 1):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if number == ASIDE_MAX or not os.path.lexists(aside):
            with contextlib.suppress(OSError):
                path.replace(aside)
                return aside
            return None
    raise AssertionError("unreachable")


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode("ascii")
