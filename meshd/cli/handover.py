"""What `call` and `delegate` share: options, the request, and how the answer's story is told."""

import math
from collections.abc import Callable
from typing import Any

import click

from meshd.cli.options import complete_capabilities, complete_nodes, duration
from meshd.cli.output import NONE, escape, json_text, latency
from meshd.cli.session import Session
from meshd.priority import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from meshd.routing.limits import DEADLINE_S, DEADLINE_UNNAMED_S_MAX, RETRIES_MAX

GRACE_S = 2.0
"""How much longer than the deadline the daemon may take to say that it has passed."""

LEFT_OUT_MAX = 8
"""Nodes that an explanation for people names one by one."""

Command = Callable[..., Any]


def handover_options(function: Command, *, also: str = "") -> Command:
    """-d, --to, --timeout, --policy, --explain, --idempotency-key, --priority, --fallback, ..."""
    options: list[Callable[[Command], Command]] = [
        click.option("-d", "--data", metavar="JSON|@FILE|-", help="The input; `-` reads stdin."),
        click.option(
            "--to",
            metavar="NODE|auto",
            default="auto",
            shell_complete=complete_nodes,
            help="Which node; auto: the best one.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=duration,
            metavar="TIME",
            help=f"Give up after this long (5s, 500ms, 2m); default {DEADLINE_S:g}s,"
            f" or as the node is configured{also}.",
        ),
        click.option("--policy", metavar="NAME", help="How to choose, e.g. least_loaded."),
        click.option("--explain", is_flag=True, help="Say on stderr why this node was chosen."),
        click.option("--idempotency-key", metavar="KEY", help="Run at most once for this key."),
        click.option(
            "--priority",
            type=click.IntRange(PRIORITY_MIN, PRIORITY_MAX),
            metavar="1..5",
            help=f"How urgent it is; 5 goes first, default {PRIORITY_DEFAULT}.",
        ),
        click.option(
            "--fallback",
            multiple=True,
            metavar="CAPABILITY",
            shell_complete=complete_capabilities,
            help="Try this one with the same input where nobody can do it. May be repeated.",
        ),
        click.option("--wait", is_flag=True, help="Wait for somebody who can, until the timeout."),
        click.option(
            "--offers",
            type=click.IntRange(1, 1 + RETRIES_MAX),
            metavar=f"1..{1 + RETRIES_MAX}",
            help="Ask so many candidates for a bid, and take the best.",
        ),
        *_terms_options(),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _terms_options() -> list[Callable[[Command], Command]]:
    """What is asked of whoever takes it: --version, --where, --region, --label, ..."""
    return [
        click.option("--version", metavar="RANGE", help="Of the capability: 1.2, ^1.2, '>=1,<2'."),
        click.option(
            "--where",
            multiple=True,
            metavar="CONDITION",
            help="On its attributes, e.g. 'warehouse in {A, B}'. May be repeated.",
        ),
        click.option("--region", metavar="NAME", help="Only nodes there; eu takes eu-west."),
        click.option(
            "--label", "labels", multiple=True, metavar="K=V", help="Only nodes that carry it."
        ),
        click.option(
            "--difficulty",
            type=click.FloatRange(0.0, 1.0),
            metavar="0..1",
            help="How hard it is: who does it is at least as proficient, and no more than need be.",
        ),
        click.option(
            "--budget",
            "budget_usd",
            type=click.FloatRange(min=0.0),
            metavar="USD",
            help="What the call may cost, at most.",
        ),
        click.option("--affinity", metavar="KEY", help="Calls of one KEY go to one node."),
    ]


Part = Callable[[Any], None]


def hand_over(
    session: Session, request: dict[str, Any], *, on_part: Part | None = None, **choices: Any
) -> dict[str, Any]:
    """Ask the daemon to delegate, and return its whole answer.

    `on_part` is given each partial result as it comes.

    Raises:
        MeshError: nobody could, or the one who could failed.
    """
    params = delegate_params(request, **choices)
    limit_ms = params.get("deadline_ms", DEADLINE_UNNAMED_S_MAX * 1_000)
    timeout_s = limit_ms / 1_000 + GRACE_S
    answer: dict[str, Any]
    if on_part is None:
        answer = session.call("delegate", params, timeout_s=timeout_s)
    else:
        answer = _streamed(session, params, timeout_s, on_part)
    if choices["explain"]:
        for line in explanation(answer.get("explain")):
            session.note(line)
    return answer


def delegate_params(
    request: dict[str, Any],
    *,
    to: str,
    timeout_s: float | None,
    policy: str | None,
    explain: bool,
    idempotency_key: str | None,
    priority: int | None,
    fallback: tuple[str, ...] = (),
    wait: bool = False,
    offers: int | None = None,
    version: str | None = None,
    where: tuple[str, ...] = (),
    region: str | None = None,
    labels: tuple[str, ...] = (),
    difficulty: float | None = None,
    budget_usd: float | None = None,
    affinity: str | None = None,
) -> dict[str, Any]:
    """The parameters of `delegate` that the options stand for."""
    optional = {
        "to": None if to == "auto" else to,
        "policy": policy,
        "explain": explain or None,
        "idempotency_key": idempotency_key,
        "priority": priority,
        "fallback": list(fallback) or None,
        "wait": wait or None,
        "offers": offers,
        "version": version,
        "where": list(where) or None,
        "region": region,
        "labels": _labels(labels) or None,
        "difficulty": difficulty,
        "cost_usd_max": budget_usd,
        "affinity": affinity,
    }
    given = {key: value for key, value in optional.items() if value is not None}
    if timeout_s is not None:
        given["deadline_ms"] = max(1, round(timeout_s * 1_000))
    return {**request, **given}


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """`K=V` as name and value.

    Raises:
        BadParameter: one has no `=`.
    """
    parted = [pair.partition("=") for pair in pairs]
    for pair, (_, sign, _) in zip(pairs, parted, strict=True):
        if not sign:
            raise click.BadParameter(f"--label {pair!r}: write it as K=V")
    return {name: value for name, _, value in parted}


def _streamed(
    session: Session, params: dict[str, Any], timeout_s: float, on_part: Part
) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for what, value in session.client.stream("delegate", params, timeout_s):
        if what == "part":
            on_part(value)
        elif what == "progress":
            session.note(progress_text(value))
        else:
            answer = value
    return answer


def progress_text(told: dict[str, Any]) -> str:
    """`40 % reading`: how far it is."""
    fraction = told.get("fraction")
    parts = [f"{fraction:.0%}"] if isinstance(fraction, int | float) else []
    parts += [escape(told["message"])] if told.get("message") else []
    return " ".join(parts) or "it goes on"


def explanation(explain: Any) -> list[str]:
    """Lines that say who was chosen by which factors, and why others were not."""
    if not isinstance(explain, dict):
        return [escape(json_text(explain))] if explain else ["no explanation was given"]
    candidates = explain.get("candidates") or []
    left_out = explain.get("left_out") or []
    ranked = [f"{_name(c)} ({_score(c)})" for c in candidates]
    capability, policy = (escape(explain.get(key, "?")) for key in ("capability", "policy"))
    source = explain.get("policy_from")
    policy += f" (from {escape(source)})" if source else ""
    lines = [f"{capability} by policy {policy} → {ranked[0] if ranked else 'nobody'}"]
    lines += [f"  then {text}" for text in ranked[1:]]
    lines += [
        f"  asked {_name(p)} how busy it is: {_probed(p)}" for p in explain.get("probes") or []
    ]
    if explain.get("not_probed"):
        lines.append(f"  nobody was asked how busy it is: {escape(explain['not_probed'])}")
    lines += [f"  not {_name(o)}: {escape(o.get('why', '?'))}" for o in left_out[:LEFT_OUT_MAX]]
    if len(left_out) > LEFT_OUT_MAX:
        lines.append(f"  … and {len(left_out) - LEFT_OUT_MAX} others; all of them: --json")
    if explain.get("is_whole") is False:
        lines.append(
            "  others were not looked at: of a large mesh a few are drawn; --explain tells all"
        )
    return lines


def _name(entry: dict[str, Any]) -> str:
    return escape(entry.get("name") or entry.get("node") or "?")


def _probed(probe: dict[str, Any]) -> str:
    if not probe.get("answered"):
        return "no answer by then"
    took_s = probe.get("rtt_s")
    took = f", after {latency(took_s * 1_000)}" if isinstance(took_s, int | float) else ""
    return f"{_figure(probe.get('rif'))} under way or waiting{took}"


def _score(candidate: dict[str, Any]) -> str:
    factors = candidate.get("factors") or {}
    text = ", ".join(f"{escape(name)} {_figure(value)}" for name, value in factors.items())
    score = f"score {_figure(candidate.get('score'), unknown='last')}"
    return f"{score}: {text}" if text else score


def _figure(value: Any, *, unknown: str = NONE) -> str:
    """A number for people. JSON has null in place of an infinite one."""
    if value is None or value in (math.inf, -math.inf):
        return unknown
    return f"{value:.3g}" if isinstance(value, int | float) else escape(value)


def whereabouts(answer: dict[str, Any]) -> str:
    """`lab-b · agent nlp · 12.4 ms`: who did it, and how long it took in all."""
    target = answer.get("delegated_to") or {}
    result = answer.get("peer_result") or {}
    parts = [escape(target.get("node") or result.get("node") or "?")]
    agent = target.get("agent") or result.get("agent")
    parts += [f"agent {escape(agent)}"] if agent else []
    parts.append(latency(answer.get("rpc_latency_ms")))
    failed = [attempt for attempt in answer.get("attempts") or [] if attempt.get("outcome") != "ok"]
    cost_usd = answer.get("cost_usd")
    parts += [f"${cost_usd:.4g}"] if cost_usd else []
    parts += [f"after {_name(a)}: {escape(a.get('outcome', '?'))}" for a in failed]
    return " · ".join(parts)
