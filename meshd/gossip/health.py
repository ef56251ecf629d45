"""Local health: how far this node should mistrust its own verdicts (Lifeguard section IV-A)."""


class LocalHealth:
    """A score from 0 (well) to `maximum`: own timeouts are multiplied by score + 1."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.score = 0

    @property
    def factor(self) -> int:
        """What to multiply probe interval and timeout by."""
        return self.score + 1

    def probe_succeeded(self, *, quickly: bool) -> None:
        """An ack came in time: one step towards health.

        Half of the way if it came so quickly that it would have been in time at full health, too.
        Lifeguard goes step by step, each of them as long as the score has stretched it: after a
        moment without processor time a node takes 45 s from 8 back to 0, and probes seldom.
        """
        self._add(self.score // 2 - self.score if quickly else -1)

    def probe_failed(self, nacks_expected: int, nacks_received: int) -> None:
        """A round ended without ack.

        Nacks that came prove that our own packets and timers work, so only the missing ones count.
        Without any helper to ask, nothing speaks for us: one step.
        """
        self._add(nacks_expected - nacks_received if nacks_expected else 1)

    def refuted(self) -> None:
        """We had to deny our own death: we were slow to answer."""
        self._add(1)

    def stalled(self) -> None:
        """Our own timers fired late."""
        self._add(1)

    def _add(self, steps: int) -> None:
        self.score = min(self._maximum, max(0, self.score + steps))
