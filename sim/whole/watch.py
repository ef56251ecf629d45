"""Stands between a node's routing and what it calls through, and writes every try down."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from meshd.daemon.node import Node
from meshd.errors import MeshError
from meshd.model import Address
from meshd.view import Peer
from sim.whole.fleet import Box, Fleet
from sim.whole.ledger import End, Ledger, Try, end_of


class Watch:
    """Passes all on unchanged. Satisfies routing's `Invoker`; `here` is its `LocalWork`."""

    def __init__(self, fleet: Fleet, ledger: Ledger, box: Box, node: Node) -> None:
        """Take the place of what the node's dispatcher calls."""
        self._fleet = fleet
        self._ledger = ledger
        self._box = box
        self._run = box.runs
        self._node = node
        dispatcher = node.dispatcher
        self._invoker, self._local = dispatcher._tries._invoker, dispatcher._tries._local  # noqa: SLF001 - a probe in the line, as a tester has it
        dispatcher._tries._invoker, dispatcher._tries._local = self, self.here  # noqa: SLF001 - as above

    async def invoke(self, target: Address, method: str, params: dict[str, Any], **how: Any) -> Any:
        """Ask a peer."""
        to = self._fleet.wires.machines[target.host].index
        return await self._watched(
            to, params, lambda: self._invoker.invoke(target, method, params, **how)
        )

    async def here(self, params: dict[str, Any], **how: Any) -> Any:
        """Run it on this node."""
        return await self._watched(self._box.index, params, lambda: self._local(params, **how))

    async def _watched(
        self, to: int, params: dict[str, Any], ask: Callable[[], Awaitable[Any]]
    ) -> Any:
        fleet, ledger = self._fleet, self._ledger
        given = params["input"]
        work = ledger.works.get(given["work"]) if isinstance(given, dict) else None
        if work is None:
            return await ask()
        tried = Try(
            work=work, by=self._box.index, run=self._run, to=to, began=fleet.now,
            deadline=fleet.now + params["deadline_ms"] / 1_000, hops=tuple(params["hops"]),
            row=self._row(to),
        )  # fmt: skip
        ledger.begin_try(tried)
        try:
            answer = await ask()
        except MeshError as error:
            ledger.end_try(tried, end_of(error), fleet.now, error)
            raise
        except asyncio.CancelledError:
            ledger.end_try(tried, End.CANCELLED, fleet.now)
            raise
        ledger.end_try(tried, End.DONE, fleet.now)
        return answer

    def _row(self, to: int) -> Peer | None:
        address = self._fleet.boxes[to].address
        rows = [p for p in self._node.view().by_node.values() if p.address == address]
        return max(rows, key=lambda peer: peer.epoch, default=None)
