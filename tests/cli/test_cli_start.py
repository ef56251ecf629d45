"""`meshd start`, its screen, and the commands that need no daemon: config and completion."""

import errno
import os
import re
import socket
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshd import control
from meshd.cli import welcome
from meshd.cli.output import Palette
from meshd.errors import NoDaemonError, UsageError

STATUS = {
    "pid": 7, "name": "lab-a", "id": "9f3c000000000012", "mesh": "default", "version": "0.1.0",
    "address": "192.168.1.17:6374",
    "discovery": [{"source": "mdns", "state": "ok", "detail": "eth0"}],
}  # fmt: skip
INFO = {"url": "http://192.168.1.17:6374"}
ALL_FLAGS = """
start --name b --mesh m --bind 127.0.0.1:0 --advertise 127.0.0.1 --join a --join c:1 --peers-file p
--no-mdns --iface lo --iface eth0 --capability x:y --capability z.toml --slots 3 --profile local
--state-dir s --log-level error --log-format json --loop asyncio --ready-file r --drain 2s
--routing-policy-file p.toml --config
"""


@pytest.fixture
def lifecycle(monkeypatch):
    """The daemon's stand-in: notes what it was started with, and returns or raises `outcome`."""

    def run(config, *, ready_file, reread):
        stand_in.config, stand_in.ready_file, stand_in.reread = config, ready_file, reread
        if isinstance(stand_in.outcome, Exception):
            raise stand_in.outcome
        return stand_in.outcome

    stand_in = SimpleNamespace(run=run, outcome=0, config=None, ready_file=None)
    monkeypatch.setitem(sys.modules, "meshd.daemon.lifecycle", stand_in)
    monkeypatch.setattr(welcome, "READY_WITHIN_S", 0.0)
    return stand_in


def test_start_needs_no_flags(meshd, lifecycle):
    assert meshd("start").exit == 0
    assert lifecycle.config.node.mesh == "default"
    assert lifecycle.config.node.bind == "0.0.0.0:6374"
    assert lifecycle.ready_file is None


def test_every_flag_of_start_reaches_the_configuration(meshd, lifecycle, home, monkeypatch):
    config = home / "meshd.toml"
    config.write_text("[routing]\nhops_max = 3\n")
    monkeypatch.chdir(home)
    (home / "p.toml").write_text("[default]\nretries = 1\n")
    done = meshd(*ALL_FLAGS.split(), str(config))
    assert (done.exit, done.err) == (0, "")
    node = lifecycle.config.node
    assert (node.name, node.mesh, node.bind, node.advertise) == (
        "b", "m", "127.0.0.1:0", "127.0.0.1"
    )  # fmt: skip
    assert (node.join, node.iface, node.capability) == (
        ("a", "c:1"), ("lo", "eth0"), ("x:y", "z.toml")
    )  # fmt: skip
    assert (node.peers_file, node.mdns, node.slots, node.profile) == ("p", False, 3, "local")
    assert (node.state_dir, node.loop, node.drain_s) == ("s", "asyncio", 2.0)
    assert (lifecycle.config.log.level, lifecycle.config.log.format) == ("error", "json")
    assert (lifecycle.config.routing.hops_max, lifecycle.config.routing.retries) == (3, 1)
    assert lifecycle.ready_file == "r"


def test_a_reload_reads_files_again_and_keeps_the_flags(meshd, lifecycle, home):
    config = home / "meshd.toml"
    config.write_text("[node]\nslots = 1\n")
    meshd("start", "--config", str(config), "--name", "b")
    config.write_text("[node]\nslots = 2\nname = 'c'\n")
    again = lifecycle.reread()
    assert (lifecycle.config.node.slots, again.node.slots, again.node.name) == (1, 2, "b")


def test_every_option_of_start_is_a_setting():
    from meshd.cli.start import command
    from meshd.config import options

    known = {option.option for option in options()} | {"config"}
    assert {parameter.name for parameter in command.params} <= known


def test_flags_win_over_the_environment(meshd, lifecycle, monkeypatch):
    monkeypatch.setenv("MESHD_NAME", "by-env")
    monkeypatch.setenv("MESHD_MESH", "env-mesh")
    monkeypatch.setenv("MESHD_NMAE", "x")
    done = meshd("start", "--name", "by-flag")
    assert lifecycle.config.node.name == "by-flag"
    assert lifecycle.config.node.mesh == "env-mesh"
    assert "warning: $MESHD_NMAE: unknown variable" in done.err


def test_mesh_may_stand_before_start_and_other_choices_are_refused(meshd, lifecycle):
    assert meshd("--mesh", "m", "start").exit == 0
    assert lifecycle.config.node.mesh == "m"
    done = meshd("--node", "b", "start")
    assert done.exit == 2
    assert "use --name" in done.err


def test_all_faults_of_the_configuration_are_told_at_once(meshd, lifecycle):
    done = meshd("start", "--bind", "nonsense", "--slots", "9999", "--profile", "moon")
    assert done.exit == 2
    assert done.err.startswith("meshd: the configuration has 3 faults:  [MESHD-E002]\n")
    assert all(word in done.err for word in ("--slots", "--bind", "--profile"))
    assert lifecycle.config is None


@pytest.mark.net
def test_a_taken_port_names_the_daemon_that_holds_it(meshd, lifecycle, start_daemon):
    start_daemon("lab-a").results["status"] = {"pid": 4121, "address": "127.0.0.1:6374"}
    lifecycle.outcome = OSError(errno.EADDRINUSE, "Address already in use")
    done = meshd("start")
    assert done.exit == 1
    assert done.err == (
        'meshd: cannot bind 0.0.0.0:6374: in use by pid 4121 (meshd, node lab-a, mesh "default")'
        "  [MESHD-E010]\n  already running? meshd status\n"
        "  second node here: meshd start --name b --bind :0\n"
    )


@pytest.mark.net
def test_a_taken_port_names_the_process_that_holds_it(meshd, lifecycle):
    lifecycle.outcome = UsageError("cannot bind")
    lifecycle.outcome.__cause__ = OSError(errno.EADDRINUSE, "Address already in use")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = meshd("start", "--bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.exit == 1
    assert f"in use by pid {os.getpid()} (" in done.err


@pytest.mark.net
def test_a_port_held_by_who_knows_whom_is_told_as_that(meshd, lifecycle, home, start_daemon):
    start_daemon("deaf")
    start_daemon("elsewhere").results["status"] = {"pid": 1, "address": "127.0.0.1:1"}
    stale = Path(control.runtime_dir()) / "default" / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(stale))
    with socket.create_server(("127.0.0.1", 0)) as held:
        free_again = held.getsockname()[1]
    lifecycle.outcome = OSError(errno.EADDRINUSE, "Address already in use")
    done = meshd("start", "--bind", f"[::1]:{free_again}")
    assert f"cannot bind [::1]:{free_again}: in use by another process" in done.err


def test_whatever_else_keeps_it_from_starting_exits_with_1(meshd, lifecycle):
    lifecycle.outcome = UsageError("module 'x' has no 'y'", hint="check --capability")
    done = meshd("start", "--capability", "x:y")
    assert (done.exit, "[MESHD-E009]" in done.err) == (1, True)
    assert "  check --capability" in done.err


def test_the_exit_code_of_the_daemon_is_the_commands(meshd, lifecycle):
    lifecycle.outcome = 1
    assert meshd("-q", "start").exit == 1


class Daemon:
    """Answers of a daemon that is becoming ready; its clock moves with each look and sleep."""

    def __init__(self, peers, *, ready_after=2, pid=7):
        self.now, self.looks, self.text = 0.0, 0, ""
        self.peers, self.ready_after, self.pid = peers, ready_after, pid

    def call(self, method, params, timeout_s):
        if method == "status":
            self.looks += 1
            if self.looks <= self.ready_after:
                raise NoDaemonError("not yet")
            return {**STATUS, "pid": self.pid}
        return INFO if method == "info" else {"nodes": self.peers(self.now)}

    def sleep(self, seconds):
        self.now += seconds

    def welcome(self):
        def write(text):
            self.text += text

        welcome.welcome(
            self.call, Palette(enabled=False), write, pid=7, sleep=self.sleep,
            clock=lambda: self.now,
        )  # fmt: skip
        return self.text.splitlines()


def test_the_start_screen_says_who_where_and_whom_it_found():
    unnamed = [{"id": "4bf9", "name": "4bf9", "state": "alive"}]
    others = [{"name": "lab-b", "state": "alive"}, {"name": "nuc", "state": "alive"}]
    *screen, outcome = Daemon(lambda now: others if now > 0.2 else unnamed).welcome()
    assert screen == [
        'meshd 0.1.0  node lab-a (9f3c…12)  mesh "default"',
        "  gossip  udp 192.168.1.17:6374      rpc  http://192.168.1.17:6374",
        "  mdns    ok  eth0",
        "  key     none  ⚠ anyone on this network can join",
    ]
    assert "joined: found 2 peers in 0." in outcome
    assert "(lab-b,nuc)" in outcome
    assert outcome.endswith(welcome.NEXT)


def test_a_node_that_is_alone_is_told_how_to_join():
    *_, outcome = Daemon(lambda now: [{"self": True, "state": "alive"}]).welcome()
    assert "no other node yet" in outcome
    assert "meshd join HOST" in outcome


def test_no_screen_for_another_daemon_or_for_none():
    assert Daemon(lambda now: [], pid=8).welcome() == []
    assert Daemon(lambda now: [], ready_after=10_000).welcome() == []


def test_a_daemon_that_stops_at_once_ends_the_screen():
    def gone(now):
        raise NoDaemonError("gone")

    assert len(Daemon(gone).welcome()) == 4


def test_config_show_is_toml_that_says_where_each_value_is_from(meshd, home, monkeypatch):
    monkeypatch.setenv("MESHD_NAME", "by-env")
    done = meshd("config", "show", "--origin")
    tables = tomllib.loads(done.out)
    assert tables["node"]["name"] == "by-env"
    assert tables["routing"]["weights"] == {"cpu": 0.7, "latency": 0.3}
    assert 'name = "by-env"  # $MESHD_NAME\n' in done.out
    document = meshd("config", "show", "--json").json
    assert document["schema"] == "meshd.config/1"
    assert document["origins"]["node.name"] == "$MESHD_NAME"
    assert document["settings"]["node.name"] == "by-env"


def test_what_config_show_prints_passes_the_check(meshd, home):
    file = home / "all.toml"
    file.write_text(meshd("config", "show", "--origin").out)
    assert meshd("config", "check", str(file)).exit == 0


def test_config_show_has_the_tables_of_capabilities_with_their_origins(meshd, home):
    policies = home / "p.toml"
    policies.write_text("[default]\nretries = 1\n[capability.'a.*']\ncost_usd_max = inf\n")
    file = home / "all.toml"
    file.write_text(
        f"[routing]\npolicy_file = '{policies}'\n[routing.capability.b]\nfallback = ['c']\n"
    )
    shown = meshd("config", "show", "--origin", "--config", str(file)).out
    routing = tomllib.loads(shown)["routing"]
    assert (routing["retries"], routing["cost_usd_max"]) == (1, float("inf"))
    assert routing["capability"] == {
        "b": {"fallback": ["c"]},
        "a.*": {"cost_usd_max": float("inf")},
    }
    assert f"retries = 1  # {policies}\n" in shown
    assert f'[routing.capability."a.*"]\ncost_usd_max = inf  # {policies}\n' in shown
    assert f'fallback = ["c"]  # {file}\n' in shown
    settings = meshd("config", "show", "--json", "--config", str(file)).json["settings"]
    assert settings["routing.cost_usd_max"] is None
    assert settings["routing.capability"] == {
        "b": {"fallback": ["c"]},
        "a.*": {"cost_usd_max": None},
    }
    again = home / "again.toml"
    again.write_text(shown)
    assert meshd("config", "check", str(again)).exit == 0


def test_config_check_takes_policy_files_and_what_a_configuration_names(meshd, home):
    policies = home / "p.toml"
    policies.write_text("[default]\n[capability.a]\nretries = 1\n[capability.b]\n")
    done = meshd("config", "check", str(policies))
    assert done.out == f"{policies}: ok, has policies of 2 capabilities beside the default\n"
    assert meshd("config", "check", str(policies), "--json").json["ok"] is True
    policies.write_text("[default]\nretires = 1\n[capability.a]\nretries = 4\n")
    config = home / "c.toml"
    config.write_text("[routing]\npolicy_file = 'p.toml'\n")
    for file in (policies, config):
        done = meshd("config", "check", str(file))
        assert done.exit == 2
        assert "default.retires: unknown key; did you mean retries?" in done.err
        assert f"{policies}: capability.a.retries: expected `int` <= 3" in done.err


def test_config_path_tells_where_files_are_read(meshd, home, monkeypatch):
    own = home / "config" / "meshd" / "meshd.toml"
    done = meshd("config", "path")
    assert f"{own}  (not there)" in done.out
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert str(own) in meshd("config", "path").out.splitlines()
    monkeypatch.setenv("MESHD_CONFIG", "/elsewhere.toml")
    assert meshd("config", "path", "--json").json["files"] == [
        {"path": "/elsewhere.toml", "exists": False}
    ]


def test_config_check_lists_every_fault(meshd, home):
    file = home / "bad.toml"
    file.write_text("[node]\nnmae = 'x'\nslots = -1\n[rooting]\n")
    done = meshd("config", "check", str(file))
    assert done.exit == 2
    assert "3 faults" in done.err
    assert "did you mean name?" in done.err
    file.write_text("[node\n")
    assert f"{file}:1:6: broken TOML" in meshd("config", "check", str(file)).err
    assert meshd("config", "check", str(home / "none.toml"), "--json").error["exit"] == 2


def test_config_check_looks_at_declared_capabilities_too(meshd, home):
    file = home / "caps.toml"
    file.write_text('[[capability]]\nname = "ok"\ncommand = ["cat"]\n')
    assert (
        meshd("config", "check", str(file)).out
        == f"{file}: ok, declares 1 capability and 0 handlers\n"
    )
    assert meshd("config", "check", str(file), "--json").json["ok"] is True
    file.write_text('[[capability]]\nname = "neither"\n')
    assert meshd("config", "check", str(file)).exit == 2


def test_config_check_ignores_the_environment(meshd, home, monkeypatch):
    file = home / "ok.toml"
    file.write_text("[node]\nslots = 1\n")
    monkeypatch.setenv("MESHD_SLOTS", "many")
    assert meshd("config", "check", str(file)).exit == 0
    assert meshd("config", "show").exit == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(meshd, shell):
    done = meshd("completion", shell)
    assert done.exit == 0
    assert "_MESHD_COMPLETE" in done.out


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "data/bash-completion/completions/meshd"),
        ("zsh", "data/zsh/site-functions/_meshd"),
        ("fish", "config/fish/completions/meshd.fish"),
    ],
)
def test_completion_installs_itself_for_the_users_shell(meshd, home, monkeypatch, shell, place):
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    done = meshd("completion", "install")
    assert done.out == f"installed {home / place}\n"
    assert "_MESHD_COMPLETE" in (home / place).read_text()


def test_completion_for_an_unknown_shell_says_which_there_are(meshd, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = meshd("completion", "install")
    assert done.exit == 2
    assert "bash, zsh, fish" in done.err


def complete(meshd, monkeypatch, capsys, words):
    """What bash would be offered for the last of `words`."""
    monkeypatch.setenv("_MESHD_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit):
        meshd()
    offered = capsys.readouterr().out.split()
    return [line.partition(",")[2] for line in offered]


@pytest.mark.net
def test_names_of_nodes_and_capabilities_are_completed(meshd, fake, monkeypatch, capsys):
    assert complete(meshd, monkeypatch, capsys, ["meshd", "info", "lab"]) == ["lab-a", "lab-b"]
    assert complete(meshd, monkeypatch, capsys, ["meshd", "call", "tr"]) == ["translate"]


def test_completion_without_a_daemon_offers_nothing_and_stays_silent(meshd, monkeypatch, capsys):
    assert complete(meshd, monkeypatch, capsys, ["meshd", "info", "lab"]) == []
    assert "status" in complete(meshd, monkeypatch, capsys, ["meshd", "sta"])


def test_config_profile_shows_every_number_beside_its_formula(meshd, home):
    done = meshd("config", "profile", "wan", "--size", "100")
    assert (done.exit, done.err) == (0, "")
    assert re.search(r"^probe_interval_s +5  s +T, one probe round", done.out, re.MULTILINE)
    assert re.search(r"^t_min_s +15  s +T_min = alpha \* T$", done.out, re.MULTILINE)
    assert "\nin a mesh of 100 nodes " in done.out
    document = meshd("config", "profile", "local", "--size", "3", "--json").json
    assert document["schema"] == "meshd.profile/1"
    assert (document["profile"], document["members"]) == ("local", 3)
    assert document["numbers"][0]["value"] == 0.2
    assert {"name": "confirmations", "value": 1, "unit": ""}.items() <= (
        document["follows"][2].items()
    )


def test_config_profile_is_that_of_the_daemon_and_its_mesh(meshd, fake):
    fake.results["status"] = {"profile": "local", "members": {"alive": 7, "suspect": 1, "dead": 3}}
    document = meshd("config", "profile", "--json").json
    assert (document["profile"], document["members"]) == ("local", 8)


def test_without_a_daemon_config_profile_is_what_start_would_use(meshd, home, monkeypatch):
    monkeypatch.setenv("MESHD_PROFILE", "wan")
    done = meshd("config", "profile")
    assert done.out.startswith("profile wan ")
    assert "no daemon runs here" in done.err
    assert "in a mesh of 10 nodes" in done.out
    assert meshd("config", "profile", "warp").exit == 2
