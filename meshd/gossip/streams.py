"""Pings over the call port, for members whose datagrams do not get through: a shell.

A firewall that drops UDP, or lets it pass in one direction alone, is no reason to hold a node dead
whose TCP port answers. (memberlist calls it the fallback ping.)
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from meshd.clock import Seconds
from meshd.gossip.effects import MemberChanged, ProbeCompleted, StreamPing
from meshd.gossip.inputs import StreamPinged
from meshd.gossip.members import is_live
from meshd.model import Address, NodeId

UNDER_WAY_MAX = 16
"""Stream pings at a time; further ones are not made. Each ends with its round or verification."""
TELL_AFTER = 3
"""So many answers by stream without one by datagram between them are told to the operator."""


class StreamPinger(Protocol):
    """What asks over the call port; lent by the daemon, used in the protocol's loop alone."""

    async def ping(self, node: NodeId, address: Address, timeout_s: Seconds) -> bool:
        """Whether `node`, and nobody else, answers at `address` in time. Raises nothing."""
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...


class StreamPings:
    """Those that are under way, and for whom they were the only ones to be answered."""

    def __init__(
        self,
        pinger: StreamPinger | None,
        answered: Callable[[StreamPinged], None],
        counters: "Counter[str]",
    ) -> None:
        self._pinger = pinger
        self._answered = answered
        self._counters = counters
        self._under_way: set[asyncio.Task[None]] = set()
        self._missed: dict[NodeId, int] = {}

    def start(self, effect: StreamPing) -> None:
        """Ask, in the background."""
        if self._pinger is None or len(self._under_way) >= UNDER_WAY_MAX:
            return
        task = asyncio.ensure_future(self._ping(self._pinger, effect))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ping(self, pinger: StreamPinger, effect: StreamPing) -> None:
        ok = await pinger.ping(effect.node, effect.address, effect.timeout_s)
        self._counters["stream_pings_ok" if ok else "stream_pings_failed"] += 1
        if ok:
            self._missed[effect.node] = self._missed.get(effect.node, 0) + 1
        self._answered(StreamPinged(effect.node, effect.sequence, ok))

    def on_probe_completed(self, effect: ProbeCompleted) -> None:
        """A datagram and its ack got through."""
        if effect.rtt_s is not None:
            self._missed.pop(effect.node, None)

    def on_member_changed(self, effect: MemberChanged) -> None:
        """Of those who are gone nothing is told. So no more are kept than there are members."""
        if not is_live(effect.member.state):
            self._missed.pop(effect.member.node, None)

    def only_by_stream(self) -> tuple[NodeId, ...]:
        """Members that answered the last few times by stream alone."""
        return tuple(node for node, count in self._missed.copy().items() if count >= TELL_AFTER)

    async def close(self) -> None:
        """End what is under way. Idempotent."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if self._pinger is not None:
            await self._pinger.close()
