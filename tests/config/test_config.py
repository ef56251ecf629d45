"""Four layers, one result, one error for every fault."""

import os
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd import paths
from meshd.config import (
    POLICIES,
    Config,
    load_config,
    options,
)
from meshd.errors import UsageError
from meshd.gossip.config import DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, GossipConfig
from meshd.paths import default_state_dir, search_paths
from meshd.routing import policies as routing_policies
from meshd.routing.settings import BreakerSettings, RoutingSettings
from meshd.toml_file import FILE_BYTES_MAX


def load(flags=None, env=None, paths=()):
    return load_config(
        flags or {}, {"HOME": "/h", **(env or {})}, list(paths), hostname="lab-a.lan"
    )


def faults(*arguments, **keywords):
    with pytest.raises(UsageError) as caught:
        load(*arguments, **keywords)
    return caught.value.data["faults"]


def written(path, text):
    path.write_text(text)
    return path


def test_nothing_given_is_a_whole_configuration(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    loaded = load()
    assert loaded.config.node.name == "lab-a"
    assert loaded.config.node.mesh == "default"
    assert loaded.config.node.state_dir == "/h/.local/state/meshd/default/lab-a"
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.warnings == ()


def test_each_layer_wins_over_the_one_below(tmp_path):
    system = written(tmp_path / "s.toml", '[node]\nname = "s"\nmesh = "s"\nslots = 1\nqueue = 1\n')
    user = written(tmp_path / "u.toml", '[node]\nname = "u"\nmesh = "u"\nslots = 2\n')
    loaded = load({"name": "f"}, {"MESHD_NAME": "e", "MESHD_MESH": "e"}, [system, user])
    node = loaded.config.node
    assert (node.name, node.mesh, node.slots, node.queue) == ("f", "e", 2, 1)
    assert loaded.origins["node.name"] == "--name"
    assert loaded.origins["node.mesh"] == "$MESHD_MESH"
    assert loaded.origins["node.slots"] == str(user)
    assert loaded.origins["node.queue"] == str(system)
    assert loaded.origins["node.drain_s"] == "default"
    assert loaded.files == (system, user)


def test_flags_that_were_not_given_change_nothing():
    loaded = load({"name": None, "join": (), "iface": [], "mdns": False})
    assert loaded.config.node.name == "lab-a"
    assert loaded.config.node.mdns is False
    assert loaded.origins["node.mdns"] == "--mdns"


def test_every_setting_is_documented_and_has_a_flag_and_a_variable():
    assert len({o.option for o in options()}) == len(options())
    for option in options():
        assert len(option.description) > 10, option.path
        assert option.variable.startswith("MESHD_")
        assert option.flag == "--" + option.option.replace("_", "-").removesuffix("-s")
        msgspec.convert(msgspec.to_builtins(option.default), option.type)
    assert {o.path.partition(".")[0] for o in options()} | {"capability", "handler"} == set(
        Config.__struct_fields__
    )
    assert next(o for o in options() if o.path == "routing.breaker.window").section == (
        "routing.breaker"
    )


def test_environment_texts_become_values():
    loaded = load(
        env={
            "MESHD_JOIN": "lab-b, 10.0.0.9:7000,",
            "MESHD_SLOTS": "4",
            "MESHD_DRAIN_S": "2.5",
            "MESHD_MDNS": "off",
            "MESHD_LOG_LEVEL": "debug",
            "MESHD_ROUTING_WEIGHTS": "cpu=1, latency=0.5",
            "MESHD_QUEUE": "",
        }
    )
    node = loaded.config.node
    assert node.join == ("lab-b", "10.0.0.9:7000")
    assert (node.slots, node.drain_s, node.mdns, node.queue) == (4, 2.5, False, 64)
    assert loaded.config.log.level == "debug"
    assert loaded.config.routing.weights == {"cpu": 1.0, "latency": 0.5}


def test_region_and_labels_come_from_file_variable_and_flags(tmp_path):
    file = written(tmp_path / "a.toml", '[node]\nregion = "eu-west"\nlabels = {gpu = "a100"}\n')
    assert load(paths=[file]).config.node.region == "eu-west"
    assert load(paths=[file]).config.node.labels == {"gpu": "a100"}
    assert load(env={"MESHD_LABELS": "gpu=t4, disk=ssd"}).config.node.labels == {
        "gpu": "t4", "disk": "ssd",
    }  # fmt: skip
    assert load({"labels": ("gpu=h100",)}, paths=[file]).config.node.labels == {"gpu": "h100"}
    assert load({"labels": {"gpu": "h100"}}).config.node.labels == {"gpu": "h100"}


def test_every_fault_of_region_and_labels_is_told():
    found = faults({"region": "e u", "labels": {"a b": "x", "c": ""}})
    assert [fault.partition(": ")[2].partition(" ")[0] for fault in found] == [
        "node.region:", "node.labels:", "node.labels:",
    ]  # fmt: skip
    assert "name=value" in faults({"labels": ("gpu",)})[0]


def test_tiers_shares_and_caps_are_checked_and_what_is_left_out_stays(tmp_path):
    file = written(
        tmp_path / "a.toml",
        "[routing.tiers]\nleast = 0.5\n[routing.spend]\nnode_usd_per_day = 5\n",
    )
    routing = load(paths=[file]).config.routing
    assert (routing.tiers, routing.spend) == ({"least": 0.5}, {"node_usd_per_day": 5.0})
    settings = RoutingSettings(tiers=routing.tiers, spend=routing.spend)
    assert settings.tiers == {"preferred": 0.95, "fallback": 0.9, "least": 0.5}
    wrong = written(
        tmp_path / "b.toml",
        "[routing]\ntiers = {fallback = 0.99}\nshares = {matsch = 1}\n"
        "spend = {caller_usd_per_hour = -1}\n",
    )
    found = faults(paths=[wrong])
    assert ["unknown weight matsch" in found[0], "must go down" in found[1]] == [True, True]
    assert "caller_usd_per_hour must be 0" in found[2]
    with pytest.raises(UsageError) as caught:
        RoutingSettings(tiers={"worst": 0.1}, spend={"week": 1.0}, shares={"cost": 0.0})
    for words in ("unknown tier worst", "unknown cap week", "shares: at least one weight"):
        assert words in caught.value.message


def test_an_unknown_variable_is_a_warning_with_a_suggestion():
    loaded = load(env={"MESHD_NAM": "x", "MESHD_SOCKET": "/s", "PATH": "/bin"})
    assert loaded.warnings == ("$MESHD_NAM: unknown variable, ignored; did you mean MESHD_NAME?",)


def test_one_error_lists_every_fault_of_every_layer(tmp_path):
    first = written(
        tmp_path / "a.toml",
        '[node]\nnmae = "x"\nslots = "four"\nqueue = -1\n[nod]\n[log]\nlevel = "loud"\n'
        '[[capability]]\nname = "a"\n',
    )
    second = written(tmp_path / "b.toml", "[node\n")
    found = faults(
        {"bind": "nowhere", "polcy": 1},
        {"MESHD_DRAIN_S": "-1", "MESHD_NAME": "a b"},
        [first, second],
    )
    assert found == [
        f"{first}: node.nmae: unknown key; did you mean name?",
        f"{first}: node.slots: expected `int`, got `str`",
        f"{first}: node.queue: expected `int` >= 0",
        f"{first}: nod: unknown section; did you mean node?",
        f"{first}: log.level: 'loud' is none of debug, info, warning, error",
        f"{second}:1:6: broken TOML: Expected ']' at the end of a table declaration",
        "$MESHD_DRAIN_S: node.drain_s: expected `float` >= 0.0",
        "--polcy: unknown option",
        (
            "$MESHD_NAME: node.name: 'a b' is not a valid name: "
            "use 1 to 64 letters, digits, dots, hyphens or underscores"
        ),
        (
            "--bind: node.bind: 'nowhere' is not an address: 'nowhere' is not an IP address of this"
            " machine (write it like 192.168.1.17:6374 or [fd00::17]:6374)"
        ),
        (f"{first}: capability 1 ('a'): it needs exactly one of command = [...] and url = '...'"),
    ]


def test_the_message_itself_holds_all_faults():
    with pytest.raises(UsageError, match="2 faults") as caught:
        load({"slots": 9999, "queue": "x"})
    assert caught.value.message.count("\n") == 2
    with pytest.raises(UsageError, match="configuration is wrong: --slots: node"):
        load({"slots": 9999})


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ({"name": ".."}, "node.name"),
        ({"name": ""}, "node.name"),
        ({"mesh": "x" * 65}, "node.mesh"),
        ({"mesh": "a/b"}, "node.mesh"),
        ({"bind": "1.2.3.4:99999"}, "node.bind"),
        ({"advertise": "::"}, "node.advertise"),
        ({"join": ["lab-b", "lab b"]}, "node.join"),
        ({"profile": "moon"}, "node.profile"),
        ({"drain_s": float("nan")}, "node.drain_s"),
        ({"drain_s": float("inf")}, "node.drain_s"),
        ({"routing_policy": "best"}, "routing.policy"),
        ({"routing_weights": {"cpu": -1}}, "routing.weights"),
        ({"routing_weights": {"cpu": 0}}, "routing.weights"),
        ({"routing_weights": {"cpu": float("inf")}}, "routing.weights"),
        ({"limits_datagram_bytes_max": 1401}, "limits.datagram_bytes_max"),
        ({"loop": "trio"}, "node.loop"),
    ],
)
def test_values_out_of_bounds_are_faults_with_their_key(flags, path):
    (fault,) = faults(flags)
    assert fault.partition(": ")[2].startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MESHD_ROUTING_WEIGHTS", "cpu"),
        ("MESHD_ROUTING_WEIGHTS", "cpu=x"),
        ("MESHD_MDNS", "perhaps"),
        ("MESHD_SLOTS", "1.5"),
        ("MESHD_SLOTS", "9" * 5000),
        ("MESHD_DRAIN_S", "nan"),
    ],
)
def test_environment_texts_that_mean_nothing_are_faults(variable, text):
    (fault,) = faults(env={variable: text})
    assert fault.startswith(f"${variable}: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a = 1\n\xff\n", ":2: not UTF-8 text"),
        (b"a = \n", ":1:5: broken TOML: Invalid value"),
        (b"a = " + b"[" * 3000, ": broken TOML: nested too deeply"),
        (b'[node]\nname = "x', ": broken TOML: Unterminated string (at end of document)"),
        (b"#" * (FILE_BYTES_MAX + 1), f": larger than {FILE_BYTES_MAX} bytes"),
        (b"node = 1\n", ": node: must be a table, written [node]"),
        (b"capability = 1\n", ": capability: must be tables, each written [[capability]]"),
        (b"[node]\nslots = true\n", ": node.slots: expected `int`, got `bool`"),
    ],
)
def test_broken_files_say_where(tmp_path, content, expected):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    (fault,) = faults(paths=[path])
    assert fault == f"{path}{expected}"


@given(st.text(max_size=60))
def test_any_text_in_a_file_is_a_configuration_or_a_usage_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = str(path)
    try:
        load(paths=[path])
    except UsageError as error:
        message = error.message
    assert str(path) in message


def test_a_named_file_must_be_there_and_is_the_only_one(tmp_path):
    other = written(tmp_path / "other.toml", '[node]\nname = "other"\n')
    named = written(tmp_path / "named.toml", '[node]\nmesh = "named"\n')
    loaded = load({"config": named}, paths=[other])
    assert loaded.files == (named,)
    assert load(env={"MESHD_CONFIG": str(named)}).config.node.mesh == "named"
    assert faults({"config": tmp_path / "absent.toml"}) == [
        f"{tmp_path / 'absent.toml'}: there is no such file"
    ]


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    (fault,) = faults(paths=[tmp_path])
    assert "cannot be read" in fault


def test_files_are_searched_in_the_system_and_for_the_user(tmp_path, monkeypatch):
    system = written(tmp_path / "system.toml", "[node]\nslots = 3\n")
    monkeypatch.setattr(paths, "SYSTEM_CONFIG", system)
    (tmp_path / "meshd").mkdir()
    written(tmp_path / "meshd" / "meshd.toml", "[node]\nqueue = 5\n")
    loaded = load_config({}, {"HOME": "/h", "XDG_CONFIG_HOME": str(tmp_path)}, hostname="x")
    assert (loaded.config.node.slots, loaded.config.node.queue) == (3, 5)
    assert search_paths({"HOME": "/h"})[1] == Path("/h/.config/meshd/meshd.toml")


def test_paths_in_a_file_are_relative_to_it_and_the_tilde_is_home(tmp_path):
    path = written(tmp_path / "c.toml", '[node]\npeers_file = "peers"\nstate_dir = "~/state"\n')
    node = load(paths=[path]).config.node
    assert node.peers_file == str(tmp_path / "peers")
    assert node.state_dir == "/h/state"
    path.write_text("[node]\npeers_file = 3\n")
    assert "expected `str`" in faults(paths=[path])[0]
    assert load({"peers_file": Path("here")}).config.node.peers_file == "here"


def test_capability_tables_are_handed_on_as_they_are(tmp_path):
    path = written(tmp_path / "c.toml", '[[capability]]\nname = "a"\ncommand = ["b"]\n')
    assert load(paths=[path]).config.capability == ({"name": "a", "command": ["b"]},)


def test_a_capability_file_in_a_file_is_relative_to_that_file(tmp_path):
    path = written(tmp_path / "c.toml", '[node]\ncapability = ["a.toml", "m:a", "/b.toml"]\n')
    assert load(paths=[path]).config.node.capability == (
        f"{tmp_path}/a.toml", "m:a", "/b.toml"
    )  # fmt: skip


def test_what_routing_would_refuse_is_refused_here():
    assert faults({"routing_weights": {"cost": 0.5}}) == [
        "--routing-weights: routing.weights: unknown weight cost (known: cpu, latency, mem)"
    ]
    assert "<= 16" in faults({"routing_hops_max": 17})[0]
    routing = load().config.routing
    assert (routing.hops_max, routing.weights) == (8, {"cpu": 0.7, "latency": 0.3})
    assert set(POLICIES) == set(routing_policies.POLICIES) - {"pinned"}


def test_a_section_within_a_section_is_set_by_file_variable_and_flag(tmp_path):
    path = written(
        tmp_path / "c.toml",
        '[routing]\npolicy = "random"\n[routing.breaker]\nfailures = 5\nsuccess_min = 1\n',
    )
    loaded = load(
        {"routing_breaker_window": 30}, {"MESHD_ROUTING_BREAKER_RATE_OPEN_S": "7.5"}, [path]
    )
    breaker = loaded.config.routing.breaker
    assert loaded.config.routing.policy == "random"
    assert (breaker.failures, breaker.success_min, breaker.window) == (5, 1.0, 30)
    assert (breaker.rate_open_s, breaker.samples_min) == (7.5, 10)
    assert loaded.origins["routing.breaker.failures"] == str(path)
    assert load().config.routing.breaker == BreakerSettings()


def test_every_fault_of_a_section_within_a_section_is_listed(tmp_path):
    path = written(
        tmp_path / "c.toml",
        "[routing.breaker]\nfailure = 5\nfailures = 0\nwindow = 5\nsuccess_min = nan\n",
    )
    found = faults({"routing_breaker_open_s_max": 1.0}, paths=[path])
    assert found == [
        f"{path}: routing.breaker.failure: unknown key; did you mean failures?",
        f"{path}: routing.breaker.failures: expected `int` >= 1",
        f"{path}: routing.breaker.success_min: expected `float` >= 0.0",
        "default: routing.breaker.samples_min: must be at most window, or the share never counts",
        (
            "--routing-breaker-open-s-max: routing.breaker.open_s_max: must be at least"
            " failures_open_s, rate_open_s, capability_open_s"
        ),
    ]
    path.write_text("[routing]\nbreaker = 1\n")
    assert faults(paths=[path]) == [
        f"{path}: routing.breaker: must be a table, written [routing.breaker]"
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"profile": "lam"}, "'lam' is none of lan, wan, local; did you mean lan?"),
        ({"routing_policy": "least-loaded"}, "did you mean least_loaded?"),
        ({"loop": 5}, "expected"),
    ],
)
def test_a_wrong_word_is_answered_by_the_right_ones(flags, said):
    assert said in faults(flags)[0]


@pytest.mark.parametrize(
    ("host", "name"),
    [("lab a!.x", "lab-a"), ("", "node"), ("...", "node"), ("ü", "node"), ("x" * 99, "x" * 64)],
)
def test_the_default_name_is_the_hosts_made_valid(host, name):
    assert load_config({}, {"HOME": "/h"}, [], hostname=host).config.node.name == name


def test_state_lives_where_the_system_keeps_state(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    where = default_state_dir({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "m", "n")
    assert where == Path("/s/meshd/m/n")
    where = default_state_dir({"XDG_STATE_HOME": "s", "HOME": "/h"}, "m", "n")
    assert where == Path("/h/.local/state/meshd/m/n")
    monkeypatch.setattr(sys, "platform", "darwin")
    where = default_state_dir({"HOME": "/h"}, "m", "n")
    assert where == Path("/h/Library/Application Support/meshd/m/n")


def test_without_arguments_the_process_environment_is_used(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "MESHD_NAME", "from-env")
    assert load_config({}, paths=[]).config.node.name == "from-env"


@pytest.mark.parametrize("size", [DATAGRAM_BYTES_MIN, DATAGRAM_BYTES_MAX])
def test_every_datagram_size_that_is_allowed_is_one_that_gossip_takes(size):
    loaded = load_config({"limits_datagram_bytes_max": size}, {}, [], hostname="lab-a")
    assert GossipConfig(datagram_bytes_max=loaded.config.limits.datagram_bytes_max)
