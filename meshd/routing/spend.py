"""What calls cost: an account for each caller, and caps an hour and a day that refuse the rest.

A call counts once an answer came, or once it may have had an effect; what surely had none is free.
Copies of one call count each. Accounts are kept in memory: a restart begins them anew.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant, Seconds
from meshd.errors import BudgetError
from meshd.model import NodeId
from meshd.routing.terms import GRAIN_USD, NO_TERMS, Terms, within
from meshd.routing.usual import UsualUnits

CALLERS_MAX = 512
"""Callers with an account of their own; further ones share `OTHERS`, and its caps."""

ROWS_MAX = 4_096
"""Pairs of caller and capability that are told apart; further ones are added up as `OTHERS`."""

OTHERS = "(others)"
UNITS_MAX = 1e6
"""More units of one call are not believed: it costs what was expected of it."""

GRAIN_DIGITS = 9
"""Digits of a dollar that count: sums of floats are off by less."""

SPANS_S: Mapping[str, Seconds] = {"hour": 3_600.0, "day": 86_400.0}


@dataclass(slots=True)
class Row:
    """What one caller has spent on one capability since this node started."""

    caller: str
    capability: str
    calls: int = 0
    units: float = 0.0
    cost_usd: float = 0.0


@dataclass(slots=True)
class Purchase:
    """One try of a call that is not free. `cost_usd` is what is kept for it, and then its cost.

    `windows_began` are the beginnings of the windows that it is kept in; `units` is how many the
    answer said, once it came.
    """

    caller: str
    node: NodeId
    offered: CapabilitySummary
    cost_usd: float
    windows_began: tuple[Instant, ...]
    units: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """How one cap stands. `resets_in_s` is when the amount is 0 again."""

    cap: str
    caller: str
    cap_usd: float
    spent_usd: float
    resets_in_s: Seconds

    @property
    def left_usd(self) -> float:
        """What may still be spent."""
        return max(0.0, round(self.cap_usd - self.spent_usd, GRAIN_DIGITS))


class _Window:
    """An amount that begins at 0 with the first purchase after the last window was over."""

    __slots__ = ("began", "span_s", "spent_usd")

    def __init__(self, span_s: Seconds, now: Instant) -> None:
        self.span_s = span_s
        self.began = now
        self.spent_usd = 0.0

    def at(self, now: Instant) -> "_Window":
        """The window as it is now, begun anew where its time is over."""
        if now - self.began >= self.span_s:
            self.began, self.spent_usd = now, 0.0
        return self


class Ledger:
    """The accounts of one node's callers."""

    def __init__(self, caps: Mapping[str, float] | None = None) -> None:
        """`caps` are as in `RoutingSettings.spend`."""
        self._caps = dict(caps or {})
        self._windows: dict[tuple[str, str], _Window] = {}
        self._callers: dict[str, None] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._usual = UsualUnits()

    def cap(self, caps: Mapping[str, float]) -> None:
        """These caps hold from now on, also for what was spent before."""
        self._caps = dict(caps)

    def terms(
        self,
        asked: Terms | None,
        caller: str,
        capability: str,
        now: Instant,
        most_usd: float = math.inf,
    ) -> Terms | None:
        """What is asked of candidates, with what the caller may still spend, and the usual units.

        None where nothing is. Nor may a call be expected to cost more than `most_usd`.
        """
        if asked is None and most_usd == math.inf and not (self._caps or self._usual):
            return None
        left_usd = min(most_usd, self.left_usd(caller, now))
        terms = within(asked or NO_TERMS, left_usd, self._usual.by_node(capability, now))
        return None if terms is NO_TERMS else terms

    def left_usd(self, caller: str, now: Instant) -> float:
        """What the caller may still spend now; infinity where no cap bounds it."""
        if not self._caps:
            return math.inf
        return min(spent.left_usd for spent in self.standing(caller, now))

    def standing(self, caller: str, now: Instant) -> list[Spent]:
        """How each cap stands that bounds the caller."""
        found = []
        for cap, cap_usd in self._caps.items():
            who, span = self._account(cap, caller), cap.rpartition("_")[2]
            window = self._windows.get((who, span))
            window = None if window is None else window.at(now)
            spent_usd = 0.0 if window is None else window.spent_usd
            ends_s = 0.0 if window is None else max(0.0, window.began + window.span_s - now)
            found.append(Spent(cap, who, cap_usd, spent_usd, ends_s))
        return found

    def refusal(
        self, caller: str, capability: str, asked_usd: float, now: Instant
    ) -> BudgetError | None:
        """The error for a caller whose caps leave less than `asked_usd`; None if none does."""
        standing = self.standing(caller, now)
        # A cap that the price alone is above comes first: no waiting helps there.
        tight = min(
            standing, key=lambda spent: (spent.cap_usd >= asked_usd, spent.left_usd), default=None
        )
        if tight is None or tight.left_usd >= asked_usd:
            return None
        raising = f"raise {tight.cap} in [routing.spend]"
        waiting = f"wait {tight.resets_in_s:.0f} s for the next one, or {raising}"
        whose = "this node" if tight.caller == "" else tight.caller
        return BudgetError(
            f"{whose} has ${tight.left_usd:g} left for {capability!r} of ${tight.cap_usd:g}"
            f" {tight.cap.partition('_usd_')[2].replace('_', ' ')}",
            hint=waiting
            if tight.cap_usd >= asked_usd
            else f"one call asks ${asked_usd:g}, more than the cap ever leaves: {raising}",
            data={
                "cap": tight.cap, "cap_usd": tight.cap_usd, "spent_usd": tight.spent_usd,
                "resets_in_s": round(tight.resets_in_s, 3),
            },
        )  # fmt: skip

    def is_short(
        self, caller: str, node: NodeId, offered: CapabilitySummary | None, now: Instant
    ) -> bool:
        """Whether a try there is expected to cost more than the caller may still spend."""
        if not self._caps or offered is None:
            return False
        cost_usd = offered.cost_usd(self._usual.expected(offered.name, node, now))
        return cost_usd - self.left_usd(caller, now) > GRAIN_USD

    def begin(
        self, caller: str, node: NodeId, offered: CapabilitySummary | None, now: Instant
    ) -> Purchase | None:
        """A try begins, and what it is expected to cost is kept for it; None if it is free."""
        if offered is None or not (offered.cost_usd_per_call or offered.cost_usd_per_unit):
            return None
        cost_usd = offered.cost_usd(self._usual.expected(offered.name, node, now))
        account = self._known(caller)
        windows = self._windows_of(account, now)
        for window in windows:
            window.spent_usd += cost_usd
        began = tuple(window.began for window in windows)
        return Purchase(account, node, offered, cost_usd, began)

    def end(self, purchase: Purchase, reply: Any, now: Instant, *, is_charged: bool) -> None:
        """It ended, with no valid answer if `reply` is None.

        Not `is_charged`, it surely had no effect. Where nobody knows how many units it took, it
        costs what was expected.
        """
        offered, units = purchase.offered, units_of(reply)
        kept_usd, purchase.units = purchase.cost_usd, units
        if not is_charged:
            purchase.cost_usd = 0.0
        elif units is not None:
            purchase.cost_usd = offered.cost_usd(units)
            self._usual.learn(offered.name, purchase.node, units, now)
        elif _says_no_units(reply):
            purchase.cost_usd = offered.cost_usd(0.0)
        if is_charged:
            row = self._row(purchase.caller, offered.name)
            row.calls += 1
            row.units += units or 0.0
            row.cost_usd += purchase.cost_usd
        self._correct(purchase, purchase.cost_usd - kept_usd, now)

    def rows(self) -> list[Row]:
        """What was spent, by caller and capability."""
        return sorted(self._rows.values(), key=lambda row: (row.caller, row.capability))

    def _account(self, cap: str, caller: str) -> str:
        """Whose amount a cap bounds: the caller's, or the node's own, which has no name."""
        if cap.startswith("node_"):
            return ""
        return caller if caller in self._callers else self._known_or_others(caller)

    def _known_or_others(self, caller: str) -> str:
        return caller if len(self._callers) < CALLERS_MAX else OTHERS

    def _known(self, caller: str) -> str:
        """The name of the caller's account; it is opened if need be."""
        name = caller if caller in self._callers else self._known_or_others(caller)
        self._callers[name] = None
        return name

    def _windows_of(self, account: str, now: Instant) -> list[_Window]:
        """Those that a purchase counts in: of the account and of the node, each once."""
        return [
            self._windows.setdefault((who, span), _Window(span_s, now)).at(now)
            for who in dict.fromkeys((account, ""))
            for span, span_s in SPANS_S.items()
        ]

    def _correct(self, purchase: Purchase, usd: float, now: Instant) -> None:
        """It cost more or less than was kept; a window begun since has nothing to give back."""
        windows = self._windows_of(purchase.caller, now)
        for window, began in zip(windows, purchase.windows_began, strict=True):
            if usd > 0.0 or window.began == began:
                window.spent_usd = max(0.0, window.spent_usd + usd)

    def _row(self, caller: str, capability: str) -> Row:
        key = (caller, capability)
        if key not in self._rows and len(self._rows) >= ROWS_MAX:
            key = (OTHERS, OTHERS)
        return self._rows.setdefault(key, Row(*key))


def units_of(reply: Any) -> float | None:
    """The units that a `work` reply says; None where it says none, or none that make sense."""
    units = reply.get("units") if isinstance(reply, Mapping) else None
    is_number = isinstance(units, int | float) and not isinstance(units, bool)
    return float(units) if is_number and units is not None and 0.0 <= units <= UNITS_MAX else None


def _says_no_units(reply: Any) -> bool:
    """Whether a call was answered without a word of units, as where none are counted."""
    return isinstance(reply, Mapping) and reply.get("units") is None


def spend_shape(ledger: Ledger, now: Instant) -> dict[str, Any]:
    """The accounts as JSON: what was spent, by caller and capability, and how the caps stand."""
    rows = ledger.rows()
    callers = sorted({row.caller for row in rows})
    standing: dict[tuple[str, str], Spent] = {}
    for caller in callers or [""]:
        for spent in ledger.standing(caller, now):
            standing.setdefault((spent.caller, spent.cap), spent)
    return {
        "schema": "meshd.spend/1",
        "cost_usd": sum(row.cost_usd for row in rows),
        "calls": sum(row.calls for row in rows),
        "spent": [
            {
                "caller": row.caller, "capability": row.capability, "calls": row.calls,
                "units": row.units, "cost_usd": row.cost_usd,
            }
            for row in rows
        ],
        "caps": [
            {
                "caller": spent.caller or None, "cap": spent.cap, "cap_usd": spent.cap_usd,
                "spent_usd": spent.spent_usd, "resets_in_s": round(spent.resets_in_s, 3),
            }
            for spent in standing.values()
        ],
    }  # fmt: skip
