"""What holds for each capability: total, the longest match, and the default untouched."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UsageError
from meshd.routing.request import DelegateRequest
from meshd.routing.rules import (
    KINDS,
    NAMES_KEPT,
    TABLES_MAX,
    Rules,
    completed,
    joined,
    key_for,
    laid_over,
    read_tables,
    tables_faults,
)
from meshd.routing.settings import (
    FALLBACKS_MAX,
    POLICY_NAMES,
    BreakerSettings,
    Overrides,
    RoutingSettings,
)

NAMES = st.text("ab.", min_size=1, max_size=5)
KEYS = NAMES | NAMES.map(lambda name: name + "*") | st.just("*")
TABLES = st.builds(
    Overrides,
    policy=st.none() | st.sampled_from(["random", "nearest"]),
    retries=st.none() | st.integers(0, 3),
    hedge=st.none() | st.booleans(),
    fallback=st.none() | st.tuples(NAMES),
    tiers=st.none() | st.just({"least": 0.5}),
    breaker=st.none() | st.just({"failures": 5}),
)
RULES = st.builds(RoutingSettings, by_capability=st.dictionaries(KEYS, TABLES, max_size=6))


def faults(given):
    return list(read_tables(given).faults)


@given(RULES, st.lists(NAMES, min_size=1))
def test_every_capability_has_settings_and_they_are_those_that_the_pure_rule_gives(settings, names):
    rules = Rules(settings)
    for name in names * 2:
        found = rules.of(name)
        key = key_for(settings.by_capability, name)
        assert found == (laid_over(settings, key) if key else settings)
        assert found is rules.of(name), "they are made once"


@given(RULES, NAMES)
def test_the_longest_fitting_key_holds_and_an_exact_name_before_all(settings, name):
    keys = settings.by_capability
    chosen = key_for(keys, name)
    fitting = [key for key in keys if key.endswith("*") and name.startswith(key[:-1])]
    if name in keys:
        assert chosen == name
    else:
        assert chosen == max(fitting, key=len, default="")
    assert Rules(settings).of(name).source == (f"capability {chosen}" if chosen else "default")


@given(RULES, NAMES)
def test_what_a_table_leaves_out_is_as_by_default_and_the_default_stays(settings, name):
    before = msgspec.json.encode(settings)
    found = Rules(settings).of(name)
    table = settings.by_capability.get(key_for(settings.by_capability, name))
    for key in KINDS:
        given_here = None if table is None else getattr(table, key)
        field = {"hedge": "is_hedging"}.get(key, key)
        if given_here is None:
            assert getattr(found, field) == getattr(settings, field)
        elif key == "tiers":
            assert found.tiers == {**settings.tiers, **given_here}
        elif key == "breaker":
            assert found.breaker == BreakerSettings(**given_here)
        else:
            assert getattr(found, field) == given_here
    assert msgspec.json.encode(settings) == before


def test_keys_that_are_no_text_are_unknown_ones():
    assert [key for key, _ in faults({"f*": {5: 1, "breaker": {7: 1}}})] == ["f*.5", "f*.breaker.7"]


def test_without_tables_the_default_itself_is_what_holds():
    settings = RoutingSettings()
    assert Rules(settings).of("anything") is settings
    assert Rules(RoutingSettings(by_capability={"a": Overrides()})).of("b").source == "default"


def test_more_names_than_are_remembered_are_still_answered():
    rules = Rules(RoutingSettings(by_capability={"a*": Overrides(retries=1)}))
    assert {rules.of(f"a{n}").retries for n in range(NAMES_KEPT + 10)} == {1}
    assert len(rules._found) == 10


def test_a_table_that_breaks_the_default_is_refused_by_its_name():
    by_capability = {"a": Overrides(tiers={"least": 0.93})}
    with pytest.raises(UsageError, match=r"^a: .*must go down"):
        Rules(RoutingSettings(by_capability=by_capability))


@pytest.mark.parametrize(
    ("fields", "fallback"),
    [
        ({}, ("b", "c")),
        ({"fallback": ("d",)}, ("d",)),
        ({"to": "lab-b"}, ()),
        ({"capability": "b"}, ("c",)),
    ],
)
def test_fallbacks_are_those_of_the_settings_where_the_caller_names_nothing(fields, fallback):
    settings = RoutingSettings(fallback=("b", "c"))
    request = DelegateRequest(**{"capability": "a", **fields})
    assert completed(request, settings).fallback == fallback
    assert completed(request, RoutingSettings()) is request


# Reading


def test_every_fault_of_every_table_is_told_with_its_path():
    found = faults({
        "a": {"polcy": "random", "retries": 4, "hedge": "yes"},
        "b.c": {"weights": {"cost": 1}, "shares": {"cost": 0.0}, "fallback": ["x y"]},
        "d": 5,
        "e f": {},
        "g*h": {},
        "text": {"translate": {"retries": 1}},
        "z": {"deadline_s": math.nan, "cost_usd_max": -1, "sample": 1},
        "y": {"breaker": {"failures": 0, "windw": 3, "breaker": {}}, "retries": 1},
        "x": {"breaker": 3},
    })  # fmt: skip
    assert [(path, fault.partition(";")[0]) for path, fault in found] == [
        ("a.polcy", "unknown key"),
        ("a.retries", "expected `int` <= 3"),
        ("a.hedge", "expected `bool`, got `str`"),
        ("b.c.weights", "unknown weight cost (known: cpu, latency, mem)"),
        ("b.c.shares", "at least one weight must be above 0"),
        ("b.c.fallback", "'x y' is not a valid name"),
        ("d", "must be a table"),
        ("e f", "is neither a name nor the beginning of one and *"),
        ("g*h", "is neither a name nor the beginning of one and *"),
        ("text.translate", "unknown key"),
        ("z.deadline_s", "expected `float` > 0.0"),
        ("z.cost_usd_max", "expected `float` >= 0.0"),
        ("z.sample", "expected `int` >= 2"),
        ("y.breaker.failures", "expected `int` >= 1"),
        ("y.breaker.windw", "unknown key"),
        ("y.breaker.breaker", "unknown key"),
        ("x.breaker", "expected `object`, got `int`"),
    ]
    said = dict(found)
    assert said["a.polcy"].endswith("did you mean policy?")
    assert said["y.breaker.windw"].endswith("did you mean window?")
    assert said["text.translate"].endswith('a name that has dots is quoted: "text.translate"')


def test_what_is_right_is_kept_beside_what_is_wrong():
    found = read_tables({"a": {"retries": 1, "hedge": 2}, "b": Overrides(retries=2)})
    assert found.values == {"a": {"retries": 1}, "b": {"retries": 2}}
    assert [path for path, _ in found.faults] == ["a.hedge"]


def test_what_are_no_tables_at_all_or_too_many_is_one_fault():
    assert faults([1]) == [("", "must be tables, one for each capability")]
    ((path, fault),) = faults({f"a{n}": {} for n in range(TABLES_MAX + 1)})
    assert (path, fault) == ("", "at most 1024 capabilities may have a table")
    ((path, _),) = faults({5: {}})
    assert path == "5"


def test_policies_are_known_or_the_programs_own():
    tables = {"a": Overrides(policy="best"), "b": Overrides(policy="mine"), "c": Overrides()}
    (fault, _) = tables_faults(tables, RoutingSettings())
    assert fault == ("a.policy", f"'best' is none of {', '.join(POLICY_NAMES)}")
    ((path, _),) = tables_faults(tables, RoutingSettings(), ["mine"])
    assert path == "a.policy"


def test_tiers_are_judged_over_those_of_the_default():
    tables = {"a": Overrides(tiers={"least": 0.8}), "b": Overrides(retries=1)}
    assert list(tables_faults(tables, RoutingSettings())) == []
    lower = RoutingSettings(tiers={"preferred": 0.9, "fallback": 0.75, "least": 0.5})
    ((path, fault),) = tables_faults(tables, lower)
    assert path == "a.tiers"
    assert "must go down" in fault


def test_numbers_of_circuits_are_laid_over_those_of_the_default_and_judged_there():
    tables = {"a": Overrides(breaker={"window": 12})}
    default = RoutingSettings(breaker=BreakerSettings(failures=5))
    assert list(tables_faults(tables, default)) == []
    rules = Rules(RoutingSettings(breaker=default.breaker, by_capability=tables))
    assert rules.of("a").breaker == BreakerSettings(failures=5, window=12)
    assert rules.of("b").breaker is default.breaker
    wanting = RoutingSettings(breaker=BreakerSettings(samples_min=15))
    ((path, fault),) = tables_faults(tables, wanting)
    assert (path, fault.partition(",")[0]) == ("a.breaker", "samples_min must be at most window")
    with pytest.raises(UsageError, match=r"^a: breaker: samples_min"):
        Rules(RoutingSettings(breaker=wanting.breaker, by_capability=tables))


def test_of_two_files_the_stronger_wins_key_by_key_within_circuits_too():
    table = joined(Overrides(retries=1, breaker={"failures": 2}), {"breaker": {"window": 30}})
    assert table == Overrides(retries=1, breaker={"failures": 2, "window": 30})
    assert joined(Overrides(retries=1), {"breaker": {"window": 30}}).breaker == {"window": 30}
    assert joined(table, {"retries": 2}).breaker == table.breaker


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KINDS, "x"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


TABLES_OF_ANYTHING = st.dictionaries(
    st.text(max_size=5),
    st.dictionaries(st.sampled_from([*KINDS, "x"]), JSON, max_size=3),
    max_size=3,
)


@given(TABLES_OF_ANYTHING | JSON)
def test_whatever_is_read_without_faults_is_in_range(given):
    found = read_tables(given)
    if found.faults:
        return
    tables = {name: Overrides(**values) for name, values in found.values.items()}
    if not list(tables_faults(tables, RoutingSettings())):
        Rules(RoutingSettings(by_capability=tables))


def test_settings_refuse_what_tables_would():
    for fields, said in (
        ({"retries": 4}, "retries must be 0..3"),
        ({"deadline_s": 601.0}, "deadline_s must be above 0, at most 600"),
        ({"cost_usd_max": math.nan}, "cost_usd_max must be 0 or more"),
        ({"fallback": ("a",) * (FALLBACKS_MAX + 1)}, "fallback: at most 4 capabilities"),
        ({"sample": 1}, "sample must be 2..4"),
    ):
        with pytest.raises(UsageError) as caught:
            RoutingSettings(**fields)
        assert said in caught.value.message
