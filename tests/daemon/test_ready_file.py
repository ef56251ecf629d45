"""The file that tells scripts when a daemon serves."""

from meshd.config import Config, NodeConfig
from meshd.daemon.lifecycle import run
from meshd.daemon.node import Node


def test_the_file_of_a_killed_run_does_not_say_that_the_next_one_serves(tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    ready.write_text("127.0.0.1:1\n")
    seen = []

    async def start(node):
        seen.append(ready.exists())
        node.stopping.ask()

    async def stop(node, drain_s=None):
        seen.append(ready.read_text())

    monkeypatch.setattr(Node, "start", start)
    monkeypatch.setattr(Node, "stop", stop)
    monkeypatch.setattr(Node, "address", "127.0.0.1:2")
    state = NodeConfig(name="a", bind="127.0.0.1:0", state_dir=str(tmp_path / "state"))
    assert run(Config(node=state), ready_file=ready) == 0
    assert seen == [False, "127.0.0.1:2\n"]
    assert not ready.exists()
