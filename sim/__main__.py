"""The simulator's commands: list, run, replay, sweep, bench."""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from sim.plan import Plan
from sim.report import as_json, as_text
from sim.runner import Result, run, shrink
from sim.scenarios import SCENARIOS
from sim.sweep import Outcome, outcomes

EXIT_OK, EXIT_VIOLATED, EXIT_USAGE = 0, 1, 2
PROGRESS_S = 1.0
BENCH = (
    ("1,000 nodes, 1 % loss, one crash", "crash", 1_000, 60.0, 0.01),
    ("100 nodes, 1 % loss, one crash", "crash", 100, 60.0, 0.01),
    ("50 nodes, starved", "starved", 50, 120.0, 0.01),
)
BENCH_LARGE = (
    ("10,000 nodes, 1 % loss, one crash", "crash", 10_000, 60.0, 0.01),
    ("1,000 nodes, split and healed", "split", 1_000, 120.0, 0.0),
)
BENCH_SWARM_SEEDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 if an invariant was broken, 2 for usage."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sim", description="Run meshd's protocol in a simulated network, from a seed."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listed = commands.add_parser("list", help="name the scenarios")
    listed.add_argument("--json", action="store_true", help="one JSON object")
    listed.set_defaults(command=_list)
    for name, text, command in (
        ("run", "run a scenario once", _run),
        ("replay", "run it again, and show the last lines of the trace", _replay),
        ("sweep", "run a scenario with many seeds", _sweep),
    ):
        parsed = commands.add_parser(name, help=text)
        parsed.add_argument("scenario", choices=sorted(SCENARIOS), metavar="SCENARIO")
        _add_common(parsed)
        parsed.set_defaults(command=command)
        if name == "sweep":
            parsed.add_argument("--seeds", type=int, default=100, help="how many seeds")
            parsed.add_argument("--jobs", type=int, default=1, help="processes at a time")
    bench = commands.add_parser("bench", help="measure the simulator's speed, in CPU seconds")
    bench.add_argument("--large", action="store_true", help="10,000 nodes, and a large split too")
    bench.add_argument("--json", action="store_true", help="one JSON object")
    bench.set_defaults(command=_bench)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, help="how many nodes")
    parser.add_argument("--seed", type=int, default=0, help="what everything follows from")
    parser.add_argument("--duration", type=_seconds, help="how long faults happen: 60s, 2m")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets lost, 0 .. 1")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")


def _seconds(text: str) -> float:
    """`60`, `60s`, `2m`, `500ms`."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def _plan(options: argparse.Namespace, seed: int) -> Plan:
    scenario = SCENARIOS[options.scenario]
    nodes = scenario.nodes if options.nodes is None else options.nodes
    duration_s = scenario.duration_s if options.duration is None else options.duration
    return scenario.make(nodes, seed, duration_s, options.loss)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_json(value: dict[str, Any]) -> None:
    _print(json.dumps(value, separators=(",", ":")))


def _list(options: argparse.Namespace) -> int:
    if options.json:
        rows = {s.name: {"text": s.text, "nodes": s.nodes} for s in SCENARIOS.values()}
        _print_json({"schema": "meshd.sim.scenarios/1", "scenarios": rows})
    else:
        for each in SCENARIOS.values():
            _print(f"{each.name:<26} {each.text}")
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    result = run(_plan(options, options.seed))
    if result.failed:
        result = shrink(result)
    return _show(result, options)


def _replay(options: argparse.Namespace) -> int:
    return _show(run(_plan(options, options.seed)), options)


def _show(result: Result, options: argparse.Namespace) -> int:
    if options.json:
        _print_json(as_json(result))
    else:
        _print(as_text(result))
    return EXIT_VIOLATED if result.failed else EXIT_OK


# Many seeds


def _sweep(options: argparse.Namespace) -> int:
    failed: list[Outcome] = []
    done = 0
    began = shown = time.monotonic()
    plans = [_plan(options, options.seed + number) for number in range(options.seeds)]
    for outcome in outcomes(plans, jobs=options.jobs):
        done += 1
        if outcome.violation:
            failed.append(outcome)
            sys.stderr.write(f"seed {outcome.seed}: {outcome.violation}\n")
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            sys.stderr.write(f"\r{done}/{options.seeds} seeds, {len(failed)} failed ")
            sys.stderr.flush()
    took_s = time.monotonic() - began
    if options.json:
        _print_json(
            {
                "schema": "meshd.sim.sweep/1",
                "scenario": options.scenario,
                "seeds": done,
                "failed": [{"seed": each.seed, "violation": each.violation} for each in failed],
                "seeds_per_s": round(done / took_s, 2),
            }
        )
    else:
        _print(
            f"{options.scenario}: {done} seeds, {len(failed)} failed, {done / took_s:.1f} seeds/s"
        )
        if failed:
            _print(_plan(options, failed[0].seed).command())
    return EXIT_VIOLATED if failed else EXIT_OK


# Speed


def _bench(options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for text, name, nodes, duration_s, loss in (*BENCH, *(BENCH_LARGE if options.large else ())):
        gc.collect()
        began = time.process_time()
        result = run(SCENARIOS[name].make(nodes, 1, duration_s, loss))
        rows.append(_row(text, result.metrics, time.process_time() - began, result.failed))
        if not options.json:
            _print("{what:<40} {cpu_s:>7.2f} s {us_per_event:>6.1f} us/event".format(**rows[-1]))
    began = time.process_time()
    for seed in range(BENCH_SWARM_SEEDS):
        run(SCENARIOS["swarm"].make(0, seed, 60.0, 0.0))
    per_s = BENCH_SWARM_SEEDS / (time.process_time() - began)
    if options.json:
        _print_json(
            {"schema": "meshd.sim.bench/1", "rows": rows, "swarm_seeds_per_s": round(per_s, 1)}
        )
    else:
        _print(f"{'swarm':<40} {per_s:>7.1f} seeds/s")
    return EXIT_VIOLATED if any(row["failed"] for row in rows) else EXIT_OK


def _row(text: str, metrics: dict[str, Any], cpu_s: float, failed: bool) -> dict[str, Any]:
    return {
        "what": text,
        "cpu_s": round(cpu_s, 2),
        "virtual_s": metrics["virtual_s"],
        "events": metrics["events"],
        "us_per_event": round(cpu_s / metrics["events"] * 1e6, 2),
        "failed": failed,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_VIOLATED)
