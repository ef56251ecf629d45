"""How the command line fails: what, why, how to fix it, a stable code, the right exit code."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from stand_in import RefusalError

from meshd.cli import app
from meshd.cli.failure import report_of, start_report
from meshd.errors import Code, MeshError, PeerError, UsageError

HEAVY = {
    "aiohttp", "asyncio", "cryptography", "logging", "msgpack", "msgspec", "psutil", "uvloop",
    "zeroconf", "http.client", "importlib.metadata", "meshd.config", "meshd.model",
}  # fmt: skip


def test_without_a_daemon_it_says_how_to_start_one(meshd):
    done = meshd("peers")
    assert (done.exit, done.out) == (3, "")
    assert done.err.startswith("meshd: no daemon is running here")
    assert done.err.splitlines()[0].endswith("[MESHD-E003]")
    assert "  start it: meshd start" in done.err


@pytest.mark.parametrize("argument", ["--json", "-ojson", "--output=jsonl"])
def test_in_json_mode_an_error_is_one_object_on_stderr(meshd, argument):
    done = meshd("peers", argument)
    assert done.out == ""
    assert done.error["code"] == "MESHD-E003"
    assert done.error["exit"] == done.exit == 3
    assert done.error["hint"] == "start it: meshd start"


@pytest.mark.net
def test_a_stale_socket_is_named(meshd, home):
    path = home / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    done = meshd("--socket", str(path), "status")
    assert done.exit == 3
    assert f"no daemon is answering on {path}" in done.err
    assert "stale socket" in done.err


@pytest.mark.net
def test_several_daemons_are_listed_and_none_is_guessed(meshd, start_daemon):
    for name in ("lab-a", "lab-b"):
        start_daemon(name).results["status"] = {"healthy": True, "name": name}
    done = meshd("status")
    assert done.exit == 2
    assert "lab-a (mesh default" in done.err
    assert "--node NAME" in done.err
    assert meshd("--node", "lab-b", "status", "--json").json["name"] == "lab-b"
    assert meshd("status", "--node", "lab-a", "--json").json["name"] == "lab-a"
    assert meshd("status", "--node", "lab-c").exit == 3


@pytest.mark.net
def test_the_environment_chooses_a_daemon_too(meshd, start_daemon, monkeypatch):
    for mesh in ("home", "work"):
        start_daemon("a", mesh).results["status"] = {"healthy": True, "mesh": mesh}
    monkeypatch.setenv("MESHD_MESH", "work")
    assert meshd("status", "--json").json["mesh"] == "work"
    assert meshd("--mesh", "home", "status", "--json").json["mesh"] == "home"


@pytest.mark.net
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.slow
def test_a_socket_of_someone_else_is_denied():
    script = (
        "import os, sys; from meshd.cli.app import run; import meshd.cli.peers, meshd.control, pwd;"
        " os.setuid(65534); sys.exit(run(['--socket', sys.argv[1], 'peers']))"
    )
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "a.sock")
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 6
    assert done.stderr.splitlines()[:2] == [
        f"meshd: permission denied on {path}  [MESHD-E006]",
        "  run as root or use --socket",
    ]


@pytest.mark.net
@pytest.mark.parametrize(
    ("code", "exit_code", "stable"),
    [
        (Code.NO_CANDIDATE, 4, "MESHD-E004"),
        (Code.BUSY, 1, "MESHD-E011"),
        (Code.DEADLINE, 5, "MESHD-E005"),
        (Code.FORBIDDEN, 6, "MESHD-E006"),
        (Code.INVALID_PARAMS, 2, "MESHD-E002"),
        (Code.METHOD_NOT_FOUND, 1, "MESHD-E018"),
        (Code.CYCLE, 1, "MESHD-E012"),
        (Code.OVER_BUDGET, 6, "MESHD-E020"),
        (Code.UPSTREAM, 1, "MESHD-E016"),
        (Code.INTERNAL, 1, "MESHD-E019"),
        (-1, 1, "MESHD-E001"),
    ],
)
def test_each_answer_of_the_daemon_has_its_exit_code(meshd, fake, code, exit_code, stable):
    fake.results["delegate"] = RefusalError(code, "it went wrong", hint="do this", eta_s=2)
    done = meshd("call", "translate", "a=1")
    assert done.exit == exit_code
    assert done.err == f"meshd: it went wrong  [{stable}]\n  do this\n"
    error = meshd("call", "translate", "--json").error
    assert error["data"] == {"eta_s": 2}
    assert (error["code"], error["exit"]) == (stable, exit_code)


def test_every_code_has_a_stable_number_of_its_own_meaning():
    assert {report_of(MeshError("x", code=code)).code for code in Code} >= {"MESHD-E002"}
    assert all(report_of(MeshError("x", code=code)).code != "MESHD-E001" for code in Code)


@pytest.mark.net
def test_what_a_peer_says_cannot_paint_the_terminal(meshd, fake):
    fake.results["delegate"] = RefusalError(Code.UPSTREAM, "evil\x1b[2J", hint="\u202ehint")
    done = meshd("call", "translate")
    assert r"evil\x1b[2J" in done.err
    assert r"\u202ehint" in done.err


def test_an_unknown_command_suggests_a_near_one(meshd):
    done = meshd("pers")
    assert done.exit == 2
    assert "No such command 'pers'. Did you mean 'peers'?  [MESHD-E002]" in done.err
    assert "see: meshd --help" in done.err
    assert "Did you mean" not in meshd("xyzzy").err


def test_an_unknown_option_suggests_a_near_one(meshd):
    done = meshd("peers", "--stat", "x")
    assert done.exit == 2
    assert "--state" in done.err
    assert "see: meshd peers --help" in done.err


def test_a_missing_argument_is_a_usage_error(meshd):
    assert meshd("ping").exit == 2
    assert "see: meshd start --help" in meshd("start", "--join").err
    assert meshd("join", "--json").error["code"] == "MESHD-E002"


def test_no_command_shows_the_help_and_is_a_usage_error(meshd):
    done = meshd()
    assert (done.exit, done.out) == (2, "")
    assert "Usage: meshd" in done.err


@pytest.mark.net
def test_an_interrupt_ends_with_130_and_no_traceback(meshd, fake, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("meshd.control.ControlClient.call", interrupted)
    done = meshd("call", "translate")
    assert done.exit == 130
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.net
def test_a_signal_during_a_call_ends_with_130(fake):
    begun = fake.results["delegate"] = _Begun()
    process = subprocess.Popen(
        [sys.executable, "-m", "meshd", "--socket", str(fake.path), "call", "translate"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert begun.event.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    begun.over.set()
    assert process.returncode == 130
    assert "Traceback" not in err


class _Begun:
    """A method that says when it runs and lasts until it is told to end."""

    def __init__(self):
        import threading

        self.event, self.over = threading.Event(), threading.Event()

    def __call__(self, params):
        self.event.set()
        self.over.wait(30)
        return {}


def test_a_fault_of_our_own_says_how_to_see_more(meshd, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("meshd.cli.session.Session.client", property(broken))
    done = meshd("peers")
    assert done.exit == 1
    assert "internal error: ZeroDivisionError: oops  [MESHD-E019]" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in meshd("-v", "peers").err


def test_operating_system_errors_name_the_file():
    denied = report_of(PermissionError(13, "Permission denied", "/x"))
    assert (denied.message, denied.exit) == ("permission denied on /x", 6)
    full = report_of(OSError(28, "No space left on device", "/x"))
    assert (full.message, full.exit) == ("/x: No space left on device", 1)
    assert report_of(OSError("odd")).message == "odd"


def test_start_errors_exit_with_1_whoever_is_at_fault():
    for error in (UsageError("x"), PeerError("x"), OSError(99, "no such address")):
        assert start_report(error, "1.2.3.4:5").exit == 1
    for number in (errno.EADDRNOTAVAIL, errno.EACCES):
        told = start_report(OSError(number, "no"), "1.2.3.4:5")
        assert (told.message, told.code) == ("cannot bind 1.2.3.4:5: no", "MESHD-E009")
    denied = start_report(PermissionError(errno.EACCES, "no", "/state"), "1.2.3.4:5")
    assert (denied.message, denied.exit) == ("permission denied on /state", 1)


def test_client_commands_import_nothing_heavy(home):
    script = (
        "import sys, click.shell_completion; from meshd.cli.app import root, run\n"
        "for name in root.list_commands(None): root.get_command(None, name)\n"
        "run(['peers'])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "meshd.cli.peers" in done.stdout.split()
    assert HEAVY.isdisjoint(done.stdout.split())


def test_help_imports_no_command(home):
    script = "import sys; from meshd.cli.app import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    loaded = done.stdout.split()
    assert not {f"meshd.cli.{name}" for name in app.root.list_commands(None)} & set(loaded)


@pytest.mark.parametrize("name", app.root.list_commands(click.Context(app.root)))
def test_every_command_has_help_with_an_example(meshd, name):
    done = meshd(name, "-h")
    assert done.exit == 0
    assert "Examples:" in done.out
    assert f"meshd {name}" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    command = app.root.get_command(click.Context(app.root), name)
    told = next(section[name] for section in app.SECTIONS.values() if name in section)
    assert command.short_help == told


def test_the_help_groups_all_commands(meshd):
    done = meshd("--help")
    for title, section in app.SECTIONS.items():
        assert f"{title}:" in done.out
        assert all(f"\n  {name} " in done.out for name in section)


def test_the_version_is_told(meshd):
    from meshd import __version__

    assert meshd("--version").out == f"meshd {__version__}\n"


@pytest.mark.slow
def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "meshd", "peers", "--bogus"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2


@pytest.mark.net
def test_a_terminal_without_unicode_shows_escapes_instead_of_a_traceback(fake):
    done = subprocess.run(
        [sys.executable, "-m", "meshd", "--socket", str(fake.path), "peers"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert rb"\u2013" in done.stdout
