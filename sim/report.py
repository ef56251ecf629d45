"""A result for people, and as one JSON object."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from meshd.model import MemberState
from sim.faults import At
from sim.invariants.checkers import NOBODY, Violation
from sim.network import Shape
from sim.plan import Plan
from sim.runner import Result
from sim.scenario_file import fault_text
from sim.world import START_S, address_of, node_id

PLAN_LINES_MAX = 60
COLUMNS_MAX = 160
Paint = Callable[[str, str], str]


def plain(text: str, style: str) -> str:
    """Without colours."""
    del style
    return text


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What is left of a failed plan without the faults that do not matter.

    Attributes:
        result: of the smaller plan; it breaks the same invariant.
        kept: which faults of the whole plan are left, by their number from 1; None if the smaller
            plan differs from the whole one in more than its faults.
        command: what replays it.
    """

    result: Result
    kept: tuple[int, ...] | None
    command: str


def as_json(
    result: Result, command: str | None = None, shrunk: Shrunk | None = None
) -> dict[str, Any]:
    """Scenario, seed, digest, violations, metrics: the schema `meshd.sim.run/1`.

    Times of violations count from the start of the run, as those of faults do.
    """
    plan = result.plan
    document = {
        "schema": "meshd.sim.run/1",
        "scenario": plan.scenario,
        "seed": plan.seed,
        "nodes": plan.nodes,
        "duration_s": plan.duration_s,
        "loss": plan.shape.loss,
        "digest": result.digest,
        "violations": [_violation(each) for each in result.violations],
        "metrics": result.metrics,
        "replay": command or plan.command(),
    }
    if result.failed:
        document["tail"] = tail_lines(result)
    if shrunk is not None:
        document["shrunk"] = {
            "faults": shrunk.kept,
            "plan": list(plan_lines(shrunk.result.plan, shrunk.kept)),
            "digest": shrunk.result.digest,
            "violations": [_violation(each) for each in shrunk.result.violations],
            "replay": shrunk.command,
        }
    return document


def _violation(violation: Violation) -> dict[str, Any]:
    return {**asdict(violation), "at_s": round(violation.at_s - START_S, 6)}


def as_text(
    result: Result,
    command: str | None = None,
    shrunk: Shrunk | None = None,
    paint: Paint = plain,
) -> str:
    """What a person wants to know of a run."""
    lines = [_head(result), f"  digest      {result.digest}", *_measures(result.metrics)]
    if result.violations:
        lines += ["", *failure_lines(result, command, shrunk, paint)]
    else:
        lines.append("  " + paint("every invariant held", "green"))
    return "\n".join(lines)


def _head(result: Result) -> str:
    plan, metrics = result.plan, result.metrics
    events = f", {metrics['events']:,} events" if "events" in metrics else ""
    ran = metrics.get("virtual_s", plan.duration_s)
    return (
        f"{plan.scenario}: {plan.nodes} nodes, {ran:g} s, seed {plan.seed}, "
        f"{plan.shape.loss:.1%} loss{events}"
    )


_COUNTED = {
    "suspected_s": ("suspicion", "crashes first suspected"),
    "detected_s": ("detection", "deaths known to a node"),
    "joined_s": ("joining", "handshakes"),
    "converged_s": ("convergence", "times all views became equal and true"),
}
_TOLD = frozenset(
    (
        "events",
        "virtual_s",
        "packets_per_node_s",
        "bytes_per_node_s",
        "packets_dropped",
        "crashes",
        *_COUNTED,
    )
) | {
    "tries",
    "executions",
    "answer_p50_s",
    "answer_p99_s",
    "false_suspicions",
    "false_deaths",
    "falsely_suspected",
    "falsely_dead",
    "rejected",
}


def _measures(metrics: dict[str, Any]) -> list[str]:
    """A line a measure; what this page does not know is told by its name."""
    lines = []
    if "bytes_per_node_s" in metrics:
        packets, sent = metrics["packets_per_node_s"], metrics["bytes_per_node_s"]
        lines.append(f"  traffic     {packets:.2f} packets and {sent:.0f} B per node and second")
    for label, count, who in (
        ("suspected", "false_suspicions", "falsely_suspected"),
        ("held dead", "false_deaths", "falsely_dead"),
    ):
        if count in metrics:
            lines.append(f"  {label}   {metrics[count]} times wrongly{_whom(metrics.get(who, {}))}")
    for name, (label, what) in _COUNTED.items():
        lines += _timing(label, metrics.get(name), what)
    if "calls" in metrics:
        lines += _calls(metrics)
    if metrics.get("packets_dropped"):
        lines.append(f"  dropped     {metrics['packets_dropped']:,} packets")
    for name, value in metrics.items():
        told = name in _TOLD or name.startswith("calls")
        if not told and isinstance(value, int | float | str) and value:
            lines.append(f"  {name.replace('_', ' '):<11} {value}")
    return lines


def _calls(metrics: dict[str, Any]) -> list[str]:
    """What whole daemons did for their callers."""
    ends = [
        f"{count} {name.removeprefix('calls_')}"
        for name, count in metrics.items()
        if name.startswith("calls_") and count
    ]
    made = [f"{metrics[name]} {name}" for name in ("tries", "executions") if name in metrics]
    lines = [f"  calls       {metrics['calls']}: {', '.join(ends)}; {', '.join(made)}"]
    if metrics.get("answer_p50_s") is not None:
        half, most = metrics["answer_p50_s"], metrics["answer_p99_s"]
        lines.append(f"  answers     p50 {half:.3f} s, p99 {most:.3f} s")
    return lines


def _whom(counts: dict[Any, int]) -> str:
    told = ", ".join(f"node {node}: {times}" for node, times in counts.items())
    return f" ({told})" if told else ""


def _timing(label: str, spread: dict[str, Any] | None, what: str) -> list[str]:
    if not spread or not spread["count"]:
        return []
    half, most, longest = (f"{spread[name]:.2f} s" for name in ("p50", "p99", "max"))
    text = f"p50 {half}, p99 {most}, max {longest} ({spread['count']} {what})"
    return [f"  {label:<11} {text}"]


def failure_lines(
    result: Result,
    command: str | None = None,
    shrunk: Shrunk | None = None,
    paint: Paint = plain,
) -> list[str]:
    """All that is needed to understand a failed run, and to see it again."""
    told = result if shrunk is None else shrunk.result
    kept = None if shrunk is None else shrunk.kept
    whole, left = len(result.plan.faults), len(told.plan.faults)
    lines = [f"{paint('VIOLATED', 'red')} {describe(result.violations[0])}"]
    if left < whole:
        lines.append(f"shrunk from {whole} faults to {left}, where it breaks as well:")
        lines.append(f"{paint('VIOLATED', 'red')} {describe(told.violations[0])}")
    lines += [
        f"plan: seed {told.plan.seed}",
        *(f"  {line}" for line in plan_lines(told.plan, kept)),
        "the last that happened there:",
        *(f"  {_clipped(line)}" for line in tail_lines(told)),
    ]
    own = result.plan.command() if command is None else command
    if shrunk is None or shrunk.command == own:
        return [*lines, f"replay: {own}"]
    return [*lines, f"replay: {shrunk.command}", f"whole:  {own}"]


def _clipped(line: str) -> str:
    """A line that people can read; programs get all of it."""
    if len(line) <= COLUMNS_MAX:
        return line
    return line[: line.rindex(" ", 0, COLUMNS_MAX)] + " ..."


def tail_lines(result: Result) -> list[str]:
    """The last lines of the trace, with nodes by their number instead of address and id."""
    nodes = range(result.plan.nodes)
    names = {f"{address_of(index)}": f"node {index}" for index in nodes}
    names |= {node_id(index).hex(): f"node {index}" for index in nodes}

    def name(found: re.Match[str]) -> str:
        return names.get(found[0], found[0])

    def belief(found: re.Match[str]) -> str:
        state = MemberState(int(found[2])).name.lower()
        return f"[{names.get(found[1], found[1])} {state} @{found[3]}]"

    return [_ADDRESS.sub(name, _UPDATE.sub(belief, line)) for line in result.tail]


_ADDRESS = re.compile(r"\b10(?:\.[0-9]{1,3}){3}:[0-9]+\b")
_UPDATE = re.compile(r"\b([0-9a-f]{16}):([0-3])@([0-9]+)")


def plan_lines(plan: Plan, numbers: tuple[int, ...] | None = None) -> list[str]:
    """A plan in the order of time; each fault has the number that `--faults` takes."""
    known = numbers or tuple(range(1, len(plan.faults) + 1))
    timed: list[tuple[int, At]] = sorted(
        zip(known, plan.faults, strict=True), key=lambda pair: pair[1].at_s
    )
    lines = [
        f"{each.at_s:12.6f} {f'#{number}':>10}  {fault_text(each.fault)}" for number, each in timed
    ]
    if len(lines) > PLAN_LINES_MAX:
        rest = len(lines) - PLAN_LINES_MAX
        lines = [*lines[:PLAN_LINES_MAX], f"... and {rest} more"]
    return [_network(plan), *lines]


def _network(plan: Plan) -> str:
    """Who is there, and what the links do; what is as usual is left out."""
    shape, usual = plan.shape, Shape()
    spans = [f"{getattr(shape.latency, each.name) * 1e3:g}" for each in fields(shape.latency)]
    parts = [
        f"{plan.nodes} nodes" + (" (whole daemons)" if plan.whole else ""),
        f"{plan.converged} from the start" if plan.converged < plan.nodes else "",
        f"{plan.meshes} meshes" if plan.meshes > 1 else "",
        f"profile {plan.profile}" if plan.profile != "lan" else "",
        f"{plan.calls_per_s:g} calls a second each" if plan.calls_per_s else "",
        f"latency {type(shape.latency).__name__.lower()} {' '.join(spans)} ms",
        f"{shape.loss:.1%} loss",
        f"{shape.duplicate:.1%} twice" if shape.duplicate else "",
        f"{shape.reorder:.1%} late by up to {shape.reorder_s:g} s" if shape.reorder else "",
        f"at most {shape.mtu_bytes} bytes" if shape.mtu_bytes != usual.mtu_bytes else "",
        f"{shape.bytes_per_s:g} B/s" if shape.bytes_per_s is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def describe(violation: Violation) -> str:
    """One violation in one line; its time counts from the start of the run."""
    return (
        f"{violation.invariant} at {violation.at_s - START_S:.6f} s by {_who(violation.observer)} "
        f"about {_who(violation.subject)}: {violation.text}"
    )


def _who(index: int) -> str:
    return "nobody in particular" if index == NOBODY else f"node {index}"
