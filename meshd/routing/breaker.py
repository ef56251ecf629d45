"""One circuit breaker: closed while calls succeed, open after failures, half-open for one trial.

Sources: Nygard, "Release It!" (2007), for the three states; Envoy's outlier detection for times
that grow with each opening.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from meshd.clock import Instant, Seconds
from meshd.model import NodeId
from meshd.routing.settings import BreakerSettings
from meshd.routing.signals import NEUTRAL, OK, Outcome
from meshd.structs import Token

CALM_S: Seconds = 300.0
"""Who was closed for so long opens as if for the first time."""


class BreakerState(StrEnum):
    """What a circuit does with a call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Opening:
    """Why a circuit opens, and for how long the first time."""

    why: str
    lasts_s: Seconds


class Passage(Token, frozen=True, eq=False):
    """One call under way through one circuit; `opening` counts those that were when it began."""

    began: Instant
    opening: int


class Breaker:
    """One circuit.

    Attributes:
        openings: how often it opened, ever.
        opened_at: when it opened last; until: when its present opening is over, None if closed.
        repeats: openings in short succession, this one included.
        streak, samples: failures in a row, and results, since it was closed.
        trial: the call that tries it while it is half-open, the newest.
    """

    __slots__ = (
        "_calm_since", "_is_hurried", "_lasts_s", "_results", "_trials_failed", "_why", "opened_at",
        "openings", "repeats", "samples", "streak", "trial", "until",
    )  # fmt: skip

    def __init__(self) -> None:
        """It is closed."""
        self.openings = 0
        self.opened_at = Instant(0.0)
        self.until: Instant | None = None
        self.repeats = 0
        self.streak = 0
        self.samples = 0
        self.trial: Passage | None = None
        self._results = 0  # one bit each, the newest last: a deque would take ten times the room
        self._why = ""
        self._lasts_s = 0.0
        self._trials_failed = 0
        self._calm_since = Instant(0.0)
        self._is_hurried = False

    @property
    def successes(self) -> int:
        """Of the `samples`."""
        return self._results.bit_count()

    @property
    def is_known_to_work(self) -> bool:
        """Whether it is closed, and the last result was a success."""
        return self.until is None and self.samples > 0 and self.streak == 0

    def state(self, now: Instant) -> BreakerState:
        """What it does with calls now."""
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def is_barred(self, now: Instant) -> bool:
        """Whether no call should come: it is open, or being tried already."""
        return self.until is not None and now < self._barred_until(self.until)

    def barred_s(self, now: Instant) -> Seconds:
        """For how long no call should come, at most."""
        return 0.0 if self.until is None else max(0.0, self._barred_until(self.until) - now)

    def _barred_until(self, until: Instant) -> Instant:
        """A trial bars others for as long as it opened at first, or one that hangs would for ever.

        From then on another may try it, and whichever ends first decides.
        """
        return until if self.trial is None else Instant(self.trial.began + self._lasts_s)

    @property
    def why(self) -> str:
        """What opened it, and what was tried since."""
        failed = self._trials_failed
        if not failed:
            return self._why
        return f"{self._why}, then {failed} failed trial{'s' if failed > 1 else ''}"

    def begin(self, now: Instant, *, may_try: bool = True) -> Passage:
        """A call comes; the first that may do so tries a half-open circuit."""
        passage = Passage(now, self.openings)
        if may_try and self.until is not None and not self.is_barred(now):
            self.trial = passage
        return passage

    def end(
        self,
        passage: Passage,
        outcome: Outcome,
        now: Instant,
        *,
        judge: Callable[[], Opening | None],
        window: int,
        open_s_max: Seconds,
    ) -> None:
        """A call ended. `judge` says whether the last `window` results of a closed one open it.

        What began before the last opening adds nothing: that is known by then. A success closes
        an open circuit too: calls come through it where too many others are open.
        """
        if passage is self.trial:
            self.trial = None
        if outcome is NEUTRAL or passage.opening != self.openings:
            return
        if outcome is OK:
            self._succeeded(now, window)
        elif self.until is None:
            self._note(window, is_good=False)
            self.streak += 1
            opening = judge()
            if opening is not None:
                self._why, self._lasts_s, self._trials_failed = opening.why, opening.lasts_s, 0
                self._open(now, open_s_max)
        elif passage.began >= self.until:
            self._trials_failed += 1
            self._open(now, open_s_max)

    def passed(self, passage: Passage, window: int) -> bool:
        """A call ended well, as most do; false where `end` has to look closer: nothing is noted.

        That is so unless the circuit is closed, and has been since the call began.
        """
        if self.until is not None or passage.opening != self.openings:
            return False
        self.streak = 0
        self._note(window, is_good=True)
        return True

    def hurry(self, now: Instant) -> None:
        """Its time is over early: something has changed. If the trial fails, it lasts no longer."""
        if self.until is not None and now < self.until:
            self.until = now
            self._is_hurried = True

    def _succeeded(self, now: Instant, window: int) -> None:
        if self.until is not None:
            self.until = None
            self._calm_since = now
            self._is_hurried = False
        self.streak = 0
        self._note(window, is_good=True)

    def _note(self, window: int, *, is_good: bool) -> None:
        self._results = (self._results << 1 | is_good) & ((1 << window) - 1)
        self.samples = min(self.samples + 1, window)

    def _open(self, now: Instant, open_s_max: Seconds) -> None:
        if self.until is None and now - self._calm_since > CALM_S:
            self.repeats = 0
        self.repeats += not self._is_hurried
        self._is_hurried = False
        self.openings += 1
        self.opened_at = now
        self.until = Instant(now + min(self._lasts_s * self.repeats, open_s_max))
        self.trial = None
        self.streak = self.samples = self._results = 0


def node_opening(breaker: Breaker, settings: BreakerSettings) -> Opening | None:
    """Whether a capability at a node opens: by failures in a row, or by the share of successes."""
    if breaker.streak >= settings.failures:
        return Opening(f"{failures(breaker.streak)} in a row", settings.failures_open_s)
    good, samples = breaker.successes, breaker.samples
    if samples >= settings.samples_min and good < settings.success_min * samples:
        why = f"success {good / samples:.0%} of the last {samples}"
        return Opening(why, settings.rate_open_s)
    return None


def failures(count: int) -> str:
    """`1 failure`, `3 failures`."""
    return f"{count} failure{'s' if count > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Circuit:
    """A circuit that is not closed, for people and programs. `node` None: the whole capability.

    For `left_s` no call should come: it is open, or one tries it.
    """

    capability: str
    node: NodeId | None
    state: BreakerState
    why: str
    left_s: Seconds
    repeats: int

    def __str__(self) -> str:
        """`3 failures in a row; its circuit is open for another 42 s`."""
        if self.state is BreakerState.OPEN:
            return f"{self.why}; its circuit is open for another {self.left_s:.3g} s"
        return f"{self.why}; its circuit is half-open, and one call tries it now"

    @classmethod
    def of(cls, breaker: Breaker, capability: str, node: NodeId | None, now: Instant) -> "Circuit":
        """What is to be told of a breaker."""
        return cls(
            capability=capability,
            node=node,
            state=breaker.state(now),
            why=breaker.why,
            left_s=breaker.barred_s(now),
            repeats=breaker.repeats,
        )
