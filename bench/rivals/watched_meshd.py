"""`meshd start` that also tells, or does, what a bench wants: its first argument says what."""

import itertools
import os
import random
import sys
import threading
import time
from typing import Any

from meshd.cli import main
from meshd.daemon.node import Node, logger
from meshd.daemon.own_load import OwnLoad
from meshd.gossip.effects import StateChanged
from meshd.model import Load
from meshd.telemetry.log import event
from meshd.work.admission import WorkLoad

STAMP_S = 0.01
STAMPS = 2**16
"""Times are told in two bytes of the load record that decide nothing here: 655 s in all."""
SAMPLE_INTERVAL_S = 2.0


def tell_updates() -> None:
    """Log when more of another node's state is learnt."""
    before = Node._on_effect  # noqa: SLF001 - the log has no such event

    def on_effect(self: Any, effect: Any) -> None:
        before(self, effect)
        if isinstance(effect, StateChanged):
            event(logger, "info", "state_changed", id=effect.node.hex())

    Node._on_effect = on_effect  # type: ignore[method-assign] # noqa: SLF001
    describe = Node._describe  # noqa: SLF001 - as above

    def tell_own(self: Any) -> None:
        describe(self)
        if self._gossip is not None:
            event(logger, "info", "state_changed", id=self.node_id.hex())

    Node._describe = tell_own  # type: ignore[method-assign] # noqa: SLF001


def tell_sockets() -> None:
    """Log when the sockets are bound: the daemon itself says that it started once it has joined."""
    before = Node._bind_both  # noqa: SLF001 - as above

    def bind_both(self: Any, node: Any, epoch: Any) -> Any:
        bound = before(self, node, epoch)
        event(logger, "info", "bound", id=node.hex())
        return bound

    Node._bind_both = bind_both  # type: ignore[method-assign] # noqa: SLF001


def stamp() -> int:
    """The time now; all processes of a machine share its clock."""
    return round(time.monotonic() / STAMP_S) % STAMPS


def change_loads() -> None:
    """Have each second's load differ enough from the last to be told, and log others' ages."""
    busy = itertools.cycle((0, 1))
    told_at = 0.0
    load = Load()

    def changing(_: OwnLoad, *__: WorkLoad | float) -> Load:
        nonlocal told_at, load
        if time.monotonic() >= told_at + 0.9:  # what starts and ends a node tells as well
            told_at, now = time.monotonic(), stamp()
            cpu, mem = now // 256 / 255, now % 256 / 255
            load = Load(cpu_fraction=cpu, mem_fraction=mem, in_flight=next(busy))
        return load

    OwnLoad._of = changing  # type: ignore[method-assign,assignment] # noqa: SLF001 - as above
    start = Node.start

    async def started(self: Node) -> None:
        await start(self)
        threading.Thread(target=sample, args=(self,), daemon=True).start()

    Node.start = started  # type: ignore[method-assign]


def age(load: Load, now: int) -> int:
    """Hundredths of a second since a load's owner told it."""
    return (now - round(load.cpu_fraction * 255) * 256 - round(load.mem_fraction * 255)) % STAMPS


def sample(node: Node) -> None:
    """Say again and again how old the loads are that this node knows."""
    time.sleep(random.uniform(0.0, SAMPLE_INTERVAL_S))
    while True:
        view, now = node.view(), stamp()
        loads = [peer.load for peer in view.by_node.values() if peer.node != view.me and peer.load]
        ages = ",".join(str(age(load, now)) for load in loads)
        # One write: the log's lines come from other threads.
        os.write(sys.stdout.fileno(), b'{"event": "ages", "id": "%s"}\n' % ages.encode())
        time.sleep(SAMPLE_INTERVAL_S)


WANTED = {"updates": tell_updates, "sockets": tell_sockets, "loads": change_loads}

if __name__ == "__main__":
    WANTED[sys.argv.pop(1)]()
    main()
