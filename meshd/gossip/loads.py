"""The load plane: fixed small records, the newest wins, lossy on purpose."""

from collections.abc import Callable, Iterator

from meshd.clock import Instant
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import (
    LOAD_BYTES,
    LOAD_ENTRY_BYTES,
    LOAD_SEQUENCES,
    is_newer_load,
    load_sequence,
    pack_load,
    unpack_load,
)
from meshd.gossip.config import GossipConfig
from meshd.model import Epoch, Load, NodeId

_BUSY_STEP = 0.25  # of the slots
_MACHINE_STEP = 0.5  # of CPU and memory: figures for people, whose swings move no work
_MACHINE_PAUSE_S = 60.0  # between rumours of such swings: nodes of one machine tell the same one
_EARLY_FRACTION = 0.1  # of the period: who samples once a second is a little early now and then
_ERROR_STEP = 0.25
_TIME_FACTOR = 2.0
_EPOCH_MS_PER_SEQUENCE = 250
_REORDER_MAX = 64


def is_significant(before: Load, after: Load) -> bool:
    """Whether a change of load is worth a rumour: it could change where work is sent."""
    machine = (
        abs(after.cpu_fraction - before.cpu_fraction),
        abs(after.mem_fraction - before.mem_fraction),
    )
    return moves_work(before, after) or max(machine) >= _MACHINE_STEP


def moves_work(before: Load, after: Load) -> bool:
    """Whether work would be sent elsewhere: what the machine does besides is no part of it."""
    slots = max(1, after.slots)
    busy = abs((after.in_flight + after.queue) - (before.in_flight + before.queue)) / slots
    low, high = sorted((before.service_s, after.service_s))
    return (
        _flags(before) != _flags(after)
        or before.slots != after.slots
        or busy >= _BUSY_STEP
        or abs(after.error_fraction - before.error_fraction) >= _ERROR_STEP
        or high > _TIME_FACTOR * low + 0.001
    )


def _flags(load: Load) -> tuple[bool, bool, bool]:
    return load.ready, load.full, load.draining


def load_period_s(config: GossipConfig, members: int) -> float:
    """Shortest time between a node's rumours of its load: the interval, stretched by the budget.

    Each node passes on each of n records `load_transmit_limit` times in a period, so a period
    of n * limit * entry / budget spends the budget when all change at once.
    """
    spent = members * config.load_transmit_limit * LOAD_ENTRY_BYTES
    return max(config.load_interval_s, spent / config.load_bytes_per_s)


class LoadPlane:
    """Own load, others' loads, and the load rumours that wait."""

    def __init__(self, me: NodeId, epoch: Epoch, config: GossipConfig) -> None:
        """Start counting where no earlier run can have come to.

        A restarted node's records must outrank those of its last run that are still under way:
        four steps of the sequence a second of wall clock are more rumours than anybody spreads.
        """
        self._me = me
        self._config = config
        self._queue = BroadcastQueue()
        self._records: dict[NodeId, tuple[bytes, Instant]] = {}
        self._direct: dict[NodeId, None] = {}
        self._rumoured: dict[NodeId, int] = {}
        self._announced: Load | None = None
        self._announced_at: Instant | None = None
        self._sequence = epoch // _EPOCH_MS_PER_SEQUENCE % LOAD_SEQUENCES
        self.own = b""

    @property
    def waiting(self) -> bool:
        """Whether load rumours wait to be sent."""
        return bool(self._queue.tier_of)

    @property
    def told(self) -> tuple[Load, Instant] | None:
        """The own load that last became a rumour, and when; None before the first one."""
        if self._announced is None or self._announced_at is None:
            return None
        return self._announced, self._announced_at

    def sampled(self, load: Load, members: int, now: Instant) -> bool:
        """Take a fresh own sample; true if it became a rumour.

        The sequence counts rumours, not samples: each is newer to whoever heard the last one,
        however many samples lie between. Of records with one sequence, the one counts that came
        last from the owner itself.
        """
        is_told = self._must_be_told(load, members, now)
        if is_told:
            self._sequence = (self._sequence + 1) % LOAD_SEQUENCES
        load = Load(
            load.cpu_fraction, load.mem_fraction, load.in_flight, load.queue, load.slots,
            load.service_s, load.dispatch_per_s, load.error_fraction, load.lag_s,
            load.ready, load.full, load.draining, self._sequence,
        )  # fmt: skip
        self.own = pack_load(load)
        self._records[self._me] = (self.own, now)
        if is_told:
            self._announced, self._announced_at = load, now
            self._queue.add(self._me, self._me + self.own)
        return is_told

    def _must_be_told(self, load: Load, members: int, now: Instant) -> bool:
        if self._announced is None or self._announced_at is None:
            return True
        if not is_significant(self._announced, load):
            return False
        # Who takes no more work, or takes it again, says so early: it is asked in vain else.
        on_time = 1 - _EARLY_FRACTION
        wait_s = self.period_s(members) * on_time
        if _flags(self._announced) != _flags(load):
            wait_s = min(wait_s, self._config.load_interval_s * on_time)
        elif not moves_work(self._announced, load):
            wait_s = max(wait_s, _MACHINE_PAUSE_S)
        return now - self._announced_at >= wait_s

    def period_s(self, members: int) -> float:
        """Shortest time between own rumours in a mesh of so many."""
        return load_period_s(self._config, members)

    def heard_directly(self, node: NodeId, packed: bytes, now: Instant) -> None:
        """The sender's own record came on one of its packets. Equal or newer ones count.

        One that is slightly older was overtaken by another packet. One that is much older is right
        all the same, and what is held is not: the node itself knows best. So it does where what is
        held is only rumoured.
        """
        held = self._records.get(node)
        if held is not None and node in self._direct:
            behind = (load_sequence(held[0]) - load_sequence(packed)) % LOAD_SEQUENCES
            if 0 < behind <= _REORDER_MAX:
                return
        self._records[node] = (packed, now)
        self._direct[node] = None

    def heard_rumour(
        self, entries: bytes, known: Callable[[NodeId], object], now: Instant
    ) -> Iterator[NodeId]:
        """Take in rumoured records of nodes that are `known`; yields those to be passed on.

        Each record is passed on once, even if it came on a packet of its owner before: the first
        hop of a rumour is such a packet. A torn last entry is left out.
        """
        for at in range(0, len(entries) - LOAD_ENTRY_BYTES + 1, LOAD_ENTRY_BYTES):
            node = NodeId(entries[at : at + 8])
            packed = entries[at + 8 : at + 8 + LOAD_BYTES]
            if node == self._me or not known(node):
                continue
            sequence = load_sequence(packed)
            held = self._records.get(node)
            if held is None or is_newer_load(sequence, load_sequence(held[0])):
                self._records[node] = held = (packed, now)
                self._direct.pop(node, None)
            before = self._rumoured.get(node)
            fresh = before is None or is_newer_load(sequence, before)
            if fresh and load_sequence(held[0]) == sequence:
                self._rumoured[node] = sequence
                yield node

    def pass_on(self, node: NodeId) -> None:
        """Queue the record held of `node` as a rumour."""
        self._queue.add(node, node + self._records[node][0])

    def take(self, bytes_free: int) -> bytes:
        """Load entries that fit into `bytes_free`."""
        return b"".join(self._queue.take(bytes_free, self._config.load_transmit_limit))

    def get(self, node: NodeId) -> tuple[Load, Instant] | None:
        """The record held of a node, and when it came."""
        held = self._records.get(node)
        return None if held is None else (unpack_load(held[0]), held[1])

    def forget(self, node: NodeId) -> None:
        """Drop a node's record: it is gone, or runs anew and counts from the start."""
        self._records.pop(node, None)
        self._direct.pop(node, None)
        self._rumoured.pop(node, None)
        self._queue.discard(node)
