"""The ping over the call port: a node that is asked for by id, at its address, and nobody else."""

import pytest
from small_mesh import start_node

from meshd.daemon.platform import SystemPlatform
from meshd.daemon.stream_ping import RpcStreamPinger
from meshd.model import Address, NodeId

pytestmark = pytest.mark.net


async def test_only_the_node_itself_counts_as_an_answer(tmp_path):
    node = await start_node(tmp_path)
    pinger = RpcStreamPinger(SystemPlatform())
    try:
        assert await pinger.ping(node.node_id, node.address, 2.0)
        assert not await pinger.ping(NodeId(b"somebody"), node.address, 2.0)
        nowhere = Address("127.0.0.1", 1)
        assert not await pinger.ping(node.node_id, nowhere, 2.0)
    finally:
        await pinger.close()
        await node.stop()
