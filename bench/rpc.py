"""Echo work with three workers, by meshd and by what else one might pick, in turn.

Every party is a process of its own: the caller, what stands between (a daemon, a broker, a relay),
and each worker. All systems are up at the same time, and idle but for the one that is measured.
The design that asks every peer for its load before each call is measured with ten workers, and so
is meshd beside it.
"""

import argparse
import contextlib
from pathlib import Path

from echoes.install import Tools
from echoes.systems import SYSTEMS, Caller
from mesh_processes import arguments, print_table, progress, report
from rivals.goals import Goal, at_most, outcome
from rivals.install import default_directory

MANY = 10

Rounds = dict[str, dict[str, list[dict[str, float]]]]


def measure(callers: dict[str, Caller], options: argparse.Namespace) -> Rounds:
    """All systems in turn, several rounds: drift of the machine hits all of them alike."""
    found: Rounds = {name: {"single": [], "crowd": []} for name in callers}
    for name, caller in callers.items():
        caller.wait_ready()
        caller.order(calls=options.warm_up)
        progress(f"{name} is ready")
    for number in range(1, options.rounds + 1):
        for name, caller in callers.items():
            found[name]["single"].append(caller.order(calls=options.calls))
            crowd = caller.order(callers=options.callers, seconds=options.seconds)
            found[name]["crowd"].append(crowd)
        progress(f"round {number} of {options.rounds}")
    return found


def middle(rounds: list[dict[str, float]], figure: str) -> float:
    """The median round's figure."""
    values = sorted(each[figure] for each in rounds)
    return values[len(values) // 2]


def figures_of(found: Rounds) -> dict[str, dict[str, float]]:
    """For each system: one by one, and with many callers at once."""
    return {
        name: {
            "c1_p50_ms": middle(kinds["single"], "p50_ms"),
            "c1_p99_ms": middle(kinds["single"], "p99_ms"),
            "crowd_per_s": middle(kinds["crowd"], "per_s"),
            "crowd_p99_ms": middle(kinds["crowd"], "p99_ms"),
        }
        for name, kinds in found.items()
    }


def judged(figures: dict[str, dict[str, float]]) -> list[Goal]:
    """The goals, as far as both sides were measured. A throughput's inverse is what is bounded."""

    def of(name: str, figure: str) -> float | None:
        return figures.get(name, {}).get(figure)

    def calls(name: str, per: float = 1.0) -> float | None:
        value = of(name, "crowd_per_s")
        return None if value is None else round(1_000 / value * per, 5)

    ours, many = "attached", f"attached {MANY}"
    return [
        at_most("p50, ms: NATS's x 1.5", of(ours, "c1_p50_ms"), of("nats", "c1_p50_ms"), 1.5),
        at_most("p50, ms: Ray's", of(ours, "c1_p50_ms"), of("ray", "c1_p50_ms")),
        at_most("p50, ms: Celery's", of(ours, "c1_p50_ms"), of("celery", "c1_p50_ms")),
        at_most("ms a call at c=32: NATS's", calls(ours), calls("nats")),
        at_most("ms a call at c=32: Ray's", calls(ours), calls("ray")),
        at_most("ms a call at c=32: Celery's", calls(ours), calls("celery")),
        at_most("ms a call at c=32: POST relay's / 3", calls(ours), calls("post"), 1 / 3),
        at_most("ms a call at c=32: raw relay's x 2", calls(ours), calls("raw"), 2.0),
        at_most(
            "ms a call at c=32, 10 workers: asking all's / 10",
            calls(many), calls(f"poll {MANY}"), 1 / 10,
        ),
    ]  # fmt: skip


def run(options: argparse.Namespace, tools: Tools) -> Rounds:
    """Start every system that there is, and measure them all."""
    wanted = [(name, name, options.workers) for name in options.systems if name != "poll"]
    if "poll" in options.systems:
        wanted += [(f"poll {MANY}", "poll", MANY)]
        if "attached" in options.systems:
            wanted += [(f"attached {MANY}", "attached", MANY)]
    with contextlib.ExitStack() as stack:
        callers: dict[str, Caller] = {}
        for label, name, workers in wanted:
            why_not = tools.missing(name)
            if why_not:
                progress(f"{name}: {why_not}")
                continue
            callers[label] = stack.enter_context(SYSTEMS[name](workers, tools))
        return measure(callers, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000, help="One by one, in each round.")
    parser.add_argument("--callers", type=int, default=32, help="At once.")
    parser.add_argument("--seconds", type=float, default=2.0, help="At once, in each round.")
    parser.add_argument("--warm-up", type=int, default=200, help="Calls that do not count.")
    parser.add_argument("--rivals-dir", type=Path, default=default_directory())
    options = arguments(parser)
    if options.quick:
        options.rounds, options.calls, options.seconds, options.warm_up = 1, 50, 0.2, 10
    figures = figures_of(run(options, Tools(options.rivals_dir)))
    goals = judged(figures)
    progress("")
    print_table([goal.row() for goal in goals])
    rows = [{"system": name, **each} for name, each in figures.items()]
    parameters = {
        name: value for name, value in vars(options).items() if name not in {"quick", "rivals_dir"}
    }
    report("rpc", rows, parameters=parameters, figures=figures, **outcome(goals))


if __name__ == "__main__":
    main()
