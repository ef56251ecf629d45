"""Finding and calling the local daemon with the standard library alone."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from meshd import control
from meshd.control import (
    SOCKET_PATH_BYTES_MAX,
    ControlClient,
    SocketInfo,
    choose_socket,
    find_sockets,
    runtime_dir,
    socket_path,
    state_dir_root,
)
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoDaemonError,
    PeerError,
    UsageError,
)
from meshd.rpc.methods import Registry
from meshd.rpc.server import RpcServer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine with nothing on it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(control, "SYSTEM_RUNTIME_DIR", str(tmp_path / "system"))
    return tmp_path


@pytest.fixture
def listen():
    """Make control socket files, live or stale."""
    sockets = []

    def make(path, *, live=True):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        if live:
            listener.listen()
            sockets.append(listener)
        else:
            listener.close()
        return str(path)

    yield make
    for each in sockets:
        each.close()


@pytest.fixture
def answering(home):
    """A daemon that answers each connection with given bytes; or never, for None."""
    stop = threading.Event()
    threads = []

    def start(data):
        path = str(home / "raw.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve():
            with listener:
                link, _ = listener.accept()
                with link:
                    link.recv(100_000)
                    if data is None:
                        stop.wait(5)
                    else:
                        link.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return ControlClient(path)

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)


def http(body, *, length=None):
    size = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\nContent-Type: x\r\ncontent-length: %d\r\n\r\n" % size + body


def test_places_follow_the_xdg_variables(home):
    assert runtime_dir() == str(home / "run" / "meshd")
    assert state_dir_root() == str(home / "state" / "meshd")
    assert socket_path("default", "lab-a") == str(home / "run/meshd/default/lab-a.sock")


def test_a_relative_xdg_variable_is_ignored(home, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    monkeypatch.setattr(sys, "platform", "linux")
    assert state_dir_root() == str(home / "home/.local/state/meshd")
    assert runtime_dir() == str(home / "home/.local/state/meshd/run")


def test_root_without_a_runtime_directory_uses_the_systems(home, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_dir() == str(home / "system")


def test_a_mac_keeps_state_where_macs_do(home, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert state_dir_root() == str(home / "home/Library/Application Support/meshd")


def test_a_path_that_no_socket_may_have_is_refused_with_a_way_out(home, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    longest = "n" * (SOCKET_PATH_BYTES_MAX - len("/r/meshd/m/.sock"))
    assert len(socket_path("m", longest)) == SOCKET_PATH_BYTES_MAX
    with pytest.raises(UsageError, match="104 bytes") as caught:
        socket_path("m", longest + "n")
    assert "shorter" in caught.value.hint


@pytest.mark.net
def test_sockets_are_found_by_mesh_and_name_and_nothing_else_is(home, listen):
    first = listen(socket_path("default", "a"))
    second = listen(socket_path("other", "b"), live=False)
    third = listen(home / "system/default/c.sock")
    (home / "run/meshd/default/notes.txt").write_text("")
    (home / "run/meshd/default/fake.sock").write_text("")
    assert find_sockets() == [
        SocketInfo(first, "default", "a"),
        SocketInfo(second, "other", "b"),
        SocketInfo(third, "default", "c"),
    ]
    assert [info.name for info in find_sockets("other")] == ["b"]


@pytest.mark.net
def test_with_one_live_daemon_nothing_needs_to_be_said(home, listen):
    listen(socket_path("default", "gone"), live=False)
    live = listen(socket_path("default", "a"))
    assert choose_socket() == SocketInfo(live, "default", "a")


@pytest.mark.net
def test_with_several_daemons_they_are_listed_until_one_is_named(home, listen):
    listen(socket_path("default", "a"))
    chosen = listen(socket_path("default", "b"))
    listen(socket_path("lab", "a"))
    with pytest.raises(UsageError, match="3 daemons are running") as caught:
        choose_socket()
    assert chosen in caught.value.message
    assert "--node" in caught.value.hint
    assert choose_socket(name="b").path == chosen
    assert choose_socket(mesh="lab").name == "a"
    with pytest.raises(UsageError, match="2 daemons"):
        choose_socket(name="a")


@pytest.mark.net
def test_without_a_daemon_it_says_how_to_start_one(home, listen):
    with pytest.raises(NoDaemonError, match="no daemon is running here") as caught:
        choose_socket()
    assert "meshd start" in caught.value.hint
    stale = listen(socket_path("default", "a"), live=False)
    with pytest.raises(NoDaemonError, match="stale socket") as caught:
        choose_socket()
    assert stale in caught.value.message
    with pytest.raises(NoDaemonError, match="named 'b' in mesh 'lab'"):
        choose_socket(mesh="lab", name="b")


@pytest.mark.net
def test_a_socket_that_was_named_is_taken_if_it_answers(home, listen):
    assert choose_socket(path=listen(home / "x.sock")).path == str(home / "x.sock")
    with pytest.raises(NoDaemonError, match="does not exist"):
        choose_socket(path=str(home / "none.sock"))
    with pytest.raises(NoDaemonError, match="stale"):
        choose_socket(path=listen(home / "y.sock", live=False))
    (home / "file").write_text("")
    with pytest.raises(UsageError, match="is not a socket"):
        choose_socket(path=str(home / "file"))
    with pytest.raises(UsageError, match="cannot use the socket"):
        choose_socket(path=str(home / ("x" * 200)))


@pytest.mark.net
def test_a_stopped_daemon_is_said_to_accept_nothing(home, monkeypatch):
    path = str(home / "full.sock")
    monkeypatch.setattr(control, "PROBE_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(path)
        full.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(PeerError, match="accepts no connection"):
            choose_socket(path=path)
        for client in waiting:
            client.close()


BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(control.__file__).parent.parent)}
AS_NOBODY = """
import os, sys
os.environ["XDG_RUNTIME_DIR"], os.environ["XDG_STATE_HOME"] = "/nowhere", "/nowhere"
from meshd import control
from meshd.errors import UsageError
control.SYSTEM_RUNTIME_DIR = sys.argv[1]
os.setgid(65534); os.setuid(65534)
for options in ({}, {"path": sys.argv[1] + "/default/a.sock"}):
    try:
        control.choose_socket(**options)
    except UsageError as error:
        print(error.code, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_permission_it_says_whose_socket_it_is(home, listen, tmp_path_factory):
    private = tmp_path_factory.mktemp("private")
    # Open every directory on the way, however deep the test runner made it.
    for directory in (private, *private.parents):
        if directory == Path(tempfile.gettempdir()):
            break
        directory.chmod(0o755)
    listen(private / "meshd/default/a.sock")
    (private / "meshd").chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(private / "meshd")],
        capture_output=True,
        text=True,
        check=True,
        env=BARE,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"{int(Code.FORBIDDEN)} permission denied on {private}/meshd (run as root"
    )
    assert "a.sock (run as root or use --socket)" in lines[1]


def test_a_daemon_that_may_be_hidden_is_hinted_at_and_bars_nobody(home, monkeypatch):
    system = home / "system"
    for mesh in ("lab", "open"):
        (system / mesh).mkdir(parents=True)
    monkeypatch.setattr(control, "SYSTEM_RUNTIME_DIR", str(system))
    monkeypatch.setattr(control, "_is_hidden", lambda directory: directory.endswith("/lab"))
    for choice in ({}, {"mesh": "lab"}):
        with pytest.raises(NoDaemonError) as caught:
            choose_socket(**choice)
        assert f"who may look into {system}/lab" in caught.value.hint
    with pytest.raises(NoDaemonError) as caught:
        choose_socket(mesh="open")
    assert caught.value.hint == "start it: meshd start"


def test_the_owner_of_a_hidden_file_is_its_directorys(home, monkeypatch):
    import pwd

    assert control._owner(str(home / "hidden" / "x.sock")) == pwd.getpwuid(os.geteuid()).pw_name

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert control._owner(str(home)) == f"user {os.geteuid()}"


@pytest.mark.net
async def test_it_calls_a_real_server_and_gets_results_and_errors(home):
    registry = Registry()

    async def echo(params, context):
        return [params, context.deadline_s]

    async def refuse(params, context):
        raise BusyError("full", hint="wait", data={"eta_s": 1})

    registry.add("echo", None, echo, control=True)
    registry.add("refuse", None, refuse)
    server = RpcServer(registry)
    path = socket_path("default", "a")
    await server.start_control(path)
    client = ControlClient(path)
    call = client.call
    assert await asyncio.to_thread(call, "echo", {"t": "é"}, 9.0) == [{"t": "é"}, 9.0]
    assert await asyncio.to_thread(call, "echo") == [None, 30.0]
    big = {"t": "x" * 500_000}
    assert (await asyncio.to_thread(call, "echo", big))[0] == big
    with pytest.raises(BusyError) as caught:
        await asyncio.to_thread(call, "refuse")
    assert (caught.value.hint, caught.value.data) == ("wait", {"eta_s": 1})
    with pytest.raises(MeshError, match="did you mean 'echo'"):
        await asyncio.to_thread(call, "ecko")
    with pytest.raises(MeshError, match="larger than"):
        await asyncio.to_thread(call, "echo", {"t": "x" * 1_100_000})
    assert (await asyncio.to_thread(choose_socket)).path == path
    await server.stop()
    with pytest.raises(NoDaemonError):
        await asyncio.to_thread(call, "echo")


@pytest.mark.net
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "without an answer"),
        (b"nonsense\r\n\r\n{}", "without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n{}", "without an answer"),
        (http(b'{"result":1}', length=99), "incomplete"),
        (http(b'{"result":1}', length=2), "incomplete"),
        (http(b"<html>"), "does not speak JSON-RPC"),
        (http(b"[]"), "does not speak JSON-RPC"),
        (http(b'{"result":1,"error":{}}'), "does not speak JSON-RPC"),
        (http(b"[" * 100_000), "does not speak JSON-RPC"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_an_indefinite_error(answering, data, says):
    with pytest.raises(PeerError, match=says) as caught:
        answering(data).call("status")
    assert not caught.value.definite


@pytest.mark.net
def test_a_daemon_that_dies_while_it_is_asked_is_an_indefinite_error(home):
    path = str(home / "dying.sock")

    def die(listener):
        link, _ = listener.accept()
        with link:
            # Closing with unread bytes resets the connection, as a killed process does.
            link.recv(1)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=die, args=(listener,))
        thread.start()
        with pytest.raises(PeerError, match=r"went away|without an answer") as caught:
            ControlClient(path).call("status", {"x": "y" * 1_000})
        thread.join(5)
    assert not caught.value.definite


@pytest.mark.net
def test_an_answer_is_bounded(answering, monkeypatch):
    monkeypatch.setattr(control, "RESPONSE_BYTES_MAX", 1_000)
    monkeypatch.setattr(control, "_CHUNK", 500)
    with pytest.raises(PeerError, match="too large"):
        answering(http(json.dumps({"result": "x" * 5_000}).encode())).call("status")


@pytest.mark.net
@pytest.mark.parametrize("error", [b'{"error":"x"}', b'{"error":{"code":"a","data":[]}}'])
def test_an_error_that_breaks_the_rules_is_an_error_still(answering, error):
    with pytest.raises(MeshError) as caught:
        answering(http(error)).call("status")
    assert caught.value.code == Code.INTERNAL


@pytest.mark.net
def test_a_daemon_that_does_not_answer_in_time_is_an_indefinite_deadline(answering):
    with pytest.raises(DeadlineError) as caught:
        answering(None).call("status", timeout_s=0.05)
    assert not caught.value.definite
    assert "busy" in caught.value.hint


def test_no_time_left_is_a_deadline(home, listen):
    client = ControlClient(listen(home / "a.sock"))
    with pytest.raises(DeadlineError):
        client.call("status", timeout_s=1e-9)


@pytest.mark.parametrize("params", [{"x": object()}, [float("nan")], {"x": {1, 2}}])
def test_parameters_that_are_no_json_are_refused_before_connecting(params):
    with pytest.raises(UsageError, match="not JSON"):
        ControlClient("/nowhere").call("status", params)


@pytest.mark.slow
def test_importing_it_loads_nothing_heavy():
    code = "import sys, meshd.control; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=BARE,
    )
    loaded = set(done.stdout.split())
    assert "meshd.control" in loaded
    heavy = {"asyncio", "aiohttp", "msgspec", "http", "email", "pathlib", "dataclasses", "logging"}
    assert not loaded & heavy
