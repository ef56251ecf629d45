"""All circuits of a node's calls: what failed here lately gets none for a while, then one to try.

There is one circuit for each capability at each node, and one for each capability wherever it is
offered. While the first is open, calls go to other nodes; while the second is, they fail at once,
so that a fallback can be taken. All of it is first-hand: nobody opens the circuits of others.

Source: Envoy's outlier detection, for the bound on how many may be out at once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from meshd.clock import Instant, Seconds
from meshd.model import Epoch, MemberState, NodeId
from meshd.routing.breaker import Breaker, Circuit, Opening, Passage, failures, node_opening
from meshd.routing.filters import Reason, Rejection
from meshd.routing.settings import BreakerSettings
from meshd.routing.signals import FAILED, NEUTRAL, OK, Outcome
from meshd.structs import Token
from meshd.view import ClusterView, Peer

CIRCUITS_MAX = 8_192
"""Circuits of capabilities at nodes; beyond it the longest unused closed one is forgotten."""

CAPABILITIES_MAX = 1_024
"""Circuits of whole capabilities; beyond it likewise."""

LOOKED_AT_MAX = 64
"""Among so many of the longest unused, a closed one is looked for; else the very first goes."""

EJECTED_PART = 3
"""At most one of so many candidates is left out: where more fail, the fault is hardly theirs."""

SICK_CIRCUITS = 2
"""With so many open circuits a node gets nothing of what is not known to work there."""

NODES_MIN = 3
"""A capability fails everywhere once it failed at so many nodes, or at all that offer it."""

WORKS_S_MAX: Seconds = 30.0
"""A node is thought to work for us for so long since its last call, without an answer."""

WHOLE_S_MAX: Seconds = 60.0
"""A whole capability is open for so long at most (or `capability_open_s`): nobody else has it."""

FAILED_AT_MAX = 256
"""Where it failed at so many nodes and nowhere succeeded, no more are remembered or asked for."""

_WAITED_FOR = frozenset({Reason.TRIED, Reason.FULL})
"""Why a node that could serve a call is none of its candidates, though it may soon be again."""

_FOR_NOW = _WAITED_FOR | {Reason.DRAINING, Reason.NOT_READY}
"""Why a living node that could serve a call is none of its candidates."""


class Admission(Token, frozen=True, eq=False):
    """Which candidates may be asked, which of these are trials, which are left out and why.

    `spared` are asked although their circuits are open, as too many are. The reasons are said by
    `str()`: most plans are never explained.
    """

    kept: list[Peer]
    trials: Sequence[NodeId] = ()
    spared: Collection[NodeId] = ()
    ejected: Sequence[tuple[Peer, object]] = ()


class _Own:
    """The circuit of a capability at one run of a node."""

    __slots__ = ("breaker", "epoch")

    def __init__(self, breaker: Breaker, epoch: Epoch) -> None:
        self.breaker = breaker
        self.epoch = epoch


class _Whole:
    """The circuit of a whole capability.

    `failed_at` are the nodes where it failed since its last success, `under_way` counts the calls
    at each node that have not ended, with when the newest began; `known` are the runs that offered
    it when it opened.
    """

    __slots__ = ("breaker", "failed_at", "known", "under_way")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.failed_at: set[NodeId] = set()
        self.under_way: dict[NodeId, tuple[int, Instant]] = {}
        self.known: Mapping[NodeId, Epoch] = {}

    def begin(self, node: NodeId, now: Instant) -> None:
        """A call is under way there."""
        count, _ = self.under_way.get(node, (0, now))
        self.under_way[node] = count + 1, now

    def end(self, node: NodeId, outcome: Outcome, *, is_pinned: bool) -> None:
        """It no longer is."""
        count, began = self.under_way.pop(node)
        if count > 1:
            self.under_way[node] = count - 1, began
        if outcome is OK:
            self.failed_at.clear()
        elif outcome is FAILED and not is_pinned and len(self.failed_at) < FAILED_AT_MAX:
            self.failed_at.add(node)

    def is_news(self, peer: Peer) -> bool:
        """Whether this run of the node did not offer it yet when it opened."""
        return self.known.get(peer.node) != peer.epoch

    def fails_everywhere(self, capability: str, view: ClusterView, now: Instant) -> bool:
        """Whether it failed at enough nodes, or at all the living that offer it.

        Not while a node that has not failed works for us: failures are fast, and the answers to a
        burst of calls come last from those who do the work. One that got its last call long ago
        and has not answered yet may hang.
        """
        failed = self.failed_at
        if len(failed) >= FAILED_AT_MAX:
            return True
        for node, (_, began) in self.under_way.items():
            if node not in failed and now - began < WORKS_S_MAX:
                return False
        return len(failed) >= NODES_MIN or all(
            peer.node in failed or not peer.offers(capability)
            for peer in view.by_node.values()
            if peer.state is MemberState.ALIVE
        )


_K = TypeVar("_K")
_C = TypeVar("_C", _Own, _Whole)


class _Table(Generic[_K, _C]):
    """Circuits by key, the longest unused first; never more than `most`."""

    def __init__(self, most: int) -> None:
        self.rows: dict[_K, _C] = {}
        self._most = most

    def use(self, key: _K, circuit: _C) -> tuple[_K, _C] | None:
        """Put it last; what had to go for it, if anything."""
        rows = self.rows
        if len(rows) * 2 <= self._most:  # nobody asks which was used last
            rows[key] = circuit
            return None
        rows.pop(key, None)
        gone = None
        if len(rows) >= self._most:
            oldest = [k for k, _ in zip(rows, range(LOOKED_AT_MAX), strict=False)]
            closed = (k for k in oldest if rows[k].breaker.until is None)
            old = next(closed, oldest[0])
            gone = old, rows.pop(old)
        rows[key] = circuit
        return gone


class Crossing(Token, frozen=True, eq=False):
    """One call under way, through the circuit at its node and that of the whole capability."""

    node: NodeId
    capability: str
    own: _Own
    own_passage: Passage
    whole: _Whole
    whole_passage: Passage
    is_pinned: bool


_USUAL = BreakerSettings()


def _as_usual(_capability: str) -> BreakerSettings:
    return _USUAL


class Breakers:
    """All circuits of one node's calls.

    Attributes:
        opened_at_nodes, opened_whole: how often circuits of either kind opened.
        forgotten: circuits that went for want of room.
    """

    def __init__(
        self,
        settings: Callable[[str], BreakerSettings] = _as_usual,
        *,
        circuits_max: int = CIRCUITS_MAX,
        capabilities_max: int = CAPABILITIES_MAX,
    ) -> None:
        """`settings` of a capability are asked for at each end of a call, so that new ones hold."""
        self.opened_at_nodes = 0
        self.opened_whole = 0
        self.forgotten = 0
        self._settings = settings
        self._own: _Table[tuple[NodeId, str], _Own] = _Table(circuits_max)
        self._whole: _Table[str, _Whole] = _Table(capabilities_max)
        self._tripped: dict[NodeId, dict[str, _Own]] = {}
        """Of `_own` those that are not closed, by node: mostly none, so that plans stay cheap."""

    @property
    def opened(self) -> int:
        """How often any did."""
        return self.opened_at_nodes + self.opened_whole

    def begin(
        self, peer: Peer, capability: str, now: Instant, *, is_pinned: bool = False
    ) -> Crossing:
        """A call to `peer` is about to start; each must `end`.

        Nothing may be awaited since the plan, or two could try a half-open circuit.
        `is_pinned`: its caller names the node, so that its failure says nothing of the others.
        """
        node = peer.node
        key = node, capability
        own = self._own.rows.get(key)
        if own is None or own.epoch != peer.epoch:
            own = _Own(Breaker(), peer.epoch)
            self._unlist(node, capability)
        whole = self._whole.rows.get(capability) or _Whole(Breaker())
        gone = self._own.use(key, own)
        if gone is not None:
            self._unlist(*gone[0])
            self.forgotten += 1
        self.forgotten += self._whole.use(capability, whole) is not None
        whole.begin(node, now)
        if whole.breaker.until is not None and not is_pinned and whole.is_news(peer):
            whole.breaker.hurry(now)
        own_passage = own.breaker.begin(now)
        whole_passage = whole.breaker.begin(now, may_try=not is_pinned)
        # By position: each call makes one.
        return Crossing(node, capability, own, own_passage, whole, whole_passage, is_pinned)

    def end(
        self,
        crossing: Crossing,
        outcome: Outcome,
        now: Instant,
        view: Callable[[], ClusterView],
        *,
        is_repeat: bool = False,
    ) -> None:
        """That try ended. `view` is asked, where that matters, who else offers the capability.

        `is_repeat`: the same call failed elsewhere before. Whatever one call fails at, it adds one
        failure to what opens the whole capability: the fault may be its own input's.
        """
        own, settings = crossing.own, self._settings(crossing.capability)
        breaker, window = own.breaker, settings.window
        if outcome is OK and breaker.passed(crossing.own_passage, window):
            crossing.whole.end(crossing.node, outcome, is_pinned=crossing.is_pinned)
            if not crossing.whole.breaker.passed(crossing.whole_passage, window):
                self._end_whole(crossing, outcome, now, view)
            return
        before = breaker.openings
        breaker.end(
            crossing.own_passage,
            outcome,
            now,
            judge=lambda: node_opening(breaker, settings),
            window=settings.window,
            open_s_max=settings.open_s_max,
        )
        self.opened_at_nodes += breaker.openings - before
        if self._own.rows.get((crossing.node, crossing.capability)) is own:
            if breaker.until is None:
                self._unlist(crossing.node, crossing.capability)
            else:
                self._tripped.setdefault(crossing.node, {})[crossing.capability] = own
        crossing.whole.end(crossing.node, outcome, is_pinned=crossing.is_pinned)
        if not (crossing.is_pinned and outcome is FAILED):
            is_told = is_repeat and outcome is FAILED and crossing.whole.breaker.until is None
            self._end_whole(crossing, NEUTRAL if is_told else outcome, now, view)

    def is_calm(self, capability: str) -> bool:
        """Whether no circuit is anything but closed, so that all calls of it pass."""
        whole = self._whole.rows.get(capability)
        return not self._tripped and (whole is None or whole.breaker.until is None)

    def is_barred(self, capability: str, now: Instant) -> bool:
        """Whether the circuit of the whole capability lets no usual call pass."""
        whole = self._whole.rows.get(capability)
        return whole is not None and whole.breaker.is_barred(now)

    def refusal(self, capability: str, candidates: Sequence[Peer], now: Instant) -> Circuit | None:
        """The circuit of the whole capability, where it lets no call pass to any of them, or None.

        Who came or was started anew since it opened is reason enough to try it at once; who was
        merely in doubt for a while is not.
        """
        if not self.is_barred(capability, now) or self.passing(capability, candidates, now):
            return None
        return Circuit.of(self._whole.rows[capability].breaker, capability, None, now)

    def passing(self, capability: str, candidates: Sequence[Peer], now: Instant) -> Sequence[Peer]:
        """Whom the circuit of the whole capability lets a call pass to: all, the new, or nobody."""
        whole = self._whole.rows.get(capability)
        if whole is None or not whole.breaker.is_barred(now):
            return candidates
        if whole.breaker.trial is not None:
            return ()
        return [peer for peer in candidates if whole.is_news(peer)]

    def is_barred_at(self, peer: Peer, capability: str, now: Instant) -> bool:
        """Whether the circuit of the capability at this node lets no call pass."""
        own = self._tripped.get(peer.node, {}).get(capability)
        return own is not None and own.epoch == peer.epoch and own.breaker.is_barred(now)

    def admit(
        self,
        candidates: list[Peer],
        capability: str,
        now: Instant,
        rejected: Sequence[Rejection] = (),
    ) -> Admission:
        """Who of these may be asked: all but those with an open circuit, at most a third of all.

        All are the candidates and those `rejected` for this moment alone: else who fails would get
        just what the healthy have no room for. Where more are open, those with the least time left
        are asked all the same.
        Source: Envoy's outlier detection (`max_ejection_percent`).
        """
        if not self._tripped:
            return Admission(candidates)
        trials: list[NodeId] = []
        barred: list[tuple[Instant, Peer, object]] = []
        for peer in candidates:
            if peer.node not in self._tripped:
                continue
            circuits = self._circuits_of(peer)
            own = circuits.get(capability)
            if own is None:
                until, why = self._sickness(circuits, peer, capability, now)
                if until is not None:
                    barred.append((until, peer, why))
            elif own.breaker.is_barred(now):
                barred.append((own.breaker.until or now, peer, own.breaker))
            else:
                trials.append(peer.node)
        if not barred:
            return Admission(candidates, trials)
        barred.sort(key=lambda row: (-row[0], row[1].node))
        most = _ejected_max(len(candidates), rejected)
        ejected = [
            (peer, Circuit.of(why, capability, peer.node, now) if isinstance(why, Breaker) else why)
            for _, peer, why in barred[:most]
        ]
        out = {peer.node for peer, _ in ejected}
        spared = {peer.node for _, peer, _ in barred[most:]}
        return Admission([p for p in candidates if p.node not in out], trials, spared, ejected)

    def shown(self, view: ClusterView, now: Instant) -> list[Circuit]:
        """All that are not closed, of nodes as they run now; whole capabilities first, by name."""
        return [*self._shown_whole(now), *sorted(self._shown_own(view, now), key=_place)]

    def _shown_whole(self, now: Instant) -> Iterator[Circuit]:
        for capability, whole in sorted(self._whole.rows.items()):
            if whole.breaker.until is not None:
                yield Circuit.of(whole.breaker, capability, None, now)

    def _shown_own(self, view: ClusterView, now: Instant) -> Iterator[Circuit]:
        for node, circuits in self._tripped.items():
            peer = view.get(node)
            for capability, own in circuits.items():
                if peer is not None and own.epoch == peer.epoch:
                    yield Circuit.of(own.breaker, capability, node, now)

    def _end_whole(
        self,
        crossing: Crossing,
        outcome: Outcome,
        now: Instant,
        view: Callable[[], ClusterView],
    ) -> None:
        whole, settings = crossing.whole, self._settings(crossing.capability)
        breaker, passage = whole.breaker, crossing.whole_passage
        if outcome is OK and passage.opening != breaker.openings:
            passage = Passage(now, breaker.openings)  # a success refutes it, whenever it began

        def judge() -> Opening | None:
            if breaker.streak < settings.capability_failures:
                return None
            if not whole.fails_everywhere(crossing.capability, view(), now):
                return None
            why = f"{failures(breaker.streak)} in a row wherever it was tried"
            return Opening(why, settings.capability_open_s)

        before = breaker.openings
        breaker.end(
            passage,
            outcome,
            now,
            judge=judge,
            window=settings.window,
            open_s_max=min(settings.open_s_max, max(WHOLE_S_MAX, settings.capability_open_s)),
        )
        if breaker.openings > before:
            self.opened_whole += 1
            whole.known = _offering(crossing.capability, view())
        elif breaker.until is None:
            whole.known = {}

    def _circuits_of(self, peer: Peer) -> dict[str, _Own]:
        """Those not closed of this run of the node; those of an earlier run are forgiven."""
        circuits = self._tripped.get(peer.node, {})
        for capability in [c for c, own in circuits.items() if own.epoch != peer.epoch]:
            del self._own.rows[peer.node, capability]
            self._unlist(peer.node, capability)
        return circuits

    def _sickness(
        self, circuits: dict[str, _Own], peer: Peer, capability: str, now: Instant
    ) -> tuple[Instant | None, str]:
        """Until when a node gets nothing of a capability that has not failed there, and why.

        One that fails ejects no other. Where two or more are open, the fault may be the node's:
        it gets no more than what worked there when it was called last.
        """
        ends = sorted(
            own.breaker.until
            for own in circuits.values()
            if own.breaker.until is not None and now < own.breaker.until
        )
        known = self._own.rows.get((peer.node, capability))
        works = known is not None and known.epoch == peer.epoch and known.breaker.is_known_to_work
        if len(ends) < SICK_CIRCUITS or works:
            return None, ""
        until = ends[-SICK_CIRCUITS]
        text = f"{len(ends)} of its other circuits are open, so many for another"
        return until, f"{text} {until - now:.3g} s"

    def _unlist(self, node: NodeId, capability: str) -> None:
        circuits = self._tripped.get(node)
        if circuits is not None:
            circuits.pop(capability, None)
            if not circuits:
                del self._tripped[node]


def _ejected_max(candidates: int, rejected: Sequence[Rejection]) -> int:
    """How many of so many candidates may be left out.

    All of them only where one of the others is worth waiting for.
    """
    others = [r.reason for r in rejected if r.reason in _FOR_NOW]
    most = (candidates + len(others)) // EJECTED_PART
    return most if any(reason in _WAITED_FOR for reason in others) else min(most, candidates - 1)


def _offering(capability: str, view: ClusterView) -> dict[NodeId, Epoch]:
    """The runs of nodes that offer it, whatever their state."""
    return {p.node: p.epoch for p in view.by_node.values() if p.offers(capability)}


def _place(circuit: Circuit) -> tuple[str, NodeId]:
    return circuit.capability, circuit.node or NodeId(b"")
