"""How much one server gives to all callers together, and to each of them."""

from dataclasses import dataclass

from meshd.clock import Seconds
from meshd.errors import BusyError
from meshd.rpc.jsonrpc import BATCH_MAX, BODY_BYTES_MAX, DEPTH_MAX

REQUESTS_BYTES_MAX = 256 * 1_048_576
"""Of all requests that run at a time: they are kept until they end."""

CALL_TIMEOUT_S: Seconds = 86_400.0
"""The longest time that a call may take, whoever makes it: the longest deadline of all."""

TIMEOUT_HEADER = "Meshd-Timeout-Ms"
"""How long an HTTP caller still waits, in whole milliseconds."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a server; each refusal is counted.

    Attributes:
        body_bytes_max: a request body; larger ones get 413.
        batch_max: requests in one batch; longer ones get one -32600.
        depth_max: nesting of a document; deeper ones get -32700.
        response_bytes_max: an answer, or all answers to one batch together.
        idle_timeout_s: for a connection to send its next request's headers.
        read_timeout_s: for a request body to arrive; then 408.
        write_timeout_s: for a client to take its answer; then the connection is cut.
        call_timeout_s: the longest time that a call may take, whatever its caller says.
        calls_max: calls that run at a time, over all callers; then 503.
        calls_per_remote_max: calls that run at a time for one address; then 429.
        connections_max: open connections; then 503 and closed. Never more than half of the file
            descriptors that the process may have.
        connections_per_remote_max: open connections of one address.
        channels_max: attached programs.
        linger_s: how long the rest of a refused body is read and dropped.
    """

    body_bytes_max: int = BODY_BYTES_MAX
    batch_max: int = BATCH_MAX
    depth_max: int = DEPTH_MAX
    response_bytes_max: int = 8 * 1_048_576
    idle_timeout_s: Seconds = 15.0
    read_timeout_s: Seconds = 10.0
    write_timeout_s: Seconds = 10.0
    call_timeout_s: Seconds = CALL_TIMEOUT_S
    calls_max: int = 1_024
    calls_per_remote_max: int = 256
    connections_max: int = 512
    connections_per_remote_max: int = 256
    channels_max: int = 64
    linger_s: Seconds = 2.0


class CallGate:
    """Counts what runs, and the bytes of the requests, over all and for each remote address."""

    def __init__(
        self, total_max: int, per_remote_max: int, bytes_max: int = REQUESTS_BYTES_MAX
    ) -> None:
        self._total_max = total_max
        self._per_remote_max = per_remote_max
        self._bytes_max = bytes_max
        self._by_remote: dict[str, int] = {}
        self._bytes = 0
        self.running = 0

    def enter(self, remote: str, size: int = 0) -> BusyError | None:
        """Count one more for `remote`, of `size` bytes, or say why not; then nothing is counted."""
        mine = self._by_remote.get(remote, 0)
        if mine >= self._per_remote_max:
            return busy(f"{remote} already has {mine} calls running here", "remote")
        if self.running >= self._total_max:
            return busy(f"{self.running} calls already run on this node", "node")
        if self._bytes and self._bytes + size > self._bytes_max:
            return busy(f"the calls that run on this node take {self._bytes} bytes", "bytes")
        self._by_remote[remote] = mine + 1
        self._bytes += size
        self.running += 1
        return None

    def leave(self, remote: str, size: int = 0) -> None:
        """Count one less for `remote`, which entered before with the same size."""
        mine = self._by_remote[remote] - 1
        if mine:
            self._by_remote[remote] = mine
        else:
            del self._by_remote[remote]
        self._bytes -= size
        self.running -= 1


def busy(message: str, bound: str) -> BusyError:
    """A refusal for now; `bound` says in one word which bound was reached."""
    return BusyError(
        message,
        hint="wait a second, or keep fewer calls in flight",
        data={"retry_after_ms": 1_000, "bound": bound},
    )
