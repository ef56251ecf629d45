"""The ping over the call port that gossip falls back to: JSON-RPC `ping`, on connections apart.

It runs in the protocol's loop, so that it is asked in time while user code blocks the main one.
"""

from meshd.clock import Seconds
from meshd.errors import MeshError
from meshd.model import Address, NodeId
from meshd.platform import Platform
from meshd.rpc.client import RpcClient

ANSWER_BYTES_MAX = 4_096
CONNECTIONS_MAX = 8


class RpcStreamPinger:
    """Satisfies `meshd.gossip.streams.StreamPinger`."""

    def __init__(self, platform: Platform) -> None:
        self.client = RpcClient(
            response_bytes_max=ANSWER_BYTES_MAX,
            connections_max=CONNECTIONS_MAX,
            connections_per_peer_max=1,
            keep=False,
            socket_factory=platform.open_stream,
        )

    async def ping(self, node: NodeId, address: Address, timeout_s: Seconds) -> bool:
        """Whether `node`, and nobody else, answers at `address` in time."""
        try:
            answer = await self.client.invoke(address, "ping", {}, timeout_s=timeout_s)
        except MeshError:
            return False
        return isinstance(answer, dict) and answer.get("node") == node.hex()

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        await self.client.close()
