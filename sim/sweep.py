"""Many plans, in as many processes as asked for, with results in the order of the plans.

The processes are ours, not a pool's: one that dies is an error and not a silence, and an interrupt
ends them all at once.
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from meshd.errors import MeshError
from sim.plan import Plan
from sim.report import describe
from sim.runner import run

AHEAD_PER_JOB = 64
"""So many plans at most are under way or done beyond the first one that is not done, per job."""
END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed: its digest, and the first violation or nothing."""

    seed: int
    digest: str
    violation: str
    invariant: str = ""
    events: int = 0


def outcome(plan: Plan) -> Outcome:
    """Run one plan, and keep what a sweep needs of it."""
    result = run(plan)
    first = result.violations[0] if result.violations else None
    return Outcome(
        seed=plan.seed,
        digest=result.digest,
        violation="" if first is None else describe(first),
        invariant="" if first is None else first.invariant,
        events=int(result.metrics.get("events", 0)),
    )


def outcomes(plans: Iterable[Plan], *, jobs: int = 1) -> Generator[Outcome, None, None]:
    """Run all plans, `jobs` at a time; the outcomes come in the order of the plans.

    Raises:
        MeshError: a process died, as one that needs more memory than there is.
    """
    if jobs <= 1:
        yield from map(outcome, plans)
        return
    crew = _Crew(jobs)
    try:
        yield from crew.run(iter(plans))
    finally:
        crew.end()


class _Crew:
    """Processes that each take one plan after another."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._doing: dict[Connection, tuple[int, int]] = {}
        """For each process at work, the number and the seed of its plan."""

    def run(self, plans: Iterator[Plan]) -> Iterator[Outcome]:
        """All outcomes, in order. A process starts only when there is a plan for it."""
        done: dict[int, Outcome] = {}
        idle: deque[Connection] = deque()
        given = told = 0
        more = True
        while more or told < given:
            while more and given - told < AHEAD_PER_JOB * self._jobs:
                if not idle and len(self._processes) == self._jobs:
                    break
                plan = next(plans, None)
                if plan is None:
                    more = False
                    break
                pipe = idle.popleft() if idle else self._start()
                pipe.send(plan)
                self._doing[pipe] = (given, plan.seed)
                given += 1
            for ready in wait(list(self._doing)) if self._doing else ():
                assert isinstance(ready, Connection)
                number, found = self._take(ready)
                done[number] = found
                idle.append(ready)
            while told in done:
                yield done.pop(told)
                told += 1

    def _start(self) -> Connection:
        """A new process. It never hears of an interrupt: that is for us to handle."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _interrupts_ignored():
            process.start()
        theirs.close()
        self._processes[ours] = process
        return ours

    def _take(self, pipe: Connection) -> tuple[int, Outcome]:
        number, seed = self._doing.pop(pipe)
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            process = self._processes[pipe]
            process.join(END_TIMEOUT_S)
            raise MeshError(
                f"the process that ran seed {seed} died (exit code {process.exitcode})",
                hint="it may have needed too much memory: try --jobs 1, or fewer nodes",
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Outcome)
        return number, answer

    def end(self) -> None:
        """End all processes, whatever they do."""
        for process in self._processes.values():
            process.terminate()
        for pipe, process in self._processes.items():
            process.join(END_TIMEOUT_S)
            pipe.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started meanwhile ignores Ctrl-C for good."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread: no interrupt arrives here anyway
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(pipe: Connection) -> None:
    """What a process does: plans in, outcomes out, until nobody asks any more."""
    while True:
        try:
            plan = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Outcome | Exception = outcome(plan)
        except Exception as error:  # noqa: BLE001 - told to the one who asked, who raises it
            answer = error
        pipe.send(answer)
