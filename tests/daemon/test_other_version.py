"""A node that speaks none of this one's protocol versions shows in `meshd doctor`, for a while."""

import asyncio
import socket

import pytest
from small_mesh import start_node

from meshd.daemon import doctor
from meshd.gossip.codec import encode_body, header_start
from meshd.gossip.messages import JOIN_PADDING_BYTES
from meshd.rpc.methods import CallContext
from meshd.security.identity import mesh_id

pytestmark = pytest.mark.net


async def check_of_versions(node):
    checks = (await node.registry.call("doctor", {}, CallContext()))["checks"]
    return next(check for check in checks if check["name"] == "versions")


async def test_it_is_told_until_it_was_not_noticed_for_long(tmp_path, monkeypatch):
    node = await start_node(tmp_path)
    try:
        start = header_start(mesh_id(node.mesh), with_load=False, version=7, ahead=2)
        body = encode_body(6, (1, bytes(JOIN_PADDING_BYTES), 7, 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", 0))
            other.sendto(
                start + bytes(8) + b"stranger" + body, (node.address.host, node.address.port)
            )
            async with asyncio.timeout(5):
                while (check := await check_of_versions(node))["status"] == "ok":
                    await asyncio.sleep(0)
            stranger = "{}:{}".format(*other.getsockname())
        assert check["detail"].startswith(f"{stranger} speaks protocol version 7-9, this node ")
        monkeypatch.setattr(doctor, "FOREIGN_TOLD_S", 0.0)
        assert (await check_of_versions(node))["status"] == "ok"
    finally:
        await node.stop(0.0)
