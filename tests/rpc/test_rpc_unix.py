"""The control socket's file: made, taken over, refused."""

import asyncio
import os
import socket
import stat

import pytest

from meshd.errors import Code, MeshError, UsageError
from meshd.rpc.unix import bind_control_socket

pytestmark = pytest.mark.net


@pytest.fixture
def place(tmp_path):
    return tmp_path / "run" / "mesh" / "node.sock"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_and_its_directory_are_for_their_owner_alone(place):
    bound = bind_control_socket(place)
    assert mode(place) == 0o600
    assert mode(place.parent) == 0o700
    bound.socket.close()
    bound.remove_file()
    assert not place.exists()


def test_the_modes_hold_whatever_the_umask_is(place):
    before = os.umask(0)
    try:
        bound = bind_control_socket(place)
    finally:
        os.umask(before)
    assert (mode(place), mode(place.parent)) == (0o600, 0o700)
    bound.socket.close()


def test_a_stale_socket_is_replaced(place):
    bind_control_socket(place).socket.close()
    assert place.exists()
    again = bind_control_socket(place)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    again.socket.close()


def test_a_socket_that_answers_is_not_stolen(place):
    first = bind_control_socket(place)
    with pytest.raises(MeshError, match="already running") as caught:
        bind_control_socket(place)
    assert "--name" in caught.value.hint
    assert place.exists()
    first.socket.close()


def test_a_socket_whose_queue_is_full_is_not_stolen(place):
    place.parent.mkdir(mode=0o700, parents=True)
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(place))
        stopped.listen(0)
        waiting = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            if client.connect_ex(str(place)):
                break
        with pytest.raises(MeshError, match="already running"):
            bind_control_socket(place)
        for client in waiting:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_left_alone(place, kind):
    place.parent.mkdir(mode=0o700, parents=True)
    if kind == "file":
        place.write_text("precious")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="is no socket"):
        bind_control_socket(place)
    assert place.lstat()


def test_a_directory_that_is_open_to_others_is_refused_and_not_changed(place):
    place.parent.mkdir(mode=0o755, parents=True)
    place.parent.chmod(0o755)
    with pytest.raises(UsageError, match="open to others") as caught:
        bind_control_socket(place)
    assert "chmod 700" in caught.value.hint
    assert mode(place.parent) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else")
def test_a_directory_of_somebody_else_is_refused(place):
    place.parent.mkdir(mode=0o700, parents=True)
    os.chown(place.parent, 12_345, 12_345)
    with pytest.raises(UsageError, match="permission denied") as caught:
        bind_control_socket(place)
    assert caught.value.code == Code.FORBIDDEN


def test_a_path_that_is_too_long_or_impossible_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot make the control socket"):
        bind_control_socket(tmp_path / ("x" * 120) / "node.sock")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the control socket"):
        bind_control_socket(tmp_path / "file" / "node.sock")


def test_another_daemons_file_is_not_removed(place):
    first = bind_control_socket(place)
    first.socket.close()
    place.unlink()
    (place.parent / "keep-the-inode").write_text("")
    second = bind_control_socket(place)
    first.remove_file()
    assert place.exists()
    second.socket.close()
    second.remove_file()
    second.remove_file()


async def test_of_daemons_that_start_at_once_one_wins(place):
    ends = await asyncio.gather(
        *(asyncio.to_thread(bind_control_socket, place) for _ in range(8)), return_exceptions=True
    )
    winners = [end for end in ends if not isinstance(end, MeshError)]
    assert len(winners) == 1
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    winners[0].socket.close()
