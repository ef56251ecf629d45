"""Why a node is believed to be what it is, in words: what `explain` answers, for people."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from meshd.cli.output import age, escape, latency

Belief = dict[str, Any]

HISTORY_SHOWN_MAX = 20
ID_DIGITS_SHOWN = 4
LATE_S = 0.02
"""Mail that is read later than this is read late."""
SLOW_S = 0.25
"""Whoever reads its mail later than this may be what is wrong."""
_NEWCOMER = frozenset({"heard of", "restarted"})
_OPINIONS = frozenset({"suspicion confirmed", "suspicion taken back"})


class Names:
    """What nodes are called: by name, with some digits of the id where two bear the same."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._bearers = Counter(row.get("name") for row in rows)

    def of(self, who: dict[str, Any] | None) -> str:
        """One node; empty where none is meant."""
        if who is None:
            return ""
        node, name = escape(who.get("id") or "?"), who.get("name")
        if not name:
            return node
        shown = escape(name)
        return f"{shown} ({node[:ID_DIGITS_SHOWN]})" if self._bearers[name] > 1 else shown

    def probes(self, whose: Sequence[dict[str, Any]]) -> str:
        """`lab-a's and nuc's probes`."""
        owners = [f"{self.of(who)}'s" for who in whose]
        listed = " and ".join(part for part in (", ".join(owners[:-1]), owners[-1]) if part)
        return f"{listed} {'probe' if len(owners) == 1 else 'probes'}"


# The present


def standing(belief: Belief, names: Names) -> str:
    """For how long it has been what it is, and why; what follows the word of its state."""
    doubt = belief.get("doubt")
    if doubt:
        return _doubted(doubt, names)
    events = [e for e in belief.get("history") or [] if e.get("reason") not in _OPINIONS]
    if not events or events[-1].get("state") != belief.get("state"):
        return ""
    text = f"for {age(events[-1].get('ago_s'))}: {happened(events[-1], belief, names)}"
    left_s = (belief.get("evidence") or {}).get("forgotten_in_s")
    return text if left_s is None else f"{text}; forgotten in {age(left_s)}"


def _doubted(doubt: dict[str, Any], names: Names) -> str:
    accusers, retracted = doubt.get("accusers") or [], doubt.get("retracted") or []
    gone = {who.get("id") for who in retracted}
    standing_by = [who for who in accusers if who.get("id") not in gone]
    why = f"no answer to {names.probes(standing_by)}" if standing_by else "by hearsay alone"
    parts = [f"for {age(doubt.get('since_s'))}: {why}"]
    if retracted:
        parts.append(f"taken back by {', '.join(map(names.of, retracted))}")
    return "; ".join([*parts, *countdown(doubt)]) + " unless it refutes"


def countdown(doubt: dict[str, Any]) -> list[str]:
    """`2 of 3 confirmations`, `dead in 3.2s`."""
    needed = doubt.get("needed")
    counted = [f"{doubt.get('confirmations', 0)} of {needed} confirmations"] if needed else []
    return [*counted, f"dead in {age(doubt.get('dead_in_s'))}"]


def duration(belief: Belief) -> str:
    """How long the doubt may last at all, and why longer than usual; empty without a doubt."""
    doubt = belief.get("doubt")
    if not doubt:
        return ""
    shortest, longest = age(doubt.get("t_min_s")), age(doubt.get("t_max_s"))
    text = f"{shortest} if {doubt.get('needed')} confirm it, {longest} if nobody does"
    if not doubt.get("needed"):
        text = f"{shortest}: there is nobody else to confirm it"
    if doubt.get("lag_s"):
        text += f"\nlonger by {age(2 * doubt['lag_s'])}, for it said that it reads its mail late"
    if doubt.get("crowd"):
        text += "\nlonger, for many are suspected at once"
    if doubt.get("last_call"):
        text += "\ntwo others were asked once more whether it refuted"
    return text


def evidence(belief: Belief, names: Names) -> str:
    """What this node saw itself, and what the member and its sponsor say of it."""
    found = belief.get("evidence") or {}
    probe = found.get("probe")
    lines = []
    if probe:
        rtt_ms = probe.get("rtt_ms")
        result = escape(probe.get("result"))
        result += "" if rtt_ms is None else f" in {latency(rtt_ms)}"
        lines.append(f"{result} to the own probe that ended {age(probe.get('ago_s'))} ago")
    if found.get("reachable") is False:
        lines.append("no work is sent there until it is heard again")
    if (found.get("lag_s") or 0.0) >= LATE_S:
        lines.append(f"reads its mail up to {latency(1_000 * found['lag_s'])} late, as it says")
    sponsor = found.get("sponsor")
    if sponsor:
        lines.append(f"met and vouched for by {names.of(sponsor)}")
    return "\n".join(lines)


def observer(belief: Belief, names: Names) -> str:
    """How well the node is that believes this: rather it may be the one that is ill."""
    who = belief.get("observer")
    if not who:
        return ""
    score, lag_s = who.get("health_score", 0), who.get("lag_s") or 0.0
    text = f"{names.of(who)}, health {score} of {who.get('health_max')} (0 is well)"
    if lag_s >= LATE_S:
        text += f", reads its mail up to {latency(1_000 * lag_s)} late"
    return f"{text}: maybe it is this node that is slow" if score or lag_s >= SLOW_S else text


# The past


def history(belief: Belief, names: Names) -> str:
    """What happened, newest last, in columns."""
    events = belief.get("history") or []
    rows = [
        (
            f"{age(event.get('ago_s'))} ago",
            f"{escape(event.get('state'))} @{event.get('incarnation')}",
            happened(event, belief, names),
        )
        for event in events[-HISTORY_SHOWN_MAX:]
    ]
    wide = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"{ago:>{wide[0]}}  {state:<{wide[1]}}  {text}" for ago, state, text in rows]
    if len(events) > len(rows):
        lines.insert(0, f"… {len(events) - len(rows)} earlier events: --json")
    return "\n".join(lines) or "nothing recorded"


def happened(event: dict[str, Any], belief: Belief, names: Names) -> str:
    """One event: what, by whose probe, and who told it."""
    reason = str(event.get("reason"))
    accuser, teller = event.get("accuser"), event.get("teller")
    probe = "" if accuser is None else f"no answer to {names.probes([accuser])}"
    told = ""
    if teller is not None and teller != accuser:
        is_itself = teller.get("id") == belief.get("node")
        told = f"told by {'itself' if is_itself else names.of(teller)}"
    sponsor = event.get("sponsor")
    if sponsor is not None and sponsor != teller and reason in _NEWCOMER:
        told = ", ".join(part for part in (told, f"vouched for by {names.of(sponsor)}") if part)
    make = REASONS.get(reason)
    return escape(reason) if make is None else make(names.of(accuser), probe, told)


def _first_heard(accuser: str, probe: str, told: str) -> str:
    del accuser
    return ": ".join(part for part in (_and("first heard of", told), probe) if part)


def _told(accuser: str, probe: str, told: str) -> str:
    del accuser
    return ": ".join(part for part in (told, probe) if part) or "told by a peer"


def _unanswered(accuser: str, probe: str, told: str) -> str:
    del accuser, told
    return probe or "no answer to a probe"


def _confirmed(accuser: str, probe: str, told: str) -> str:
    del accuser
    return _and(f"{probe} either", told)


def _retracted(accuser: str, probe: str, told: str) -> str:
    del probe
    return _and(f"{accuser} took its doubt back, an answer came late", told)


def _as(words: str) -> Callable[[str, str, str], str]:
    return lambda _accuser, _probe, told: _and(words, told)


def _and(words: str, told: str) -> str:
    return f"{words}, {told}" if told else words


REASONS: dict[str, Callable[[str, str, str], str]] = {
    "heard of": _first_heard,
    "told by a peer": _told,
    "no answer to a probe": _unanswered,
    "not refuted in time": _as("not refuted in time"),
    "restarted": _as("restarted"),
    "said goodbye": _as("said goodbye"),
    "refuted": _as("refuted"),
    "moved to another address": _as("moved to another address"),
    "came back": _as("came back"),
    "suspicion confirmed": _confirmed,
    "suspicion taken back": _retracted,
}
"""Words for each reason of the core's history; of accuser, probe and teller."""
