"""What users do wrong and what machines refuse: what, why, how to fix it, and the exit code."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import Site

from meshd.security.identity import load_or_create

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
QUIET = ("--no-mdns", "--bind", "127.0.0.1:0")
NOBODY = {
    "prefix": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # Nobody may write the coverage of what he runs.
    "env": {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
}
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)


def _can_mount():
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="needs root and mount namespaces")


@pytest.fixture(scope="module")
def town():
    """A site with one daemon; nothing here harms it."""
    made = Site()
    made.a = made.start("a", "--capability", "served")
    yield made
    assert made.a.is_running
    assert set(made.a.states()) <= {"a", "b"}
    made.close()


def fails(done, code, *texts):
    """Fail unless the command failed with this exit code and told all of these on stderr."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("meshd: ")
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr
    return done.stderr


# Starting


def test_a_taken_port_says_who_has_it(town):
    done = town.cli("start", "--name", "x", "--no-mdns", "--bind", town.a.address)
    fails(
        done, 1, f"cannot bind {town.a.address}: in use by", f"pid {town.a.pid}",
        "meshd start --name b --bind :0",
    )  # fmt: skip


def test_a_taken_name_says_who_has_it(town):
    fails(
        town.cli("start", "--name", "a", *QUIET), 1, f"another meshd daemon (pid {town.a.pid})",
        "needs its own --name",
    )  # fmt: skip
    other = str(town.path / "other")
    told = fails(
        town.cli("start", "--name", "a", "--state-dir", other, *QUIET), 1,
        "a daemon is already running behind", "with another --name",
    )  # fmt: skip
    assert "internal" not in told
    # The mesh never heard of the one that could not start.
    assert set(town.a.states()) == {"a"}


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("start", "--bnid", "x"), ("No such option '--bnid'", "Did you mean '--bind'?")),
        (("start", "--slots", "many"), ("--slots", "meshd start --help")),
        (("start", "--profile", "fast"), ("profile", "fast")),
        (("start", "--name", "a b"), ("'a b' is not a valid name", "letters, digits")),
        (("start", "--join", "a:b:c"), ("a:b:c", "is not an address")),
        (("peer",), ("No such command 'peer'", "Did you mean 'peers'?")),
        (("--node", "a", "call"), ("Missing argument", "meshd call --help")),
        (("--node", "a", "join", "no such host"), ("no such host", "is not an address")),
        (("--node", "a", "join", "host.invalid"), ("host.invalid", "check the spelling")),
    ],
)
def test_wrong_arguments_are_told_with_what_is_right(town, arguments, texts):
    fails(town.cli(*arguments), 2, *texts)


def test_broken_toml_says_where(town):
    town.write("bad.toml", "[node]\nname = 'x'\n[node\n")
    fails(town.cli("start", "--config", "bad.toml"), 2, "bad.toml:3", "broken TOML")
    fails(town.cli("start", "--config", "absent.toml"), 2, "absent.toml")


def test_one_message_lists_every_fault_of_the_configuration(town):
    town.write(
        "faults.toml",
        "[node]\nname = 'a b'\nslots = -1\nprofil = 'lan'\nbind = 'nonsense'\n"
        "[log]\nlevel = 'loud'\n[routing]\npolicy = 'best'\n",
    )
    done = town.cli("start", "--config", "faults.toml")
    told = fails(done, 2, "the configuration has 6 faults")
    for text in ("node.slots", "did you mean profile?", "log.level", "'best'", "'a b'", "nonsense"):
        assert text in told
    assert len(told.splitlines()) == 7


def test_one_message_lists_every_capability_that_cannot_be_served(town):
    town.write("broken.py", "import os\nraise RuntimeError('no key')\n")
    town.write("caps.toml", "[[capability]]\nname = 'x'\n[[capability]]\ncomand = ['a']\n")
    wrong = ("caps.toml", "nowhere:x", "served:shuot", "broken")
    flags = [part for each in wrong for part in ("--capability", each)]
    told = fails(town.cli("start", "--name", "x", *QUIET, *flags), 1, "4 capabilities")
    for text in (
        "exactly one of command", "did you mean 'command'?", "module 'nowhere' is not found",
        "did you mean 'shout'?", "broken.py line 2: RuntimeError: no key",
    ):  # fmt: skip
        assert text in told
    fails(
        town.cli("start", "--name", "x", *QUIET, "--capability", "broken"), 1,
        "broken.py line 2: RuntimeError: no key", "import broken",
    )  # fmt: skip


# Calling


@pytest.mark.parametrize(
    ("code", "arguments", "texts"),
    [
        (2, ("shout", "txt=hi"), ("missing parameter 'text'", "did you mean 'text'?")),
        (2, ("shout", "{bad"), ("not of the form key=value", "-d '{...}'")),
        (2, ("shout", "-d", "{bad"), ("JSON",)),
        (2, ("shout", "text=hi", "--policy", "best"), ("no policy 'best'", "least_loaded")),
        (4, ("shuot", "text=hi"), ("nobody can take 'shuot'", "similar: shout")),
        (4, ("shout", "text=hi", "--to", "zz"), ("no node is called 'zz'", "known nodes: a")),
        (5, ("doze", "seconds=30", "--timeout", "300ms"), ("doze", "--timeout")),
        (1, ("fail", "text=oh"), ("ValueError: oh",)),
    ],
)
def test_wrong_calls_say_what_would_be_right(town, code, arguments, texts):
    fails(town.cli("--node", "a", "call", *arguments), code, *texts)


def test_errors_are_json_where_json_is_asked_for(town):
    done = town.cli("--node", "a", "call", "shuot", "--json")
    assert (done.returncode, done.stdout) == (4, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["exit"]) == ("MESHD-E004", 4)
    assert "shout" in error["hint"]


def test_a_peer_that_is_down_is_told_as_that(town):
    fails(town.cli("--node", "a", "join", "127.0.0.1:1"), 1, "nobody answered at 127.0.0.1:1")
    b = town.start("b", "--capability", "served", join=[town.a])
    town.a.sees(a="alive", b="alive")
    address = b.address
    fails(town.cli("peers"), 2, "2 daemons are running here", "--node NAME")
    b.kill()
    call = ("--node", "a", "call", "shout", "text=x", "--to", "b")
    done = town.cli(*call)
    # Right after the kill it is still listed; a moment later it is known to be gone.
    told = fails(done, done.returncode, "b" if done.returncode == 4 else address)
    assert "ssl:default" not in told
    assert done.returncode in {1, 4}
    town.a.sees(a="alive", b="dead")
    fails(town.cli(*call), 4, "b: is dead")
    silent = town.cli("--node", "a", "ping", "b", "-c", "1")
    assert (silent.returncode, "no answer" in silent.stdout) == (5, True)
    fails(town.cli("--node", "b", "peers"), 3, "stale socket", "meshd start")


def test_without_a_daemon_every_client_says_how_to_start_one(site):
    for arguments in (("peers",), ("call", "shout", "text=x"), ("stop",), ("status",)):
        fails(site.cli(*arguments), 3, "no daemon is running here", "start it: meshd start")
    missing = str(site.path / "none.sock")
    fails(site.cli("--socket", missing, "peers"), 3, missing, "meshd start")
    text = str(site.write("plain", "no socket"))
    fails(site.cli("--socket", text, "peers"), 2, "is not a socket", "--socket")


@needs_root
def test_another_user_is_told_that_permission_is_missing(town):
    town.path.chmod(0o755)
    fails(town.cli("peers", **NOBODY), 6, "permission denied", "run as root")
    done = town.cli("--socket", town.a.control.path, "peers", **NOBODY)
    fails(done, 6, "permission denied", "run as root")


# What the machine refuses


def test_no_multicast_is_a_warning_and_not_the_end(site):
    a = site.start("a")
    flags = ("--mdns", "--iface", "nope9")
    b = site.spawn("b", *flags, join=[a])
    a.sees(a="alive", b="alive")
    assert "nope9" in b.event("mdns_failed")["reason"]
    status = site.cli("--node", "b", "status")
    assert "nope9: there is no such interface" in status.stdout
    doctor = site.cli("--node", "b", "doctor")
    assert "--join" in doctor.stdout


def _on_disk(site, name, mount, **choices):
    """A daemon whose state directory is a file system of its own, which nobody else sees."""
    disk = site.path / f"disk-{name}"
    disk.mkdir()
    script = f'{mount.format(disk=disk)} && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, "sh")
    daemon = site.start(name, "--state-dir", str(disk), prefix=prefix, **choices)
    return daemon, Path(f"/proc/{daemon.pid}/root{disk}")


@needs_mounts
def test_a_state_directory_that_is_read_only_costs_a_warning(site):
    a = site.start("a")
    b, _ = _on_disk(site, "b", "mount -t tmpfs -o ro none {disk}", join=[a])
    a.sees(a="alive", b="alive")
    assert b.event("node_key_not_kept")["reason"] == "Read-only file system"
    status = site.cli("--node", "b", "status", "--check")
    assert (status.returncode, "Read-only file system" in status.stdout) == (7, True)
    # One warning of each kind, however often it is tried again.
    a.kill()
    b.sees(a="dead", b="alive")
    assert len(b.logged("state_dir_failed")) == 1
    assert b.stop() == 0


@needs_mounts
def test_a_full_disk_costs_nothing_once_it_has_room_again(site):
    a = site.start("a")
    mount = (
        "mount -t tmpfs -o size=64k none {disk} &&"
        " {{ dd if=/dev/zero of={disk}/fill bs=1k count=100 2>&-; true; }}"
    )
    b, disk = _on_disk(site, "b", mount, join=[a])
    a.sees(a="alive", b="alive")
    assert b.event("node_key_not_kept")["reason"] == "No space left on device"
    assert "kept in memory" in b.event("cache_failed")["effect"]
    assert not b.call("status")["healthy"]
    (disk / "fill").unlink()
    b.until(lambda: b.call("status")["healthy"], "the end of the trouble")
    b.until((disk / "peers.cache").exists, "the cache on disk", 15.0)
    assert (disk / "run").exists()
    assert load_or_create(disk).node.hex() == b.id
    assert b.stop() == 0
