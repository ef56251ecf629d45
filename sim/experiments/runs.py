"""Many runs, in as many processes as asked for, with results in the order of the tasks."""

import base64
import binascii
import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import msgspec

from meshd.errors import UsageError
from sim.experiments.arms import Arm
from sim.experiments.model import Progress

Task = TypeVar("Task")
Found = TypeVar("Found")


def each(
    work: Callable[[Task], Found],
    tasks: Sequence[Task],
    *,
    jobs: int,
    progress: Progress,
    kept: Path | None = None,
) -> list[Found]:
    """Do `work` for each task.

    Args:
        work: a function of a module, so that other processes find it.
        tasks: what it is given, one at a time; to be sent to other processes.
        jobs: processes at a time; with one, all happens in this one.
        progress: told after each task.
        kept: a file to which each result goes at once, and whose results are not worked for again.

    Raises:
        UsageError: `kept` cannot be read or written.
    """
    store = None if kept is None else _Kept(kept, work)
    found = {} if store is None else store.found(tasks)
    missing = [number for number in range(len(tasks)) if number not in found]
    if found:
        progress(len(found), len(tasks))
    made = _found(work, [tasks[number] for number in missing], jobs)
    for number, one in zip(missing, made, strict=True):
        found[number] = one
        if store is not None:
            store.put(tasks[number], one)
        progress(len(found), len(tasks))
    return [found[number] for number in range(len(tasks))]


def _found(work: Callable[[Task], Found], tasks: Sequence[Task], jobs: int) -> Iterator[Found]:
    if jobs <= 1:
        for task in tasks:
            # A world is full of cycles that all live as long as it does: one sweep in the end.
            gc.disable()
            try:
                yield work(task)
            finally:
                gc.enable()
            gc.collect()
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(work, tasks)


class _Line(msgspec.Struct):
    """One result: whose it is and which, its class, and its fields in msgpack and base64.

    Not plain JSON: that has no infinity.
    """

    work: str
    task: str
    kind: str
    found: str


class _Kept(Generic[Task, Found]):
    """Results of one function in a file of JSON lines. A changed program wants another file."""

    def __init__(self, path: Path, work: Callable[[Task], Found]) -> None:
        self._path = path
        self._work = f"{work.__module__}.{work.__qualname__}"
        made = get_type_hints(work)["return"]
        self._kinds: dict[str, type[Any]] = {k.__name__: k for k in get_args(made) or (made,)}
        self._starts_line = False

    def found(self, tasks: Sequence[Task]) -> dict[int, Found]:
        """What the file has already, by the number of the task."""
        held: dict[str, Found] = {}
        try:
            # Written to at once: where that cannot be, no run is done in vain.
            self._path.open("ab").close()
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _fault(self._path, "use", error) from None
        self._starts_line = text[-1:] not in {"", "\n"}
        for line in text.splitlines():
            try:
                told = msgspec.json.decode(line, type=_Line)
                if told.work == self._work:
                    fields = base64.b64decode(told.found, validate=True)
                    held[told.task] = msgspec.msgpack.decode(fields, type=self._kinds[told.kind])
            except (msgspec.DecodeError, binascii.Error, KeyError):
                continue  # cut off while it was written
        keys = map(_key, tasks)
        return {number: held[key] for number, key in enumerate(keys) if key in held}

    def put(self, task: Task, found: Found) -> None:
        """Add a result, on disk before this returns."""
        fields = base64.b64encode(msgspec.msgpack.encode(found)).decode()
        line = _Line(self._work, _key(task), type(found).__name__, fields)
        try:
            with self._path.open("ab") as file:
                file.write(b"\n" * self._starts_line + msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise _fault(self._path, "write", error) from None
        self._starts_line = False


def _key(task: object) -> str:
    parts = task if isinstance(task, tuple) else (task,)
    return "; ".join(part.name if isinstance(part, Arm) else repr(part) for part in parts)


def _fault(path: Path, what: str, error: Exception) -> UsageError:
    return UsageError(f"cannot {what} {path}: {error}", hint="name another file with --out")
