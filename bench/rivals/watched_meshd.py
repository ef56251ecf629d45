"""`meshd start` that also logs when it learns more of another node's state."""

from typing import Any

from meshd.cli import main
from meshd.daemon.node import Node, logger
from meshd.gossip.effects import StateChanged
from meshd.telemetry.log import event

_on_effect = Node._on_effect  # noqa: SLF001 - the log has no such event


def _telling(self: Any, effect: Any) -> None:
    _on_effect(self, effect)
    if isinstance(effect, StateChanged):
        event(logger, "info", "state_changed", id=effect.node.hex())


Node._on_effect = _telling  # type: ignore[method-assign] # noqa: SLF001

if __name__ == "__main__":
    main()
