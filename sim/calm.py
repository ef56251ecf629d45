"""When a simulated network was last disturbed: accuracy is asked for in calm only."""

from abc import abstractmethod

_NEVER = float("inf")


class Calm:
    """The bookkeeping that faults and checkers share, at both levels."""

    def __init__(self, calm_since: float, changed_at: float) -> None:
        self.calm_since = calm_since
        """Since when nothing but plain crashes, starts and goodbyes happened; see `disturb`."""
        self.safe_since = calm_since
        """Since when nothing happened that may kill a live node in the eyes of others."""
        self.changed_at = changed_at
        """When the set of members, or the state of one, was last changed on purpose."""
        self.settled_at: dict[str, float] = {}
        """When a disturbance of each kind (its first word) was last over."""
        self._disturbances: dict[str, bool] = {}

    @property
    @abstractmethod
    def now(self) -> float:
        """Virtual seconds."""

    def disturb(self, what: str, *, mild: bool = False) -> None:
        """Something that may make a live node look dead is in force until `settle(what)`.

        A `mild` one may make it suspect, but not dead.
        """
        self._disturbances[what] = mild
        self.calm_since = _NEVER
        if not mild:
            self.safe_since = _NEVER

    def settle(self, what: str) -> None:
        """One disturbance is over. Idempotent."""
        mild = self._disturbances.pop(what, None)
        if mild is None:
            return
        self.changed_at = self.now
        self.settled_at[what.partition(" ")[0]] = self.now
        if not self._disturbances:
            self.calm_since = self.now
        if not mild and all(self._disturbances.values()):
            self.safe_since = self.now

    def settle_all(self) -> None:
        """All of them are over."""
        for what in list(self._disturbances):
            self.settle(what)
