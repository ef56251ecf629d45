"""Many runs, in as many processes as asked for, with results in the order of the tasks."""

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sim.experiments.model import Progress

Task = TypeVar("Task")
Found = TypeVar("Found")


def each(
    work: Callable[[Task], Found], tasks: Sequence[Task], *, jobs: int, progress: Progress
) -> list[Found]:
    """Do `work` for each task.

    Args:
        work: a function of a module, so that other processes find it.
        tasks: what it is given, one at a time; to be sent to other processes.
        jobs: processes at a time; with one, all happens in this one.
        progress: told after each task.
    """
    found: list[Found] = []
    for one in _found(work, tasks, jobs):
        found.append(one)
        progress(len(found), len(tasks))
    return found


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
