"""The policy file and the tables of capabilities: layers, faults, and what is shown of them."""

import tomllib
from pathlib import Path

import pytest
import repository
from hypothesis import given
from hypothesis import strategies as st

from meshd.config import load_config
from meshd.daemon.routing_watch import changes
from meshd.daemon.settings import routing_settings
from meshd.errors import UsageError
from meshd.routing.policy_file import is_policy_file, read_policy_file
from meshd.routing.rules import KINDS, Rules
from meshd.routing.settings import BreakerSettings, Overrides, RoutingSettings

EXAMPLE = repository.ROOT / "examples" / "policies.toml"


def load(flags=None, env=None, paths=()):
    return load_config({**(flags or {})}, {"HOME": "/h", **(env or {})}, list(paths), hostname="h")


def faults(*arguments, **keywords):
    with pytest.raises(UsageError) as caught:
        load(*arguments, **keywords)
    return caught.value.data["faults"]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_policy_file_wins_over_the_configuration_and_gives_way_to_variables_and_flags(write):
    policies = write(
        "p.toml",
        "[default]\nretries = 1\nsample = 3\npolicy = 'random'\n"
        "[capability.a]\nretries = 0\nhedge = false\n",
    )
    config = write(
        "c.toml",
        "[routing]\npolicy_file = 'p.toml'\nretries = 2\ndeadline_s = 5\n"
        "[routing.capability.a]\nretries = 2\npolicy = 'nearest'\n"
        "[routing.capability.'b.*']\ncost_usd_max = 0.5\n",
    )
    loaded = load({"routing_policy": "cheapest"}, {"MESHD_ROUTING_SAMPLE": "2"}, [config])
    routing = loaded.config.routing
    assert (routing.retries, routing.sample, routing.policy) == (1, 2, "cheapest")
    assert routing.deadline_s == 5.0
    assert routing.capability == {
        "a": Overrides(retries=0, hedge=False, policy="nearest"),
        "b.*": Overrides(cost_usd_max=0.5),
    }
    assert loaded.files == (config, policies)
    assert {k: v for k, v in loaded.origins.items() if k.startswith("routing.capability.")} == {
        "routing.capability.a.retries": str(policies),
        "routing.capability.a.hedge": str(policies),
        "routing.capability.a.policy": str(config),
        "routing.capability.b.*.cost_usd_max": str(config),
    }
    held = Rules(routing_settings(routing))
    assert (held.of("a").retries, held.of("b.c").retries) == (0, 1)


def test_numbers_of_circuits_stand_in_both_files_and_are_laid_key_by_key(write):
    policies = write(
        "p.toml",
        "[default.breaker]\nfailures = 4\n[capability.a.breaker]\nfailures = 9\n",
    )
    config = write(
        "c.toml",
        "[routing]\npolicy_file = 'p.toml'\n[routing.breaker]\nfailures = 2\nwindow = 30\n"
        "[routing.capability.a.breaker]\nfailures = 1\nrate_open_s = 5\n",
    )
    loaded = load(paths=[config])
    assert loaded.origins["routing.breaker.failures"] == str(policies)
    rules = Rules(routing_settings(loaded.config.routing))
    assert rules.default.breaker == BreakerSettings(failures=4, window=30)
    assert rules.of("a").breaker == BreakerSettings(failures=9, window=30, rate_open_s=5)
    policies.write_text(
        "[default.breaker]\nfailurs = 4\nsamples_min = 40\n[capability.a.breaker]\nwindow = 5\n"
    )
    assert faults(paths=[config]) == [
        f"{policies}: default.breaker.failurs: unknown key; did you mean failures?",
        (
            f"{policies}: default.breaker.samples_min: must be at most window, or the share never"
            " counts"
        ),
        (
            f"{policies}: capability.a.breaker: samples_min must be at most window, or the share"
            " never counts"
        ),
    ]


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_a_flag_or_a_variable_names_the_policy_file(write, way):
    path = write("p.toml", "[capability.a]\nretries = 0\n")
    other = write("c.toml", "[routing]\npolicy_file = 'missing.toml'\n")
    flags = {"routing_policy_file": path} if way == "flag" else {}
    env = {} if flags else {"MESHD_ROUTING_POLICY_FILE": str(path)}
    routing = load(flags, env, [other]).config.routing
    assert (routing.policy_file, routing.capability["a"].retries) == (str(path), 0)


def test_a_program_gives_tables_as_a_mapping_or_as_values():
    given = {"a": {"retries": 0}, "b*": Overrides(hedge=False)}
    routing = load({"routing_capability": given, "routing_retries": 2}).config.routing
    assert routing.capability == {"a": Overrides(retries=0), "b*": Overrides(hedge=False)}
    assert faults({"routing_capability": {"a": {"retries": 9}}}) == [
        "--routing-capability: routing.capability.a.retries: expected `int` <= 3"
    ]
    assert "a: must be a table" in faults(env={"MESHD_ROUTING_CAPABILITY": "a=b"})[0]


def test_one_error_lists_every_fault_of_both_files_as_they_are_written_there(write):
    policies = write(
        "p.toml",
        "[default]\nretires = 1\nsample = 9\nweights = {cost = 1}\nhops_max = 3\n"
        "tiers = {fallback = 0.99}\n"
        "[capability.a]\npolcy = 'random'\ntiers = {least = 0.99}\n"
        "[capability.'a b']\n[defaults]\n",
    )
    config = write(
        "c.toml",
        "[routing]\npolicy_file = 'p.toml'\n[routing.capability.b]\nretries = 4\n"
        "[routing.capability.c]\ntiers = {fallback = 0.99}\n",
    )
    found = [fault.partition(" (")[0] for fault in faults(paths=[config])]
    assert found == [
        f"{config}: routing.capability.b.retries: expected `int` <= 3",
        f"{policies}: defaults: unknown section; did you mean default?",
        f"{policies}: default.retires: unknown key; did you mean retries?",
        f"{policies}: default.sample: expected `int` <= 4",
        f"{policies}: default.weights: unknown weight cost",
        f"{policies}: default.hops_max: unknown key; did you mean cost_usd_max?",
        f"{policies}: capability.a.polcy: unknown key; did you mean policy?",
        (
            f"{policies}: capability.a b: is neither a name nor the beginning of one and *; names"
            " have 1 to 64 letters, digits, dots, hyphens or underscores"
        ),
        f"{policies}: default.tiers: preferred",
        f"{config}: routing.capability.c.tiers: preferred",
        f"{policies}: capability.a.tiers: preferred",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[default\n", ":1:9: broken TOML: Expected ']' at the end of a table declaration"),
        ("default = 1\n", ": default: must be a table, written [default]"),
        ("capability = 1\n", ": capability: must be tables, one for each capability"),
        ("[[capability]]\n", ": capability: must be tables, one for each capability"),
        ("[capability]\na = 1\n", ": capability.a: must be a table"),
    ],
)
def test_a_file_of_another_form_is_a_fault(write, content, fault):
    path = write("p.toml", content)
    assert faults({"routing_policy_file": path}) == [f"{path}{fault}"]


def test_a_program_may_name_its_own_policies_wherever_others_are_named(write):
    path = write(
        "p.toml", "[default]\npolicy = 'mine'\n[capability.a]\npolicy = 'yours'\n"
        "[capability.b]\npolicy = 'nearest'\n"
    )  # fmt: skip
    flags = {"routing_policy_file": path, "routing_capability": {"c": {"policy": "mine"}}}
    first, second, third = faults(flags)
    assert first.startswith(f"{path}: default.policy: 'mine' is none of")
    assert second.startswith(f"{path}: capability.a.policy: 'yours' is none of")
    assert third.startswith("--routing-capability: routing.capability.c.policy: 'mine' is none of")
    routing = load_config(flags, {}, (), hostname="h", policies=("mine", "yours")).config.routing
    assert routing.policy == "mine"
    assert {key: table.policy for key, table in routing.capability.items()} == {
        "a": "yours", "b": "nearest", "c": "mine"
    }  # fmt: skip


def test_a_policy_file_that_is_missing_or_no_file_is_a_fault(tmp_path):
    missing = tmp_path / "none.toml"
    assert faults({"routing_policy_file": missing}) == [f"{missing}: there is no such file"]
    assert "cannot be read" in faults({"routing_policy_file": tmp_path})[0]
    assert not is_policy_file(missing)


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        ("[default]\n", True),
        ("[capability.a]\n", True),
        ("[default]\n[capability.a]\n", True),
        ("[[capability]]\nname = 'a'\n", False),
        ("[default]\n[node]\n", False),
        ("", False),
        ("[default", False),
    ],
)
def test_the_form_of_a_file_tells_which_it_is(write, content, is_one):
    assert is_policy_file(write("p.toml", content)) is is_one


@given(st.text(max_size=60) | st.sampled_from(["[default]\n", "[capability.a]\n"]))
def test_any_text_is_a_policy_file_or_has_faults(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any-policies.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = read_policy_file(path)
    assert all(fault.startswith(":") for fault in found.faults)


def test_the_tilde_is_home(tmp_path):
    (tmp_path / "p.toml").write_text("[default]\nretries = 1\n")
    loaded = load({"routing_policy_file": "~/p.toml"}, {"HOME": str(tmp_path)})
    assert loaded.config.routing.retries == 1
    assert loaded.config.routing.policy_file == f"{tmp_path}/p.toml"


def test_the_example_is_right_and_does_what_its_comments_say():
    routing = load({"routing_policy_file": EXAMPLE}).config.routing
    rules = Rules(routing_settings(routing))
    assert rules.default.retries == RoutingSettings().retries
    translate = rules.of("translate")
    assert translate.tiers == {"preferred": 0.98, "fallback": 0.92, "least": 0.7}
    assert (translate.policy, translate.fallback) == ("quality", ("translate-draft",))
    charge = rules.of("charge-card")
    assert (charge.retries, charge.is_hedging, charge.breaker.failures) == (0, False, 1)
    assert rules.of("image.scale").weights == {"cpu": 0.5, "mem": 0.3, "latency": 0.2}
    assert (rules.of("image.thumbnail").policy, rules.of("image").policy) == ("nearest", "adaptive")
    written = tomllib.loads(EXAMPLE.read_text())
    shown = {key for table in written["capability"].values() for key in table} | set(
        written["default"]
    )
    assert set(KINDS) - shown == {"sample", "shares"}, "the example shows the others"


def test_changes_name_the_keys_that_differ():
    old = load({"routing_capability": {"a": {"retries": 1}, "b": {"retries": 1}}}).config.routing
    new = load(
        {"routing_capability": {"a": {"retries": 1}, "c": {"hedge": False}}, "routing_sample": 2}
    ).config.routing
    assert changes(old, new) == ("sample", "capability.b", "capability.c")
    assert changes(old, old) == ()


def test_paths_of_policy_files_in_a_configuration_are_relative_to_it(write):
    write("p.toml", "[default]\nretries = 1\n")
    config = write("c.toml", "[routing]\npolicy_file = 'p.toml'\n")
    assert Path(load(paths=[config]).config.routing.policy_file) == config.parent / "p.toml"
