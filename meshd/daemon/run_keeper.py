"""Keeps on disk what the next run must go past: an epoch at once, an incarnation soon after."""

import threading

from meshd.gossip.effects import IdentityRaised
from meshd.model import Epoch, Incarnation
from meshd.security.statedir import StateDir


class RunKeeper:
    """What this run has become, and what the disk knows of it. Safe from any thread.

    A new epoch must be on disk before anybody is told, or a restart could begin below it. An
    incarnation need not: a restart outranks it by its epoch. Others can bring those about, many a
    second, so they are not written by the protocol's thread, and only the last one is.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._run: IdentityRaised | None = None
        self._lock = threading.Lock()
        self.is_due = False
        """Whether there is something to write."""

    def begin(self, epoch: Epoch) -> None:
        """A run begins; the disk knows of it."""
        self._run, self.is_due = IdentityRaised(epoch, Incarnation(0)), False

    def raised(self, effect: IdentityRaised) -> None:
        """On the protocol's thread: the run is another now. A new epoch is written at once."""
        with self._lock:
            is_new = self._run is None or effect.epoch != self._run.epoch
            self._run, self.is_due = effect, True
            if is_new:
                self._write(effect)

    def keep(self) -> None:
        """Write what the run is now. It may block."""
        with self._lock:
            if self._run is not None:
                self._write(self._run)

    def _write(self, effect: IdentityRaised) -> None:
        self.is_due = not self._state.write_run(effect.epoch, effect.incarnation)
