"""All kinds in one run, so that the machine's noise hits them alike; and common options."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from mesh_processes import arguments, print_table, progress, report, summary

from rivals.cluster import Cluster, EndedError
from rivals.goals import Goal, outcome
from rivals.install import default_directory, find
from rivals.kept import Kept, Result
from rivals.kinds import ALL_NAMES, NAMES, PORTS, Make, Meshd, available
from rivals.network import Lan, Loopback, Network, why_no_lan

TOGETHER_MAX = 50
"""Up to so many nodes kinds run at the same time by default, beyond it one after the other."""
FAILED = "failed"
BLANK = dict.fromkeys(("kind", "what", "count", "min", "p50", "p99", "max"), "-")
"""A row of `collected`, before anything is in it."""

Results = dict[str, list[Result]]
"""By the name of the kind; a result for each round."""
Act = Callable[[Cluster, int], Result]
"""What is done with a cluster in one round."""


@dataclass(frozen=True)
class Bench:
    """One bench with its options, the kinds that it runs, and the results that it has."""

    name: str
    options: argparse.Namespace
    makes: dict[str, Make]
    kept: Kept

    def finish(
        self, rows: list[Result], figures: dict[str, Any], goals: list[Goal], *parameters: str
    ) -> None:
        """Print the table, the verdicts, and the JSON object as the last line."""
        if goals:
            print()
            print_table(goal.row() for goal in goals)
        keys = [*parameters, "profile", "seed"]
        report(
            self.name, rows, parameters={key: getattr(self.options, key) for key in keys},
            figures=figures, python=self.options.meshd_python, **outcome(goals),
        )  # fmt: skip


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options that all these benches have."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--kinds", nargs="+", choices=ALL_NAMES, default=list(NAMES))
    made.add_argument("--profile", choices=["lan", "local"], default="lan", help="Of all kinds.")
    made.add_argument("--rivals-dir", type=Path, default=default_directory())
    made.add_argument("--seed", type=int, default=1)
    made.add_argument(
        "--meshd-python", type=Path, metavar="PYTHON",
        help="Run the meshd that this interpreter has installed, as a compiled wheel.",
    )  # fmt: skip
    made.add_argument(
        "--out", type=Path,
        help="Keep each round's result in this file of JSON lines; what is there is not repeated.",
    )  # fmt: skip
    made.add_argument(
        "--together-max", type=int, default=TOGETHER_MAX, metavar="N",
        help="Run the kinds at the same time up to this size, beyond it in turn.",
    )  # fmt: skip
    return made


def begin(name: str, made: argparse.ArgumentParser, **quick: Any) -> Bench:
    """Parse the options, of which `quick` replaces some where few runs will do.

    From here on SIGTERM cleans up, too, as a test's timeout sends it.
    """
    options = arguments(made)
    if options.quick:
        vars(options).update(quick)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    kept = Kept(options.out, name, options.profile)
    return Bench(name, options, kinds(options), kept)


def kinds(options: argparse.Namespace) -> dict[str, Make]:
    """Those that were asked for and are there; says why others are not."""
    found, missing = available(find(options.rivals_dir), options.profile, options.meshd_python)
    for name in options.kinds:
        if name not in found:
            progress(f"without {name}: {missing[name]}")
    return {name: found[name] for name in options.kinds if name in found}


@contextlib.contextmanager
def network(hosts: int, *, is_lan_needed: bool) -> Iterator[Network]:
    """A LAN where this machine allows one; else loopback, or the end where that cannot do."""
    reason = why_no_lan()
    if reason and is_lan_needed:
        sys.exit(f"This bench counts or cuts traffic in network namespaces; it {reason}.")
    if reason:
        progress(f"on loopback, without a LAN of namespaces: {reason}")
    with Loopback() if reason else Lan(hosts, PORTS) as made:
        yield made


def need_lan(made: Network) -> Lan:
    """The same as a LAN."""
    assert isinstance(made, Lan)
    return made


@contextlib.contextmanager
def running(make: Make, place: Network, size: int, **how: Any) -> Iterator[Cluster]:
    """A cluster in which all see all. `is_seeded` is for its start, all else for itself."""
    began = time.monotonic()
    is_seeded = how.pop("is_seeded", True)
    with Cluster(make, place, **how) as cluster:
        cluster.start(size, is_seeded=is_seeded)
        cluster.wait_all_alive()
        taken_s = time.monotonic() - began
        progress(f"{cluster.kind.name}: all {size} see all, after {taken_s:.1f} s")
        yield cluster


def rounds(
    bench: Bench,
    place: Network,
    act: Act,
    case: Result,
    *,
    size: int,
    count: int = 1,
    block: int = 1,
    **how: Any,
) -> Results:
    """`act` in rounds 1 to `count` with a cluster of each kind; rounds that are kept are left out.

    Small clusters all run at once, and a round is one of all of them at the same moments. Large
    ones run in turn, for `block` rounds each, again and again.
    """
    numbers = range(1, count + 1)
    if size <= bench.options.together_max:
        _together(bench, place, act, case, numbers, size, how)
    else:
        names = list(bench.makes)
        for first in range(1, count + 1, block):
            for name in names:
                of_block = range(first, min(first + block, count + 1))
                one = replace(bench, makes={name: bench.makes[name]})
                _together(one, place, act, case, of_block, size, how)
            names.append(names.pop(0))
    return kept_rounds(bench, case, count)


def kept_rounds(bench: Bench, case: Result, count: int = 1) -> Results:
    """What there is of a case so far: less than `count` rounds of a kind that did not start."""
    found = {
        name: [bench.kept.get(case, name, number) for number in range(1, count + 1)]
        for name in bench.makes
    }
    return {name: [each for each in results if each] for name, results in found.items()}


def _together(
    bench: Bench, place: Network, act: Act, case: Result, numbers: range, size: int, how: Any
) -> None:
    todo = {
        name: [number for number in numbers if bench.kept.get(case, name, number) is None]
        for name in bench.makes
    }
    wanted = {name: make for name, make in bench.makes.items() if todo[name]}
    with contextlib.ExitStack() as stack:
        clusters = start_all(wanted, stack, place, size, **how)
        for number in numbers:
            due = {
                name: each
                for name, each in clusters.items()
                if number in todo[name] and not each.is_broken
            }
            for name, result in at_once(due, act, number).items():
                bench.kept.put(case, name, number, result)
                told = ", ".join(f"{what}={value}" for what, value in case.items())
                progress(f"{told}: {number} of {numbers[-1]}, {name}: {shown(result)}")


def start_all(
    makes: dict[str, Make],
    stack: contextlib.ExitStack,
    place: Network,
    size: int,
    **how: Any,
) -> dict[str, Cluster]:
    """A cluster of each kind, one after the other; without those that do not come up.

    Nothing is kept of these: a later run with the same `--out` tries them again.
    """
    clusters = {}
    for name, make in makes.items():
        try:
            clusters[name] = stack.enter_context(running(make, place, size, **how))
        except (TimeoutError, EndedError) as error:
            progress(f"{name} did not start: {error}")
    return clusters


def at_once(clusters: dict[str, Cluster], act: Act, number: int) -> dict[str, Result]:
    """One round with all clusters at the same time, each from a thread of its own."""
    if not clusters:
        return {}
    with ThreadPoolExecutor(len(clusters)) as pool:
        begun = {name: pool.submit(bounded, act, each, number) for name, each in clusters.items()}
        return {name: future.result() for name, future in begun.items()}


def bounded(act: Act, cluster: Cluster, number: int) -> Result:
    """One round; a cluster that does not come to rest in time has nothing but `failed`."""
    try:
        return act(cluster, number)
    except (TimeoutError, EndedError) as error:
        return {FAILED: str(error)}


def shown(result: Result) -> str:
    """For people."""
    return ", ".join(f"{what} {value}" for what, value in result.items())


def collected(results: Results, counts: Collection[str]) -> tuple[list[Result], dict[str, Any]]:
    """A table and the figures of rounds: sums of `counts`, the spread of everything else."""
    rows, figures = [], {}
    for name, each in results.items():
        whole = [result for result in each if FAILED not in result]
        told = whole[0] if whole else {}
        spread = {
            what: summary([r[what] for r in whole])
            for what in told
            if what not in counts and all(isinstance(r[what], float | int) for r in whole)
        }
        sums = {what: sum(r[what] for r in whole) for what in told if what in counts}
        sums[FAILED] = len(each) - len(whole)
        figures[name] = {**spread, **sums}
        rows += [{**BLANK, "kind": name, "what": w, **numbers} for w, numbers in spread.items()]
        rows += [{**BLANK, "kind": name, "what": w, "count": value} for w, value in sums.items()]
    return rows, figures


def medians(results: Results) -> dict[str, Result]:
    """One result for each kind: medians over its rounds; words where a round has words."""
    found = {}
    for name, each in results.items():
        whole = [result for result in each if FAILED not in result]
        found[name] = {
            what: _middle([result[what] for result in whole if what in result])
            for what in (whole[0] if whole else {})
        }
        found[name][FAILED] = len(each) - len(whole)
    return found


def _middle(values: list[Any]) -> Any:
    words = [value for value in values if isinstance(value, str)]
    return words[0] if words else round(median(values), 4)


def flat_rows(found: dict[str, Result], **first: Any) -> list[Result]:
    """A table of one result for each kind."""
    whats = list(dict.fromkeys(what for result in found.values() for what in result))
    return [
        {**first, "kind": name, **{what: result.get(what, "-") for what in whats}}
        for name, result in found.items()
    ]


def ratios(figures: dict[str, dict[str, Any]], what: str) -> dict[str, float]:
    """Ours by each rival's, of one figure."""
    return {
        name: round(ours / theirs, 2)
        for name, each in figures.items()
        if name != Meshd.name
        and isinstance(ours := figures.get(Meshd.name, {}).get(what), float | int)
        and isinstance(theirs := each.get(what), float | int)
        and theirs
    }


def figure(figures: dict[str, Any], *path: str) -> Any:
    """A figure inside figures; None where it is not."""
    found: Any = figures
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found
