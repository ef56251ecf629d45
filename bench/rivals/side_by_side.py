"""All kinds in one run, so that the machine's noise hits them alike; and common options."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mesh_processes import arguments, progress, summary

from rivals.cluster import Cluster
from rivals.install import default_directory, find
from rivals.kinds import ALL_NAMES, NAMES, PORTS, Make, Meshd, available
from rivals.network import Lan, Loopback, Network, why_no_lan

TOGETHER_MAX = 50
"""From more nodes on, kinds run one after the other: two cores bear no three such clusters."""

BLANK = dict.fromkeys(("kind", "what", "count", "min", "p50", "p99", "max"), "-")
"""A row of `collected`, before anything is in it."""

Result = dict[str, Any]
Act = Callable[[Cluster, int], Result]
"""What is done with a cluster in one round."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options that all these benches have."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--kinds", nargs="+", choices=ALL_NAMES, default=list(NAMES))
    made.add_argument("--profile", choices=["lan", "local"], default="lan", help="Of all kinds.")
    made.add_argument("--rivals-dir", type=Path, default=default_directory())
    made.add_argument("--seed", type=int, default=1)
    made.add_argument(
        "--in-turn", action="store_true", help=f"As always with more than {TOGETHER_MAX} nodes."
    )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse; from here on SIGTERM cleans up, too, as a test's timeout sends it."""
    options = arguments(made)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return options


def kinds(options: argparse.Namespace) -> dict[str, Make]:
    """Those that were asked for and are there; says why others are not."""
    found, missing = available(find(options.rivals_dir), options.profile)
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
def running(
    make: Make, place: Network, size: int, *, is_seeded: bool = True, is_watched: bool = False
) -> Iterator[Cluster]:
    """A cluster in which all see all."""
    began = time.monotonic()
    with Cluster(make, place, is_watched=is_watched) as cluster:
        cluster.start(size, is_seeded=is_seeded)
        cluster.wait_all_alive()
        taken_s = time.monotonic() - began
        progress(f"{cluster.kind.name}: all {size} see all, after {taken_s:.1f} s")
        yield cluster


def rounds(
    makes: dict[str, Make],
    place: Network,
    act: Act,
    *,
    size: int,
    count: int,
    block: int,
    is_in_turn: bool,
    **how: Any,
) -> dict[str, list[Result]]:
    """`act` in `count` rounds with a cluster of each kind.

    Small clusters all run at once, and a round is one of all of them at the same moments. Large
    ones run in turn, for `block` rounds each, again and again.
    """
    results: dict[str, list[Result]] = {name: [] for name in makes}
    if size <= TOGETHER_MAX and not is_in_turn:
        with contextlib.ExitStack() as stack:
            clusters = {
                name: stack.enter_context(running(make, place, size, **how))
                for name, make in makes.items()
            }
            for number in range(1, count + 1):
                for name, result in at_once(clusters, act, number).items():
                    results[name].append(result)
                    progress(f"{number} of {count}, {name}: {shown(result)}")
        return results
    names = list(makes)
    for first in range(1, count + 1, block):
        for name in names:
            with running(makes[name], place, size, **how) as cluster:
                for number in range(first, min(first + block, count + 1)):
                    results[name].append(bounded(act, cluster, number))
                    progress(f"{number} of {count}, {name}: {shown(results[name][-1])}")
        names.append(names.pop(0))
    return results


def at_once(clusters: dict[str, Cluster], act: Act, number: int) -> dict[str, Result]:
    """One round with all clusters at the same time, each from a thread of its own."""
    with ThreadPoolExecutor(len(clusters)) as pool:
        begun = {name: pool.submit(bounded, act, each, number) for name, each in clusters.items()}
        return {name: future.result() for name, future in begun.items()}


def bounded(act: Act, cluster: Cluster, number: int) -> Result:
    """One round; a cluster that does not come to rest in time has nothing but `failed`."""
    try:
        return act(cluster, number)
    except TimeoutError as error:
        return {"failed": str(error)}


def shown(result: Result) -> str:
    """For people."""
    return ", ".join(f"{what} {value}" for what, value in result.items())


def collected(
    results: dict[str, list[Result]], counts: Collection[str]
) -> tuple[list[Result], dict[str, Any]]:
    """A table and the figures of rounds: sums of `counts`, the spread of everything else."""
    rows, figures = [], {}
    for name, each in results.items():
        whole = [result for result in each if "failed" not in result]
        told = whole[0] if whole else {}
        spread = {what: summary([r[what] for r in whole]) for what in told if what not in counts}
        sums = {what: sum(r[what] for r in whole) for what in told if what in counts}
        sums["failed"] = len(each) - len(whole)
        figures[name] = {**spread, **sums}
        rows += [{**BLANK, "kind": name, "what": w, **numbers} for w, numbers in spread.items()]
        rows += [{**BLANK, "kind": name, "what": w, "count": value} for w, value in sums.items()]
    return rows, figures


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
        and (ours := figures.get(Meshd.name, {}).get(what))
        and (theirs := each.get(what))
    }
