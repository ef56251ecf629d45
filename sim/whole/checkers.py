"""The invariants of calls and work, each by its letter and number in SIMULATOR's section 3.

They hear of every call, try and run in the moment that it happens, from the ledger, and ask the
views of that moment. What they find is a `Violation`; the first one halts the world.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from meshd.clock import Instant
from meshd.errors import Code
from meshd.gossip.effects import Effect, MemberChanged
from meshd.model import MemberState
from meshd.routing.breaker import Breaker
from sim.invariants.checkers import NOBODY, Violation
from sim.whole.fleet import Box
from sim.whole.ledger import Call, End, Execution, Listener, Try
from sim.whole.workload import DRAIN_S, EXPECTED, Workplace

Found = Callable[[Violation], None]
ATTEMPTS_MAX = 4
"""R6: one try and three more (docs/ARCHITECTURE.md, "Calls")."""
HOPS_MAX = 8
ROUNDING_S = 0.002
"""Deadlines travel as whole milliseconds."""
LATE_S = 1.0
"""R2: what a call may take beyond its deadline; a frozen process's time does not count."""
WITHDRAWN_KNOWN_S = 6.0
"""R5: after this long in calm everybody knows that a capability is gone (L7)."""
CALM_S = 30.0
"""L2: a disturbance may kill for so long after it."""
FAILURES_MAX = 3
"""R9: so many in a row, and a peer gets nothing for a while."""
CAPABILITY_FAILURES_MIN = 10
"""R9: so many in a row, wherever it was tried, and calls of a capability may end at once."""


class Checker(Listener):
    """Base of all: knows the place, and can fail."""

    invariant = ""

    def __init__(self, place: Workplace, found: Found) -> None:
        self.place = place
        self._found = found
        place.ledger.listen(self)

    def fail(self, observer: int, subject: int, text: str) -> None:
        """Report that the invariant does not hold."""
        self._found(Violation(self.invariant, self.place.now, observer, subject, text))

    def look(self) -> None:
        """Called several times a second, between two steps of the loop."""


class RoutesToTheLiving(Checker):
    """R1: work goes only to who is alive, reachable and heard of in the caller's own view."""

    invariant = "R1"

    def on_try(self, tried: Try) -> None:
        """Look at the view that routing has now."""
        if tried.to == tried.by:
            return
        place = self.place
        node = place.boxes[tried.by].node
        assert node is not None
        view, peer, now = node.view(), tried.row, Instant(place.now)
        if peer is None:
            why = "which it does not know"
        elif peer.state is not MemberState.ALIVE:
            why = f"which it holds {peer.state.name}"
        elif not peer.reachable:
            why = "which did not answer the last probe"
        elif view.stale(peer, now):
            why = f"of which it heard nothing for {peer.age(now)} s"
        else:
            return
        self.fail(tried.by, tried.to, f"sends {_name(tried)} to a node {why}")


class EndsOnce(Checker):
    """R2: each call ends once, in time; nothing runs more often than was declared.

    Work that is not idempotent runs at most once, whatever happens; what ended in a definite
    error never ran; a result is that of a run which ended well, on the node that is named. In
    calm nobody is refused while there is someone to ask.
    """

    invariant = "R2"

    def on_execution(self, execution: Execution) -> None:
        """Count the runs."""
        work = execution.work
        if not work.is_idempotent and len(work.executions) > 1:
            first = work.executions[0]
            text = f"runs {_name(execution)} again, after node {first.at} did at {first.began:.3f}"
            self.fail(execution.at, first.at, text)
        if work.calls and all(call.end and _surely_not(call) for call in work.calls):
            self.fail(execution.at, work.calls[0].by, f"runs {_name(execution)}, definitely failed")

    def on_try_end(self, tried: Try) -> None:
        """In calm, nobody gives up on who lives and was not started anew meanwhile."""
        place, box = self.place, self.place.boxes[tried.to]
        was_there = place.was_calm(CALM_S) and box.started_at < tried.began
        is_there = was_there and box.is_member and not box.is_held
        if is_there and _is_given_up(place, tried) and not self._is_doubted(tried):
            self.fail(tried.by, tried.to, f"{_name(tried)}: gives up on a node that lives")

    def _is_doubted(self, tried: Try) -> bool:
        """Whether the caller's view has doubts now: idempotent work may move on then.

        So it has of who was started anew since the view that it was asked by: that call may have
        come to the new run already, which the caller cannot know.
        """
        node, row = self.place.boxes[tried.by].node, tried.row
        now = None if node is None or row is None else node.view().get(row.node)
        if row is None or now is None or now.epoch != row.epoch:
            return True
        return now.state is not MemberState.ALIVE or not now.reachable

    def on_call_end(self, call: Call) -> None:
        """Compare what the caller was told with what was done."""
        if call.ends > 1:
            self.fail(call.by, NOBODY, f"{_name(call)} ended twice")
        # What had begun before it is the run of an earlier call under the same key.
        ran = [run for run in call.work.executions if run.began >= call.began]
        if _surely_not(call) and ran:
            text = f"{_name(call)} ended in a definite error, but ran: {call.error}"
            self.fail(call.by, ran[0].at, text)
        if call.end is End.DONE:
            self._look_at_result(call)
        if call.end is End.FAILED and _surely_not(call) and self._is_refused_for_nothing(call):
            self.fail(call.by, NOBODY, f"{_name(call)} is refused for nothing: {call.error}")

    def _is_refused_for_nothing(self, call: Call) -> bool:
        """Whether in calm nobody was asked, although the caller's own view has whom to ask."""
        place, box = self.place, self.place.boxes[call.by]
        is_there = box.node is not None and box.is_member and not box.is_held
        if call.work.parent is not None or not is_there or not place.was_calm(CALM_S):
            return False
        if call.error is not None and call.error.code == Code.CIRCUIT_OPEN:
            return False  # R9 looks at those
        if any(tried.by == call.by and tried.began >= call.began for tried in call.work.tries):
            return False
        assert box.node is not None
        view, now = box.node.view(), Instant(place.now)
        return any(
            peer.state is MemberState.ALIVE and peer.offers(call.work.capability) is not None
            and (peer.node == view.me or (peer.reachable and not view.stale(peer, now)))
            for peer in view.by_node.values()
        )  # fmt: skip

    def _look_at_result(self, call: Call) -> None:
        answer = call.result["peer_result"]
        number = answer["result"]["execution"]
        for ran in call.work.executions:
            if ran.number == number:
                at = self.place.boxes[ran.at].name
                if ran.end is not End.DONE or answer["node"] != at:
                    self.fail(call.by, ran.at, f"{_name(call)}: {answer}, but that run {ran.end}")
                return
        self.fail(call.by, NOBODY, f"{_name(call)} has the result of another: {answer}")

    def look(self) -> None:
        """Find calls that ought to have ended."""
        now = self.place.now
        for call in self.place.ledger.open_calls:
            box = self.place.boxes[call.by]
            # A process that stands still begins late, and then gives the whole time.
            from_s = max(call.began, box.thawed_at)
            if now > from_s + call.deadline - call.began + LATE_S and not box.is_held:
                self.fail(call.by, NOBODY, f"{_name(call)} did not end by its deadline")
                return


class NothingIsLost(Checker):
    """R3: at any moment, what was submitted is done, failed or under way; and every count agrees.

    A node's slots in use are the handlers that run there; what it counts as under way at a peer
    are its tries that are under way there.
    """

    invariant = "R3"

    def look(self) -> None:
        """Compare the nodes' own counts with the ledger."""
        place = self.place
        running = Counter(execution.at for execution in place.ledger.running)
        trying = Counter((tried.by, tried.to) for tried in place.ledger.open_tries)
        for box in place.boxes:
            if box.node is None or not box.joined or box.is_held:
                continue
            held = box.node.worker.load().in_flight
            if held != running[box.index]:
                text = f"{held} slots are in use, {running[box.index]} handlers run"
                self.fail(box.index, NOBODY, text)
                return
            self._look_at_tries(box, trying)

    def _look_at_tries(self, box: Box, trying: Counter[tuple[int, int]]) -> None:
        assert box.node is not None
        for node, record in box.node.dispatcher.outstanding._records.items():  # noqa: SLF001 - a checker looks inside
            if not record.mine and not trying:
                continue
            to = self.place.index_of.get(node.hex(), NOBODY)
            if record.mine != trying[box.index, to]:
                text = f"counts {record.mine} calls there, {trying[box.index, to]} are under way"
                self.fail(box.index, to, text)
                return


class NoCircles(Checker):
    """R4: a path grows, visits no node twice, stays below its bound; its deadline never grows."""

    invariant = "R4"

    def on_try(self, tried: Try) -> None:
        """Look at the path, and at the try that brought the work here."""
        place = self.place
        path = [place.index_of.get(hop, NOBODY) for hop in tried.hops]
        way = [hop for index, hop in enumerate(path) if not index or hop != path[index - 1]]
        where = f"{_name(tried)} by way of {path}"
        if not path or path[-1] != tried.by:
            self.fail(tried.by, tried.to, f"{where} does not say that it was here")
        elif len(set(way)) < len(way) or (tried.to in way and tried.to != tried.by):
            self.fail(tried.by, tried.to, f"{where} goes in a circle")
        elif len(path) > HOPS_MAX:
            self.fail(tried.by, tried.to, f"{where} goes on and on")
        # Time on the wire is what remains: it does not pass while the first node stands still.
        thawed_at = place.boxes[tried.by].thawed_at
        calls = tried.work.calls
        limit = max(math.inf if call.began < thawed_at else call.deadline for call in calls)
        parent = tried.work.parent
        if parent is not None:
            if len(path) < 2:
                self.fail(tried.by, tried.to, f"{where} forgot where it came from")
                return
            runs = [r for r in parent.executions if r.at == tried.by and r.hops == tried.hops[:-1]]
            limit = max((run.deadline for run in runs), default=limit)
        if tried.deadline > limit + ROUNDING_S:
            over_s = tried.deadline - limit
            self.fail(tried.by, tried.to, f"{where} has {over_s:.3f} s more than its caller waits")

    def on_call_end(self, call: Call) -> None:
        """Work that always goes on cannot come back with a result."""
        if call.work.capability == "ring" and call.end is End.DONE:
            self.fail(call.by, NOBODY, f"{_name(call)} came out of a circle with a result")


class GoesToWhoOffers(Checker):
    """R5: work goes to nodes that offer it in the caller's view; a withdrawn one gets no more."""

    invariant = "R5"

    def on_try(self, tried: Try) -> None:
        """Ask the caller's view, and the truth once it had time to spread."""
        place = self.place
        peer = tried.row
        if peer is not None and peer.offers(tried.work.capability) is None:
            self.fail(tried.by, tried.to, f"{_name(tried)}: its view says that it is not offered")
        since = place.withdrawn.get((tried.to, tried.work.capability))
        if since is None:
            return
        calm_s = place.now - max(since, place.calm_since, place.boxes[tried.by].started_at)
        if calm_s > WITHDRAWN_KNOWN_S:
            self.fail(tried.by, tried.to, f"{_name(tried)}: withdrawn {calm_s:.1f} s ago")

    def on_execution(self, execution: Execution) -> None:
        """What was accepted before may still run; nothing else."""
        since = self.place.withdrawn.get((execution.at, execution.work.capability))
        if since is not None and self.place.now - since > DRAIN_S:
            self.fail(execution.at, NOBODY, f"runs {_name(execution)}, which it withdrew")


class TriesAreFew(Checker):
    """R6: a call costs at most four tries that fail, even if everything fails."""

    invariant = "R6"

    def on_try_end(self, tried: Try) -> None:
        """Count those that were not refused for lack of room."""
        work = tried.work
        spent = [t for t in work.tries if t.end not in {None, End.BUSY, End.KILLED}]
        limit = ATTEMPTS_MAX * max(1, len(work.calls))
        if len(spent) > limit:
            nodes = [each.to for each in spent]
            self.fail(tried.by, tried.to, f"{_name(tried)} was tried at {nodes}")


class LeavesCleanly(Checker):
    """R7: who leaves finishes what it took, and its callers get the answers."""

    invariant = "R7"

    def __init__(self, place: Workplace, found: Found) -> None:
        super().__init__(place, found)
        self._asked_at: dict[int, tuple[int, float]] = {}
        place.on_leave.append(self._on_leave)

    def _on_leave(self, box: Box) -> None:
        self._asked_at[box.index] = (box.runs, self.place.now)

    def _is_draining(self, at: int, run: int) -> bool:
        asked_run, asked_at = self._asked_at.get(at, (0, 0.0))
        return asked_run == run and self.place.now < asked_at + DRAIN_S

    def on_execution_end(self, execution: Execution) -> None:
        """Nobody who still waits is cut off."""
        if execution.end is not End.CANCELLED or self.place.is_closing:
            return
        if not self._is_draining(execution.at, execution.run):
            return
        if self.place.now >= execution.deadline - ROUNDING_S:
            return
        for tried in self.place.ledger.open_tries:
            if (tried.work, tried.to, tried.hops) == (
                execution.work, execution.at, execution.hops,
            ):  # fmt: skip
                text = f"leaves and cuts off {_name(execution)}"
                self.fail(execution.at, tried.by, text)

    def on_try_end(self, tried: Try) -> None:
        """What was done there in time arrives, where the network lets it."""
        box = self.place.boxes[tried.to]
        is_failed = tried.error is not None and not tried.error.definite
        if not (is_failed and tried.end is End.FAILED) and not _is_given_up(self.place, tried):
            return
        asked_run, asked_at = self._asked_at.get(tried.to, (0, 0.0))
        if not asked_run or self.place.calm_since > asked_at or box.runs != asked_run:
            return
        for run in tried.work.executions:
            if (run.at, run.hops, run.run) != (tried.to, tried.hops, asked_run):
                continue
            if run.end is End.DONE and run.ended >= asked_at:
                self.fail(tried.by, tried.to, f"{_name(tried)} was done, but lost: {tried.error}")
            is_due = self.place.now < run.deadline - ROUNDING_S
            if run.end is None and is_due and self._is_draining(tried.to, asked_run):
                self.fail(tried.by, tried.to, f"{_name(tried)} was left behind: {tried.error}")


class FailingNodesRest(Checker):
    """R9: what fails three times running at a node is left alone there, then tried by one call.

    At most a third of the candidates are left alone. A new run of the peer is forgiven. Only
    failures that are surely the peer's count here, its handler's errors: what else production
    counts (a fair deadline missed, the share of successes) may open earlier. And a call that ends
    because its capability fails everywhere, does so after ten failures of it without a success.
    """

    invariant = "R9"

    def __init__(self, place: Workplace, found: Found) -> None:
        super().__init__(place, found)
        self._streaks: Counter[tuple[Any, ...]] = Counter()
        self._failures: Counter[tuple[int, int, str]] = Counter()

    def on_try_end(self, tried: Try) -> None:
        """Count failures without a success between."""
        error, capability = tried.error, tried.work.capability
        key, whole = (*_pair(tried), capability), (tried.by, tried.run, capability)
        if tried.end is End.DONE:
            self._streaks[key] = self._failures[whole] = 0
        elif error is not None and error.code != Code.BUSY:
            self._failures[whole] += 1
            is_the_peers = error.code == Code.UPSTREAM and EXPECTED in error.message
            breaker = self._breaker(tried)
            if is_the_peers and breaker is not None and tried.began >= breaker.opened_at:
                self._streaks[key] += 1

    def on_call_end(self, call: Call) -> None:
        """Nobody is told that all fail where not enough did."""
        if call.error is None or call.error.code != Code.CIRCUIT_OPEN:
            return
        if any(tried.by == call.by and tried.began >= call.began for tried in call.work.tries):
            return
        failures = self._failures[call.by, call.run, call.work.capability]
        if failures < CAPABILITY_FAILURES_MIN:
            text = f"{_name(call)}: refused after {failures} failures: {call.error}"
            self.fail(call.by, NOBODY, text)

    def on_try(self, tried: Try) -> None:
        """Nobody goes to a node that rests, and one at a time to one that rested."""
        place, key = self.place, (*_pair(tried), tried.work.capability)
        breaker = self._breaker(tried)
        if breaker is None:
            return
        until = breaker.until
        if until is None:
            if self._streaks[key] >= FAILURES_MAX:
                text = f"{_name(tried)}: it failed {self._streaks[key]} times running"
                self.fail(tried.by, tried.to, text)
        elif place.now < until:
            if not self._has_to(tried):
                self.fail(tried.by, tried.to, f"{_name(tried)}: it rests until {until:.3f}")
        elif not self._has_to(tried):
            tries = [t for t in place.ledger.open_tries if t.began >= until]
            others = [t for t in tries if (*_pair(t), t.work.capability) == key]
            if len(others) > 1:
                self.fail(tried.by, tried.to, f"{_name(tried)}: {len(others)} calls try it at once")

    def _breaker(self, tried: Try) -> Breaker | None:
        """The circuit that it goes through, where caller and peer are there to have one."""
        node = self.place.boxes[tried.by].node
        if node is None or tried.row is None:
            return None
        own = node.dispatcher.breakers._own.rows.get((tried.row.node, tried.work.capability))  # noqa: SLF001 - a checker looks inside
        return None if own is None or own.epoch != tried.row.epoch else own.breaker

    def _has_to(self, tried: Try) -> bool:
        """Whether so many rest that some have to be asked all the same."""
        place = self.place
        node = place.boxes[tried.by].node
        assert node is not None
        outstanding, tripped = node.dispatcher.outstanding, node.dispatcher.breakers._tripped  # noqa: SLF001 - as above
        passed = {each.to for each in tried.work.tries if each is not tried}
        view, now = node.view(), Instant(place.now)
        barred = candidates = 0
        for peer in view.by_node.values():
            if peer.state is not MemberState.ALIVE or not peer.offers(tried.work.capability):
                continue
            barred += peer.node in tripped
            hop, load = peer.node.hex(), outstanding.newest(peer)[0]
            has_room = load is None or not (load.full or load.draining)
            is_heard = peer.node == view.me or (peer.reachable and not view.stale(peer, now))
            was_asked = hop in tried.hops or place.index_of.get(hop) in passed
            candidates += has_room and is_heard and not was_asked
        return barred > candidates // 3


class LiveStayAlive(Checker):
    """L2: in calm no live node is held dead, not even one whose main loop is blocked."""

    invariant = "L2"

    def __init__(self, place: Workplace, found: Found) -> None:
        super().__init__(place, found)
        place.on_effect.append(self._on_effect)

    def _on_effect(self, box: Box, effect: Effect) -> None:
        if type(effect) is not MemberChanged or effect.member.state is not MemberState.DEAD:
            return
        place = self.place
        held = effect.member
        index = place.index_of.get(held.node.hex())
        if index is None or not place.was_calm(CALM_S) or place.is_closing:
            return
        subject = place.boxes[index]
        swim = subject.swim
        if subject.is_member and swim is not None and swim.me.epoch == held.epoch:
            self.fail(box.index, index, f"it lives; held dead: {effect.reason}")


class NoBugsToldOf(Checker):
    """Q3: no exception reaches the loop's handler, and no daemon reports a fault of its own."""

    invariant = "Q3"

    def look(self) -> None:
        """Ask the loop and the daemons."""
        place = self.place
        if place.loop.problems:
            self.fail(NOBODY, NOBODY, place.loop.problems[0])
        for box in place.boxes:
            if box.node is not None and box.node.problems:
                self.fail(box.index, NOBODY, str(box.node.problems))
            ready = box.ready
            if ready is not None and ready.done() and ready.exception() is not None:
                self.fail(box.index, NOBODY, f"it did not start: {ready.exception()!r}")


def safety(place: Workplace, found: Found) -> list[Checker]:
    """All invariants of calls and work."""
    return [
        RoutesToTheLiving(place, found),
        EndsOnce(place, found),
        NothingIsLost(place, found),
        NoCircles(place, found),
        GoesToWhoOffers(place, found),
        TriesAreFew(place, found),
        LeavesCleanly(place, found),
        FailingNodesRest(place, found),
        LiveStayAlive(place, found),
        NoBugsToldOf(place, found),
    ]


def _surely_not(call: Call) -> bool:
    return call.error is not None and call.error.definite


def _name(entry: Call | Try | Execution) -> str:
    return f"{entry.work.capability} #{entry.work.number}"


def _is_given_up(place: Workplace, tried: Try) -> bool:
    """Whether routing stopped waiting before time was up, although its client waits on.

    Of two copies the slower one is called off: that is nothing of the kind.
    """
    in_time = place.now < tried.deadline - ROUNDING_S
    goes_on = place.boxes[tried.by].is_member and tried.work.parent is None
    is_slower = any(each.end is End.DONE and each.by == tried.by for each in tried.work.tries)
    is_cut = tried.end is End.CANCELLED and in_time and goes_on and not is_slower
    return is_cut and not place.is_closing


def _pair(tried: Try) -> tuple[int, int, int, int]:
    """Who asks whom, each in which run."""
    return (tried.by, tried.run, tried.to, 0 if tried.row is None else tried.row.epoch)
