"""Stands between a node's routing and what it calls through, and writes every try down."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from meshd.daemon.node import Node
from meshd.errors import MeshError
from meshd.model import Address
from meshd.routing.direct import Wire
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
        self._wires, dispatcher._wires = dispatcher._wires, self.wire  # noqa: SLF001 - as above

    async def invoke(self, target: Address, method: str, params: dict[str, Any], **how: Any) -> Any:
        """Ask a peer."""
        return await self._watched(
            self.index_of(target),
            params,
            lambda: self._invoker.invoke(target, method, params, **how),
        )

    def wire(self, target: Address) -> Wire | None:
        """A way to a peer for who needs no task."""
        wire = self._wires(target)
        return None if wire is None else _WatchedWire(self, wire, target)

    async def here(self, params: dict[str, Any], **how: Any) -> Any:
        """Run it on this node."""
        return await self._watched(self._box.index, params, lambda: self._local(params, **how))

    async def _watched(
        self, to: int, params: dict[str, Any], ask: Callable[[], Awaitable[Any]]
    ) -> Any:
        tried = self.begin(to, params)
        try:
            answer = await ask()
        except MeshError as error:
            self.end(tried, end_of(error), error)
            raise
        except asyncio.CancelledError:
            self.end(tried, End.CANCELLED)
            raise
        self.end(tried, End.DONE)
        return answer

    def begin(self, to: int, params: dict[str, Any]) -> Try | None:
        """Write down that a try begins; None for what is no work of the test's."""
        fleet, ledger = self._fleet, self._ledger
        given = params["input"]
        work = ledger.works.get(given["work"]) if isinstance(given, dict) else None
        if work is None:
            return None
        tried = Try(
            work=work, by=self._box.index, run=self._run, to=to, began=fleet.now,
            deadline=fleet.now + params["deadline_ms"] / 1_000, hops=tuple(params["hops"]),
            row=self._row(to),
        )  # fmt: skip
        ledger.begin_try(tried)
        return tried

    def end(self, tried: Try | None, end: End, error: MeshError | None = None) -> None:
        """Write down how it ended."""
        if tried is not None:
            self._ledger.end_try(tried, end, self._fleet.now, error)

    def index_of(self, target: Address) -> int:
        """Which machine that is."""
        return self._fleet.wires.machines[target.host].index

    def _row(self, to: int) -> Peer | None:
        address = self._fleet.boxes[to].address
        rows = [p for p in self._node.view().by_node.values() if p.address == address]
        return max(rows, key=lambda peer: peer.epoch, default=None)


class _WatchedWire:
    """The same for one try that has no task. Satisfies routing's `Wire`."""

    def __init__(self, watch: Watch, wire: Wire, target: Address) -> None:
        self._watch = watch
        self._wire = wire
        self._to = watch.index_of(target)
        self._tried: Try | None = None

    def begin(
        self, method: str, params: Any, on_answer: Callable[[Any, MeshError | None], None]
    ) -> int | None:
        """Ask a peer."""
        watch, tried = self._watch, self._watch.begin(self._to, params)

        def answered(result: Any, error: MeshError | None) -> None:
            watch.end(tried, End.DONE if error is None else end_of(error), error)
            on_answer(result, error)

        self._tried = tried
        try:
            number = self._wire.begin(method, params, answered)
        except MeshError as error:
            watch.end(tried, end_of(error), error)
            raise
        if number is None:
            watch.end(tried, End.CANCELLED)
        return number

    def call_off(self, request_id: int) -> None:
        """Nobody waits for it any more."""
        self._wire.call_off(request_id)
        self._watch.end(self._tried, End.CANCELLED)
