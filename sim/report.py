"""A result for people, and as one JSON object."""

from dataclasses import asdict
from typing import Any

from sim.checkers import Violation
from sim.runner import Result


def as_json(result: Result) -> dict[str, Any]:
    """Scenario, seed, digest, violations, metrics: the schema `meshd.sim/1`."""
    plan = result.plan
    return {
        "schema": "meshd.sim/1",
        "scenario": plan.scenario,
        "seed": plan.seed,
        "nodes": plan.nodes,
        "duration_s": plan.duration_s,
        "loss": plan.loss,
        "digest": result.digest,
        "violations": [asdict(violation) for violation in result.violations],
        "metrics": result.metrics,
        "replay": plan.command(),
    }


def as_text(result: Result) -> str:
    """What a person wants to know of a run."""
    metrics = result.metrics
    lines = [
        _head(result),
        f"  digest      {result.digest}",
        _traffic(metrics),
        f"  suspected   {metrics['false_suspicions']} times wrongly{_whom(metrics, 'suspected')}",
        f"  held dead   {metrics['false_deaths']} times wrongly{_whom(metrics, 'dead')}",
        _timing("suspicion", metrics["suspected_s"], "crashes first suspected"),
        _timing("detection", metrics["detected_s"], "deaths known to a node"),
        _timing("joining", metrics["joined_s"], "handshakes"),
        _timing("convergence", metrics["converged_s"], "times all views became equal and true"),
    ]
    shown = [line for line in lines if line]
    if result.violations:
        shown += ["", *failure_lines(result)]
    else:
        shown.append("  every invariant held")
    return "\n".join(shown)


def _head(result: Result) -> str:
    plan, metrics = result.plan, result.metrics
    return (
        f"{plan.scenario}: {plan.nodes} nodes, {metrics['virtual_s']:g} s, seed {plan.seed}, "
        f"{plan.loss:.1%} loss, {metrics['events']:,} events"
    )


def _traffic(metrics: dict[str, Any]) -> str:
    packets, sent = metrics["packets_per_node_s"], metrics["bytes_per_node_s"]
    return f"  traffic     {packets:.2f} packets and {sent:.0f} B per node and second"


def failure_lines(result: Result) -> list[str]:
    """All that is needed to understand a failed run, and to see it again."""
    first = result.violations[0]
    return [
        f"VIOLATED {describe(first)}",
        "plan:",
        *(f"  {line}" for line in result.plan.lines()),
        "the last that happened there:",
        *(f"  {line}" for line in result.tail),
        f"replay: {result.plan.command()}",
    ]


def describe(violation: Violation) -> str:
    """One violation in one line."""
    return (
        f"{violation.invariant} at {violation.at_s:.6f} by {_who(violation.observer)} "
        f"about {_who(violation.subject)}: {violation.text}"
    )


def _who(index: int) -> str:
    return "nobody in particular" if index < 0 else f"node {index}"


def _whom(metrics: dict[str, Any], what: str) -> str:
    counts = metrics[f"falsely_{what}"]
    if not counts:
        return ""
    return " (" + ", ".join(f"node {node}: {times}" for node, times in counts.items()) + ")"


def _timing(label: str, spread: dict[str, Any], what: str) -> str:
    if not spread["count"]:
        return ""
    return (
        f"  {label:<11} p50 {spread['p50']:.2f} s, p99 {spread['p99']:.2f} s, "
        f"max {spread['max']:.2f} s ({spread['count']} {what})"
    )
