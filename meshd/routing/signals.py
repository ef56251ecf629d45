"""What this node knows first-hand about its peers: its own calls there, their replies, failures.

Gossip says how busy a peer was a moment ago. Between two reports the only thing that a dispatcher
knows for certain is what it sent there itself; adding that to the report keeps it from sending
everything to the node that looked idle last.
"""

import math
from collections import deque
from enum import IntEnum
from typing import Any

import msgspec

from meshd.clock import Instant, Seconds
from meshd.model import Epoch, Load, NodeId
from meshd.routing.history import History
from meshd.structs import Frozen
from meshd.view import Peer

PEERS_MAX = 4096
"""Peers with first-hand records; beyond it the longest unused idle record is forgotten."""

EVENTS_MAX = 128
"""Own starts and ends kept for each peer, to know how many calls a report had seen."""

SERVICE_S_MIN: Seconds = 1e-6
"""No task is taken to be shorter, whatever a peer says."""

DEFAULT_SERVICE_S: Seconds = 0.1
"""What a task is assumed to take where neither reports nor own calls say, of nobody."""

UNKNOWN_RTT_S: Seconds = 0.01
"""The round trip assumed for peers that were neither measured nor can be estimated."""

SERVICE_SAMPLES = 50
"""The service average weighs a new sample by 1/n up to this n: 0.02 (faster ones herd on noise)."""

FAILURE_FACTOR = 10.0
"""A failure counts as a call of this many service times, or as long as it took if that is longer.

So who fails fast attracts nobody; who fails again and again is kept out by its circuit.
"""

FAILURE_S_MAX: Seconds = 60.0
FAILURE_WEIGHT = 0.3
FAILURE_HALF_LIFE_S: Seconds = 10.0

ERRORS_STEP = 0.01
"""By so much the share of errors that a peer reports has to grow, to be news."""

RATE_HALF_LIFE_S: Seconds = 5.0
RATE_GRAIN_S: Seconds = 0.001
"""What happens within it counts as at once: a power for each would cost more than the rest."""
SLOTS_MAX = 4096
FIGURE_MAX = 1_000_000_000
"""No figure of a load record is larger; this also bars NaN and infinity."""


class Outcome(IntEnum):
    """What one's own call says about the peer that it ran on."""

    OK = 0
    FAILED = 1
    NEUTRAL = 2
    """Refused, cancelled, abandoned, or the caller's own fault: nothing about its health."""


OK, FAILED, NEUTRAL = Outcome.OK, Outcome.FAILED, Outcome.NEUTRAL
"""The same for what runs in each call: until Python 3.12 an attribute of an enumeration takes
fifteen times as long as a name."""


class Estimate(Frozen, frozen=True):
    """What a call to a peer would meet now.

    `rif` is the estimated number of requests in flight there, of which `own` were started here
    since its last report, which is `age_s` old (endless if there is none); `eta_s` grows with `rif`
    even where slots are free, so that equals share work. `is_guess`: nobody knows its `service_s`.
    """

    rif: float
    own: int
    slots: int
    service_s: Seconds
    rtt_s: Seconds
    penalty_s: Seconds
    eta_s: Seconds
    age_s: Seconds
    is_guess: bool = False

    def taking(self, service_s: Seconds) -> "Estimate":
        """The same where a task takes so long."""
        eta_s = service_s * (self.rif + 1) / self.slots + self.rtt_s + self.penalty_s
        return msgspec.structs.replace(self, service_s=service_s, eta_s=eta_s)


class _Event(Frozen, frozen=True):
    """An own call's start (`change` 1) or end (-1). `began`: when that call started."""

    when: Instant
    change: int
    began: Instant


class _Record:
    """First-hand knowledge of one peer."""

    __slots__ = (
        "epoch", "events", "failure_at", "failure_s", "mine", "mine_at_report", "report_at",
        "samples", "service_s", "told",
    )  # fmt: skip

    def __init__(self, epoch: Epoch) -> None:
        self.mine = 0
        self.mine_at_report = 0
        self.report_at: Instant | None = None
        self.events: deque[_Event] = deque(maxlen=EVENTS_MAX)
        self.service_s = 0.0
        self.samples = 0
        self.failure_s = 0.0
        self.failure_at = Instant(0.0)
        self.epoch = epoch
        self.told: Load | None = None
        """What was known of it when the newest call began."""

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
    """Own calls in flight, newest load reports, and what failures cost, for each peer."""

    def __init__(self, *, peers_max: int = PEERS_MAX) -> None:
        self.reports: dict[NodeId, tuple[Load, Instant]] = {}
        self.forgotten = 0
        self.history = History(nodes_max=peers_max)
        self._peers_max = peers_max
        self._records: dict[NodeId, _Record] = {}
        self._errors: dict[NodeId, tuple[float, Instant]] = {}
        """The share of errors that each told, and when it grew last."""

    def begin(self, peer: Peer, now: Instant) -> None:
        """A call to `peer` starts. The failures of an earlier run of it are forgotten."""
        node, records = peer.node, self._records
        record = records.get(node)
        if record is None:
            record = records[node] = _Record(peer.epoch)
        elif len(records) * 2 > self._peers_max:  # else nobody asks who was used last
            records[node] = records.pop(node)
        if record.epoch != peer.epoch:
            record.epoch, record.failure_s = peer.epoch, 0.0
        record.told = self.newest(peer)[0]
        record.mine += 1
        record.events.append(_Event(now, 1, now))
        if len(self._records) > self._peers_max:
            self._forget_oldest()

    def end(
        self,
        node: NodeId,
        outcome: Outcome,
        now: Instant,
        *,
        took_s: Seconds,
    ) -> None:
        """A call to `node` ended after `took_s`."""
        record = self._records[node]
        record.mine -= 1
        record.events.append(_Event(now, -1, Instant(now - took_s)))
        if outcome is not NEUTRAL:
            self.history.note(node, record.epoch, now, is_good=outcome is OK)
        if outcome is OK:
            record.samples = min(record.samples + 1, SERVICE_SAMPLES)
            record.service_s += (took_s - record.service_s) / record.samples
            record.failure_s *= 1.0 - FAILURE_WEIGHT
        elif outcome is FAILED:
            self._failed(node, record, took_s, now)

    def on_reply(self, node: NodeId, load: Load, now: Instant) -> None:
        """A reply or refusal of `node` carried its load."""
        reports = self.reports
        if len(reports) * 2 > self._peers_max:  # as above
            reports.pop(node, None)
        reports[node] = (load, now)
        if len(reports) > self._peers_max:
            del reports[next(iter(reports))]

    def on_told(self, node: NodeId, value: Any, now: Instant) -> None:
        """The same as it came over the wire; nothing where it is missing or makes no sense."""
        load = load_from_wire(value)
        if load is not None:
            self.on_reply(node, load, now)

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

    def estimate(
        self, peer: Peer, now: Instant, *, local: bool = False, is_pardoned: bool = False
    ) -> Estimate:
        """What a call to `peer` would meet now. `local`: it is this node, with no way to go.

        `is_pardoned`: it is to be tried again, and what failed there costs nothing: else its past
        would keep away the very call that can tell that it is over. That holds for the share of
        errors that it reports as well: those may be all that it ever ran.
        """
        load, at = self.newest(peer)
        record = self._records.get(peer.node)
        away_s = peer.rtt_estimate_s if peer.rtt_s is None else peer.rtt_s
        rtt_s = 0.0 if local else UNKNOWN_RTT_S if away_s is None else away_s
        told_s = _service_s(load, record)
        service_s = told_s or DEFAULT_SERVICE_S
        penalty_s, own = 0.0, 0
        if record is not None:
            own = self._own_since(record, at, away_s or 0.0)
            if record.failure_s and not is_pardoned and record.epoch == peer.epoch:
                penalty_s = record.penalty_s(now)
        slots, rif = 1, own
        if load is not None:
            slots, rif = load.slots or 1, load.in_flight + load.queue + own
            if load.error_fraction and not is_pardoned:
                penalty_s += self._errors_told(peer.node, load, now) * FAILURE_FACTOR * service_s
        rif = max(rif, 0)
        eta_s = service_s * (rif + 1) / slots + rtt_s + penalty_s
        age_s = math.inf if at is None else now - at
        return Estimate(rif, own, slots, service_s, rtt_s, penalty_s, eta_s, age_s, not told_s)

    def _errors_told(self, node: NodeId, load: Load, now: Instant) -> float:
        """The share of errors that a peer reports; it fades while it grows no more.

        The share is of its last runs, however old: whoever gets no calls for it could never show
        that it is well again.
        """
        share = load.error_fraction
        before, since = self._errors.get(node, (0.0, now))
        if share > before + ERRORS_STEP:
            since = now
        if since == now or share < before:
            self._errors.pop(node, None)
            self._errors[node] = (share, since)
            if len(self._errors) > self._peers_max:
                del self._errors[next(iter(self._errors))]
        return float(share * 0.5 ** (max(0.0, now - since) / FAILURE_HALF_LIFE_S))

    def _own_since(self, record: _Record, at: Instant | None, rtt_s: Seconds) -> int:
        if at is None:
            return record.mine
        if record.report_at != at:
            record.report_at = at
            record.mine_at_report = record.mine_at(at, rtt_s)
        return record.mine - record.mine_at_report

    def _failed(self, node: NodeId, record: _Record, took_s: Seconds, now: Instant) -> None:
        report = self.reports.get(node)
        told_s = _service_s(record.told if report is None else report[0], record)
        service_s = told_s or DEFAULT_SERVICE_S
        cost_s = min(max(took_s, FAILURE_FACTOR * service_s), FAILURE_S_MAX)
        faded = record.penalty_s(now)
        record.failure_s = faded + FAILURE_WEIGHT * (cost_s - faded)
        record.failure_at = now

    def _forget_oldest(self) -> None:
        for node, record in self._records.items():
            if record.mine == 0:
                del self._records[node]
                self.forgotten += 1
                return


class Rate:
    """How often something happens, an older count weighing less."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = Instant(0.0)

    def count(self, now: Instant) -> None:
        """It happened once more."""
        if now - self._at < RATE_GRAIN_S:
            self._weight += 1.0
            return
        self._weight = 1.0 + self._faded(now)
        self._at = now

    def per_s(self, now: Instant) -> float:
        """Times a second; exact for a steady rate, and fading to 0 once it stopped."""
        return self._faded(now) * math.log(2) / RATE_HALF_LIFE_S

    def _faded(self, now: Instant) -> float:
        return float(self._weight * 0.5 ** (max(0.0, now - self._at) / RATE_HALF_LIFE_S))


def _service_s(load: Load | None, record: _Record | None) -> Seconds:
    """The service time: as reported, else as seen here; 0.0 if neither is known."""
    if load is not None and load.service_s > 0.0:
        return max(SERVICE_S_MIN, load.service_s)
    if record is not None and record.service_s > 0.0:
        return max(record.service_s, SERVICE_S_MIN)
    return 0.0


def load_from_wire(value: Any) -> Load | None:
    """The load that a peer's reply carried, or None where it is missing or makes no sense."""
    if not isinstance(value, dict):
        return None
    try:
        load = msgspec.convert(value, Load)
    except (msgspec.ValidationError, OverflowError):
        return None
    most = FIGURE_MAX
    is_sane = (
        0.0 <= load.cpu_fraction <= 1.0 and 0.0 <= load.mem_fraction <= 1.0
        and 0.0 <= load.error_fraction <= 1.0 and 0 <= load.slots <= SLOTS_MAX
        and 0 <= load.in_flight <= most and 0 <= load.queue <= most
        and 0.0 <= load.service_s <= most and 0.0 <= load.dispatch_per_s <= most
        and 0.0 <= load.lag_s <= most and 0 <= load.sequence <= most
    )  # fmt: skip
    return load if is_sane else None
