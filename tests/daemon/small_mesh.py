"""Nodes in this very process, for tests that look inside."""

from meshd.config import load_config
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform


async def start_node(path, name="a", definitions=(), *, join=(), control_path="", **more):
    """A node on the loopback interface whose state is under `path`."""
    flags = {
        "name": name,
        "bind": "127.0.0.1:0",
        "mdns": False,
        "profile": "local",
        "state_dir": str(path / name),
        "join": [str(node.address) for node in join],
        **more,
    }
    config = load_config(flags).config
    node = Node(config, definitions, SystemPlatform(), control_path=control_path)
    await node.start()
    return node
