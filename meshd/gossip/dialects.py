"""Which protocol version to speak to whom, and with whom there is none in common."""

from typing import NamedTuple

from meshd.clock import Instant, Seconds
from meshd.gossip.codec import AHEAD_MAX, PROTOCOL_VERSION, header_start
from meshd.model import MeshId, NodeId

FOREIGN_MAX = 1_024
"""Nodes known to share no version with this one; the oldest gives way."""
FOREIGN_LASTS_S: Seconds = 90.0
"""Silence after which one of them is asked again, for it may be gone; longer than the time in
which it answers by a datagram of its own version but once."""
_REPORT_INTERVAL_S: Seconds = 60.0


class Versions(NamedTuple):
    """The protocol versions that a node speaks, both ends included."""

    oldest: int = PROTOCOL_VERSION
    newest: int = PROTOCOL_VERSION

    def common(self, other: "Versions") -> int | None:
        """The newest that both speak; None if there is none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None

    def __str__(self) -> str:
        return str(self.oldest) if self.oldest == self.newest else f"{self.oldest}-{self.newest}"


class _Foreign(NamedTuple):
    reported_at: Instant
    heard_at: Instant


class Dialects:
    """To each peer the newest version that both speak; until it is heard, the oldest of ours.

    Every datagram says which is the newest that its sender speaks, so one each way is enough.
    """

    def __init__(self, mesh: MeshId, versions: Versions) -> None:
        self.versions = versions
        self._newest: dict[NodeId, int] = {}
        self._foreign: dict[NodeId, _Foreign] = {}
        self._starts = {
            version: _starts(mesh, version, versions.newest)
            for version in range(versions.oldest, versions.newest + 1)
        }
        self._oldest_starts = self._starts[versions.oldest]

    def starts(self, to: NodeId) -> tuple[bytes, bytes]:
        """How the header of a datagram to a node begins: without a load record, and with one."""
        version = self._newest.get(to)
        return self._oldest_starts if version is None else self._starts[version]

    def heard(self, node: NodeId, newest: int) -> None:
        """A legible datagram came from a member that speaks `newest` at best."""
        self._foreign.pop(node, None)
        common = min(newest, self.versions.newest)
        if common > self.versions.oldest:
            self._newest[node] = common
        elif self._newest:
            self._newest.pop(node, None)

    def restarted(self, node: NodeId) -> None:
        """A node runs anew, maybe in another version."""
        self._newest.pop(node, None)
        self._foreign.pop(node, None)

    def found_foreign(self, node: NodeId, now: Instant) -> bool:
        """A node spoke a version that is none of ours.

        True if that is worth a report, and an answer by which it sees the same of us.
        """
        held = self._foreign.pop(node, None)
        is_due = held is None or now - held.reported_at >= _REPORT_INTERVAL_S
        if held is None and len(self._foreign) >= FOREIGN_MAX:
            del self._foreign[next(iter(self._foreign))]
        self._foreign[node] = _Foreign(now if held is None or is_due else held.reported_at, now)
        return is_due

    def forget_silent(self, now: Instant) -> None:
        """Who was not heard for long is to be asked again, whether it still is there."""
        silent = [n for n, held in self._foreign.items() if now - held.heard_at >= FOREIGN_LASTS_S]
        for node in silent:
            del self._foreign[node]

    def is_foreign(self, node: NodeId) -> bool:
        """Whether its silence says nothing of its health: it does not understand us."""
        return node in self._foreign


def _starts(mesh: MeshId, version: int, newest: int) -> tuple[bytes, bytes]:
    ahead = min(newest - version, AHEAD_MAX)
    return (
        header_start(mesh, with_load=False, version=version, ahead=ahead),
        header_start(mesh, with_load=True, version=version, ahead=ahead),
    )
