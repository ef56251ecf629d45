"""How busy this node is, and when others are told."""

import asyncio
from typing import TYPE_CHECKING

from meshd.clock import Seconds
from meshd.model import Load
from meshd.work.admission import WorkLoad

if TYPE_CHECKING:
    from meshd.daemon.node import Node

SOON_S: Seconds = 0.02


class OwnLoad:
    """One node's load.

    The protocol's thread looks for itself, by `told` and `if_changed`, and so never takes an older
    sample after a newer one. The other methods are for the main loop.
    """

    def __init__(self, node: "Node") -> None:
        self.machine = node.platform.sample_load()
        self.lag_s: Seconds = 0.0
        """How late the main loop runs."""
        self._node = node
        self._telling: asyncio.TimerHandle | None = None
        self._work_told: WorkLoad | None = None
        self._dispatch_per_s = 0.0
        """As it was last told."""

    def now(self) -> Load:
        """How busy this node is now."""
        return self._of(self._node.worker.load(), self._node.dispatch_per_s)

    def lately(self) -> Load:
        """The same for each answer: but what the node hands out is as it was last told."""
        return self._of(self._node.worker.load(), self._dispatch_per_s)

    def told(self) -> Load:
        """The same, told to the protocol: of this it knows from now on."""
        self._work_told = work = self._node.worker.load()
        self._dispatch_per_s = self._node.dispatch_per_s
        return self._of(work, self._dispatch_per_s)

    def if_changed(self) -> Load | None:
        """The same where work began or ended since the protocol last knew of it, else nothing.

        An idle node's mail so costs one comparison.
        """
        return None if self._node.worker.load() == self._work_told else self.told()

    def changed(self) -> None:
        """Work began or ended: tell it soon, once for many changes."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(SOON_S, self.tell)

    def tell(self) -> None:
        """Tell it now."""
        self.close()
        if self._node.is_running:
            self._node.gossip.tell_load(self.told)

    def sample(self, lag_s: Seconds) -> None:
        """Look at the machine, and tell; the main loop was found to be so late."""
        self.lag_s = lag_s
        self.machine = self._node.platform.sample_load()
        self.tell()

    def close(self) -> None:
        """Tell nothing later."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None

    def _of(self, work: WorkLoad, dispatch_per_s: float) -> Load:
        is_leaving, machine = self._node.is_leaving, self.machine
        # By position: each answer brings one.
        return Load(
            machine.cpu_fraction,
            machine.mem_fraction,
            work.in_flight,
            work.queue,
            work.slots,
            work.service_s,
            dispatch_per_s,
            work.error_fraction,
            self.lag_s,
            not is_leaving,
            work.full,
            work.draining or is_leaving,
        )
