"""What this node knows first-hand about its peers: its own calls there, their replies, failures.

Gossip says how busy a peer was a moment ago. Between two reports the only thing that a dispatcher
knows for certain is what it sent there itself; adding that to the report keeps it from sending
everything to the node that looked idle last.
"""

import math
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec

from meshd.clock import Instant, Seconds
from meshd.model import Epoch, Load, NodeId
from meshd.routing.history import History
from meshd.view import ClusterView, Peer

PEERS_MAX = 4096
"""Peers with first-hand records; beyond it the longest unused idle record is forgotten."""

EVENTS_MAX = 128
"""Own starts and ends kept for each peer, to know how many calls a report had seen."""

DEFAULT_SERVICE_S: Seconds = 0.1
"""What a task is assumed to take where neither reports nor own calls say."""

UNKNOWN_RTT_S: Seconds = 0.01
"""The round trip assumed for peers that were neither measured nor can be estimated."""

SERVICE_SAMPLES = 50
"""The service average weighs a new sample by 1/n up to this n: 0.02 (faster ones herd on noise)."""

FAILURE_FACTOR = 10.0
"""A failure counts as a call of this many service times, or of the whole deadline if longer."""

FAILURE_S_MAX: Seconds = 60.0
FAILURE_WEIGHT = 0.3
FAILURE_HALF_LIFE_S: Seconds = 10.0

STREAK_MAX = 3
RECENT_RESULTS = 10
EJECT_S: Seconds = 30.0
EJECTIONS_MAX = 10
SAME_CALL_S = 1e-6
"""A call is known by when it began, give or take what adding and taking away its length costs."""
EJECTIONS_FORGOTTEN_S: Seconds = 300.0
RATE_HALF_LIFE_S: Seconds = 5.0
SLOTS_MAX = 4096
FIGURE_MAX = 1e9
"""No figure of a load record is larger; this also bars NaN and infinity."""


class Outcome(IntEnum):
    """What one's own call says about the peer that it ran on."""

    OK = 0
    FAILED = 1
    NEUTRAL = 2
    """Refused, cancelled, abandoned, or the caller's own fault: nothing about its health."""


class Estimate(msgspec.Struct, frozen=True):
    """What a call to a peer would meet now.

    `rif` is the estimated number of requests in flight there, of which `own` were started here
    since its last report; `eta_s` grows with `rif` even where slots are free, so that equals
    share work.
    """

    rif: float
    own: int
    slots: int
    service_s: Seconds
    rtt_s: Seconds
    penalty_s: Seconds
    eta_s: Seconds


class _Event(msgspec.Struct, frozen=True):
    """An own call's start (`change` 1) or end (-1). `began`: when that call started."""

    when: Instant
    change: int
    began: Instant


class _Record:
    """First-hand knowledge of one peer."""

    __slots__ = (
        "ejected_until", "ejections", "epoch", "events", "failure_at", "failure_s", "mine",
        "mine_at_report", "report_at", "results", "samples", "service_s", "streak", "trials",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mine = 0
        self.mine_at_report = 0
        self.report_at: Instant | None = None
        self.events: deque[_Event] = deque(maxlen=EVENTS_MAX)
        self.service_s = 0.0
        self.samples = 0
        self.failure_s = 0.0
        self.failure_at = Instant(0.0)
        self.epoch: Epoch | None = None
        self.forgive()

    def forgive(self) -> None:
        """Start with a clean slate, as after a restart of the peer."""
        self.results: deque[bool] = deque(maxlen=RECENT_RESULTS)
        self.streak = 0
        self.failure_s = 0.0
        self.ejections = 0
        self.ejected_until: Instant | None = None
        self.trials: list[Instant] = []

    def penalty_s(self, now: Instant) -> Seconds:
        """The expected cost of failing there, which fades while nothing more fails."""
        if not self.failure_s:
            return 0.0
        return float(
            self.failure_s * 0.5 ** (max(0.0, now - self.failure_at) / FAILURE_HALF_LIFE_S)
        )

    def mine_at(self, at: Instant, rtt_s: Seconds) -> int:
        """Own calls in flight there when the peer made the report that arrived at `at`.

        What was sent less than a round trip earlier had not reached the peer by then.
        """
        mine = self.mine
        reached = at - rtt_s
        for event in reversed(self.events):
            if event.when <= reached:
                break
            if event.change > 0:
                mine -= 1
            elif event.when > at or event.began > reached:
                mine += 1
        return max(0, mine)


class Outstanding:
    """Own calls in flight, newest load reports, and ejection, for each peer."""

    def __init__(self, *, peers_max: int = PEERS_MAX) -> None:
        self.reports: dict[NodeId, tuple[Load, Instant]] = {}
        self.forgotten = 0
        self.history = History(nodes_max=peers_max)
        self._peers_max = peers_max
        self._records: dict[NodeId, _Record] = {}
        self._ejected: dict[NodeId, _Record] = {}

    def begin(self, peer: Peer, now: Instant) -> None:
        """A call to `peer` starts. Verdicts on an earlier run of it are forgotten."""
        node = peer.node
        record = self._records.pop(node, None) or _Record()
        self._records[node] = record
        if record.epoch is not None and record.epoch != peer.epoch:
            record.forgive()
            self._ejected.pop(node, None)
        record.epoch = peer.epoch
        record.mine += 1
        record.events.append(_Event(now, 1, now))
        if record.ejected_until is not None and now >= record.ejected_until:
            record.trials.append(now)
        if len(self._records) > self._peers_max:
            self._forget_oldest()

    def end(
        self,
        node: NodeId,
        outcome: Outcome,
        now: Instant,
        *,
        took_s: Seconds,
        deadline_s: Seconds,
    ) -> None:
        """A call to `node` ended after `took_s`; `deadline_s` is the time that it was given."""
        record = self._records[node]
        record.mine -= 1
        record.events.append(_Event(now, -1, Instant(now - took_s)))
        if outcome is not Outcome.NEUTRAL:
            self.history.note(node, record.epoch, now, is_good=outcome is Outcome.OK)
        if outcome is Outcome.OK:
            self._succeeded(node, record, took_s)
        elif outcome is Outcome.FAILED:
            self._failed(node, record, deadline_s, now)
        else:
            self._tried_in_vain(record, Instant(now - took_s))

    def on_reply(self, node: NodeId, load: Load, now: Instant) -> None:
        """A reply or refusal of `node` carried its load."""
        self.reports.pop(node, None)
        self.reports[node] = (load, now)
        if len(self.reports) > self._peers_max:
            del self.reports[next(iter(self.reports))]

    def newest(self, peer: Peer) -> tuple[Load | None, Instant | None]:
        """The newest load known of a peer, from gossip or a reply, and when it arrived."""
        report = self.reports.get(peer.node)
        if report is None or (peer.load_at is not None and peer.load_at > report[1]):
            return peer.load, peer.load_at
        return report

    def requests(self, peer: Peer) -> tuple[Load | None, int, int]:
        """Its newest load, the requests in flight there by now, and which of them we added."""
        load, at = self.newest(peer)
        record = self._records.get(peer.node)
        own = 0 if record is None else self._own_since(record, at, peer.distance_s or 0.0)
        if load is None:
            return None, max(0, own), own
        return load, max(0, load.in_flight + load.queue + own), own

    def estimate(self, peer: Peer, now: Instant, *, local: bool = False) -> Estimate:
        """What a call to `peer` would meet now. `local`: it is this node, with no way to go."""
        load, rif, own = self.requests(peer)
        record = self._records.get(peer.node)
        away_s = peer.distance_s
        rtt_s = 0.0 if local else UNKNOWN_RTT_S if away_s is None else away_s
        slots = 1 if load is None else max(1, load.slots)
        service_s = _service_s(load, record)
        penalty_s = 0.0 if record is None else record.penalty_s(now)
        if load is not None and load.error_fraction:
            penalty_s += load.error_fraction * FAILURE_FACTOR * service_s
        eta_s = service_s * (rif + 1) / slots + rtt_s + penalty_s
        return Estimate(rif, own, slots, service_s, rtt_s, penalty_s, eta_s)

    def admit(self, candidates: Sequence[Peer], now: Instant) -> tuple[list[Peer], list[Peer]]:
        """Split candidates into those that may be asked and those that stay ejected.

        At most a third stays ejected: where more fail, the fault is hardly theirs alone. A peer
        whose time is over gets one call at a time until one succeeds (half-open).
        Source: ROUTING notes; Envoy's outlier detection bounds ejection likewise.
        """
        if not self._ejected:
            return list(candidates), []
        barred = [p for p in candidates if self._is_barred(p, now)]
        barred.sort(key=lambda p: (-(self._ejected[p.node].ejected_until or 0.0), p.node))
        out = {p.node for p in barred[: len(candidates) // 3]}
        return [p for p in candidates if p.node not in out], [p for p in barred if p.node in out]

    def is_failing(self, peer: Peer, now: Instant) -> bool:
        """Whether its last calls failed, so that it gets none, or one to see how it is."""
        return self._is_barred(peer, now)

    def observe(self, view: ClusterView) -> None:
        """Forgive peers that have started anew since they failed."""
        for node, record in list(self._ejected.items()):
            peer = view.get(node)
            if peer is not None and peer.epoch != record.epoch:
                record.forgive()
                del self._ejected[node]

    def _own_since(self, record: _Record, at: Instant | None, rtt_s: Seconds) -> int:
        if at is None:
            return record.mine
        if record.report_at != at:
            record.report_at = at
            record.mine_at_report = record.mine_at(at, rtt_s)
        return record.mine - record.mine_at_report

    def _is_barred(self, peer: Peer, now: Instant) -> bool:
        record = self._ejected.get(peer.node)
        if record is None or record.ejected_until is None:
            return False
        return bool(record.trials) or now < record.ejected_until

    def _succeeded(self, node: NodeId, record: _Record, took_s: Seconds) -> None:
        record.samples = min(record.samples + 1, SERVICE_SAMPLES)
        record.service_s += (took_s - record.service_s) / record.samples
        record.failure_s *= 1.0 - FAILURE_WEIGHT
        record.streak = 0
        record.results.append(True)
        if record.trials:
            record.trials.clear()
            record.ejected_until = None
            self._ejected.pop(node, None)

    def _failed(self, node: NodeId, record: _Record, deadline_s: Seconds, now: Instant) -> None:
        report = self.reports.get(node)
        service_s = _service_s(None if report is None else report[0], record)
        cost_s = min(max(deadline_s, FAILURE_FACTOR * service_s), FAILURE_S_MAX)
        faded = record.penalty_s(now)
        record.failure_s = faded + FAILURE_WEIGHT * (cost_s - faded)
        record.failure_at = now
        record.streak += 1
        record.results.append(False)
        worst = len(record.results) == RECENT_RESULTS and sum(record.results) * 2 < RECENT_RESULTS
        if record.trials or record.streak >= STREAK_MAX or worst:
            self._eject(node, record, now)

    def _eject(self, node: NodeId, record: _Record, now: Instant) -> None:
        last = record.ejected_until
        if last is not None and now < last:
            return  # calls that were under way when it was ejected add nothing
        if last is not None and now - last > EJECTIONS_FORGOTTEN_S:
            record.ejections = 0
        record.ejections = min(record.ejections + 1, EJECTIONS_MAX)
        record.ejected_until = Instant(now + EJECT_S * record.ejections)
        record.trials.clear()
        record.streak = 0
        record.results.clear()
        self._ejected[node] = record

    def _tried_in_vain(self, record: _Record, began: Instant) -> None:
        """A call told nothing: if it was a trial, another may follow, unless one is still open."""
        for trial in record.trials:
            if abs(trial - began) < SAME_CALL_S:
                record.trials.remove(trial)
                return

    def _forget_oldest(self) -> None:
        for node, record in self._records.items():
            if record.mine == 0:
                del self._records[node]
                self._ejected.pop(node, None)
                self.forgotten += 1
                return


class Rate:
    """How often something happens, an older count weighing less."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = Instant(0.0)

    def count(self, now: Instant) -> None:
        """It happened once more."""
        self._weight = 1.0 + self._faded(now)
        self._at = now

    def per_s(self, now: Instant) -> float:
        """Times a second; exact for a steady rate, and fading to 0 once it stopped."""
        return self._faded(now) * math.log(2) / RATE_HALF_LIFE_S

    def _faded(self, now: Instant) -> float:
        return float(self._weight * 0.5 ** (max(0.0, now - self._at) / RATE_HALF_LIFE_S))


def _service_s(load: Load | None, record: _Record | None) -> Seconds:
    """The service time: as reported, else as seen here, else assumed."""
    if load is not None and load.service_s > 0.0:
        return load.service_s
    if record is not None and record.service_s > 0.0:
        return record.service_s
    return DEFAULT_SERVICE_S


def load_from_wire(value: Any) -> Load | None:
    """The load that a peer's reply carried, or None where it is missing or makes no sense."""
    if not isinstance(value, dict):
        return None
    try:
        load = msgspec.convert(value, Load)
    except (msgspec.ValidationError, OverflowError):
        return None
    numbers = (
        load.cpu_fraction, load.mem_fraction, load.in_flight, load.queue, load.slots,
        load.service_s, load.dispatch_per_s, load.error_fraction, load.lag_s, load.sequence,
    )  # fmt: skip
    if not all(0 <= number <= FIGURE_MAX for number in numbers):
        return None
    fractions = (load.cpu_fraction, load.mem_fraction, load.error_fraction)
    return load if max(fractions) <= 1.0 and load.slots <= SLOTS_MAX else None
