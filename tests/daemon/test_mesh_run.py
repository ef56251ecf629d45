"""A program that only offers ends as a daemon does: it says goodbye."""

import asyncio
import sys

import pytest
from small_mesh import start_node

from meshd.config import load_config
from meshd.daemon.lifecycle import run
from meshd.errors import UsageError
from meshd.model import MemberState

PROGRAM = """
import sys
from meshd import Mesh
mesh = Mesh("program", embed=True, bind="127.0.0.1:0", mdns=False, profile="local",
            join=[sys.argv[1]], state_dir=sys.argv[2])
@mesh.agent()
def hello() -> str:
    return "hello"
mesh.run()
"""


@pytest.mark.slow
async def test_a_program_that_is_terminated_leaves_the_mesh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    node = await start_node(tmp_path)

    def is_there(view):
        return any(p.capabilities for p in view.peers if p.name == "program")

    def has_left(view):
        return any(p.state is MemberState.LEFT for p in view.peers if p.name == "program")

    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(node.address), str(tmp_path / "b")
    )
    try:
        assert is_there(await node.wait_view(is_there, 20))
        program.terminate()
        assert has_left(await node.wait_view(has_left, 10))
        assert await asyncio.wait_for(program.wait(), 10) == 0
    finally:
        if program.returncode is None:
            program.kill()
        await program.wait()
        await node.stop(0)


@pytest.mark.net
def test_a_ready_file_that_cannot_be_written_is_said_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("meshd.telemetry.log.configure", lambda **_: None)
    flags = {"name": "a", "bind": "127.0.0.1:0", "mdns": False}
    config = load_config(flags | {"state_dir": str(tmp_path / "a")}).config
    with pytest.raises(UsageError, match=r"the ready file .*absent.* cannot be written") as caught:
        run(config, ready_file=tmp_path / "absent" / "ready")
    assert caught.value.hint
