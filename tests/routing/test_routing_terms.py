"""Ranges of versions, conditions on attributes, and what else a request may ask for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import offer, peer

from meshd.errors import UsageError
from meshd.routing.matchers import CONDITIONS_MAX, parse_matchers
from meshd.routing.request import choices_of, request_from_params
from meshd.routing.terms import NO_TERMS, is_too_expensive, parse_terms, within
from meshd.routing.versions import version_fault, version_matches

HELD = (("warehouse", ("A", "B")), ("memory", ("64",)), ("beta", ("no",)))


def matches(text, attributes=HELD, labels=None):
    (matcher,), faults = parse_matchers([text])
    assert not faults
    return matcher.matches(attributes, labels or {})


@pytest.mark.parametrize(
    ("wanted", "takes", "leaves"),
    [
        ("", ["1.0.0", "odd"], []),
        ("1", ["1", "1.4.2"], ["11.4.2", "2"]),
        ("1.4.2", ["1.4.2"], ["1.4.20", "1.4"]),
        ("^1.2", ["1.2.0", "1.9", "1.2.0+b7"], ["2.0.0", "1.1.9", "odd", "2.0.0-rc1"]),
        ("^0.2", ["0.2.9"], ["0.3.0"]),
        ("~1.2", ["1.2.9"], ["1.3.0"]),
        (">= 1, < 2", ["1.0.0", "1.99.0", "1"], ["2.0.0", "0.9.9"]),
        ("==1.4.2", ["1.4.2"], ["1.4.3"]),
        ("!=1.4.2", ["1.4.3"], ["1.4.2"]),
        ("1.*", ["1.4.3"], ["2.0.0"]),
        ("*", ["1.4.3"], ["odd"]),
        ("^nonsense", [], ["1.0.0"]),
    ],
)
def test_a_version_is_taken_whole_by_its_parts_or_in_a_range(wanted, takes, leaves):
    assert [v for v in takes + leaves if version_matches(v, wanted)] == takes


numbers = st.integers(0, 3)


@given(numbers, numbers, numbers, numbers, numbers)
def test_a_caret_takes_what_does_not_break_and_a_tilde_less(major, minor, x, y, z):
    offered, wanted = f"{x}.{y}.{z}", f"{major}.{minor}"
    caret = (x, y) >= (major, minor) and (x == major if major else (x, y) == (major, minor))
    if major or minor:
        assert version_matches(offered, f"^{wanted}") == caret
    assert version_matches(offered, f"~{wanted}") == ((x, y) == (major, minor))
    assert version_matches(offered, f">={wanted}") == ((x, y) >= (major, minor))


def test_a_wanted_version_that_is_no_range_says_how_to_write_one():
    assert "write ^1.2" in version_fault(">=x")
    assert "longer" in version_fault("1" * 101)
    assert version_fault("^1.2") == version_fault("1.2") == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("warehouse in {A, C}", True),
        ("warehouse in {C}", False),
        ("warehouse not in {C}", True),
        ("warehouse not in {A}", False),
        ("warehouse = A", True),
        ("warehouse=='B'", True),
        ("warehouse = a", False),
        ("warehouse != C", True),
        ("warehouse != A", False),
        ("colour != red", True),
        ("colour = red", False),
        ("memory >= 64", True),
        ("memory > 64", False),
        ("memory > 63.5", True),
        ("memory <= 64", True),
        ("memory < 64", False),
        ("memory < 65", True),
        ("warehouse >= 1", False),
        ("colour >= 1", False),
        ("warehouse", True),
        ("colour", False),
        ("beta", False),
        ("not colour", True),
        ("!beta", True),
        ("not warehouse", False),
        ("gpu = a100", True),
        ("gpu", True),
    ],
)
def test_a_condition_holds_or_not(text, told):
    assert matches(text, labels={"gpu": "a100"}) is told


def test_an_attribute_goes_before_a_label_of_its_name():
    assert not matches("warehouse = C", labels={"warehouse": "C"})


def test_conditions_joined_by_and_are_several():
    found, faults = parse_matchers(["warehouse = A and memory >= 8", "gpu"])
    assert [each.text for each in found] == ["warehouse = A", "memory >= 8", "gpu"]
    assert not faults


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write name = value"),
        ("a b c", "write name = value"),
        ("warehouse in {}", "braces hold"),
        ("warehouse in {A,}", "braces hold"),
        ("warehouse in {" + ",".join(map(str, range(65))) + "}", "braces hold"),
        ("memory >= much", "'much' is no number"),
        ("memory >= inf", "is no number"),
        ("warehouse = {A}", "write name = value"),
        ("warehouse = ''", "write name = value"),
        ("x" * 401, "longer than 400"),
    ],
)
def test_a_condition_that_is_none_says_why(text, said):
    found, (fault,) = parse_matchers([text])
    assert found == ()
    assert said in fault


def test_there_is_a_bound_of_conditions():
    _, faults = parse_matchers(["a"] * (CONDITIONS_MAX + 1))
    assert faults == ["where: more than 16 conditions"]
    assert len(parse_matchers(["a and b"] * (CONDITIONS_MAX // 2))[0]) == CONDITIONS_MAX
    found, faults = parse_matchers(["a"] * (CONDITIONS_MAX - 1) + ["a and b"])
    assert (found, faults) == ((), ["where: more than 16 conditions"])


@pytest.mark.parametrize("texts", [["?" * 400] * 500, ["? and " * 60] * 16, ["?"] * 16])
def test_not_more_faults_of_conditions_are_told_than_there_may_be_conditions(texts):
    found, faults = parse_matchers(texts)
    assert found == ()
    assert len(faults) <= CONDITIONS_MAX + 1


def test_of_too_many_conditions_none_is_read():
    class Unread(list):
        def __iter__(self):
            raise AssertionError("they were read")

    found, faults = parse_matchers(Unread(["a"] * (CONDITIONS_MAX + 1)))
    assert (found, faults) == ((), ["where: more than 16 conditions"])


def test_conditions_beyond_the_longest_text_are_not_cut_off_unseen():
    found, (fault,) = parse_matchers(["a and " * 100 + "b"])
    assert found == ()
    assert "longer than 400" in fault


names = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True)
words = names.filter(lambda word: word not in {"and", "not", "in"})
conditions = st.one_of(
    words,
    st.builds("not {}".format, words),
    st.builds("{} {} {}".format, words, st.sampled_from(["=", "!="]), words),
    st.builds("{} {} {{{}, {}}}".format, words, st.sampled_from(["in", "not in"]), words, words),
    st.builds("{} >= {}".format, words, st.integers(0, 99)),
)
attributes = st.lists(st.tuples(words, st.lists(words, max_size=3).map(tuple)), max_size=3)


@given(st.lists(conditions, max_size=4), attributes.map(tuple))
def test_a_condition_is_read_again_as_it_is_told(texts, held):
    found, faults = parse_matchers(texts)
    assert not faults
    assert parse_matchers([each.text for each in found])[0] == found
    for each in found:
        assert each.matches(held, {}) in {True, False}


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_a_fault(text):
    found, faults = parse_matchers([text])
    assert found or faults


def test_every_fault_of_a_request_is_told_at_once():
    with pytest.raises(UsageError) as caught:
        request_from_params({
            "capability": "echo", "version": "^x", "region": "e u", "difficulty": 2.0,
            "labels": {"a b": "c", **{f"l{n}": "x" for n in range(17)}}, "where": "a b c",
            "cost_usd_max": math.nan, "affinity": "k" * 129, "offers": 9,
        })  # fmt: skip
    for words in (
        "where 'a b c'", "region 'e u'", "at most 16 labels", "difficulty must",
        "cost_usd_max must", "version '^x'", "affinity is longer", "offers must",
    ):  # fmt: skip
        assert words in caught.value.message


def test_labels_that_are_no_names_are_told_while_there_are_not_too_many():
    _, faults = parse_terms(labels={"a b": "c", "a": "d"})
    assert faults == ["label a b=c is not two valid names"]
    found, faults = parse_terms(labels={f"l {n}": "x" for n in range(500)})
    assert (found.labels, faults) == ((), ["at most 16 labels"])


ASKED = {
    "version": "^1.2", "tags": ["t"], "region": "eu", "labels": {"gpu": "a100"},
    "where": ["warehouse in {A, B}", "gpu"], "difficulty": 0.0, "cost_usd_max": 0.5,
    "affinity": "user-7", "policy": "sticky", "offers": 2,
}  # fmt: skip


def test_a_request_can_be_made_again_of_what_it_asked_for():
    request = request_from_params({"capability": "echo", **ASKED})
    assert choices_of(request) == ASKED
    assert choices_of(request_from_params({"capability": "echo"})) == {}


def test_a_need_may_hold_what_is_asked_of_the_candidates():
    need = {"capability": "echo", "where": "gpu", "region": "eu", "difficulty": 0.5}
    terms = request_from_params({"need": need}).terms
    assert (terms.region, terms.difficulty, terms.matchers[0].name) == ("eu", 0.5, "gpu")
    assert request_from_params({"capability": "echo", "where": ""}).terms is None


def test_what_is_left_to_spend_bounds_the_cost_of_a_call():
    bounded, _ = parse_terms(cost_usd_max=0.5)
    assert within(NO_TERMS, math.inf, {}) is NO_TERMS
    assert within(bounded, math.inf, {}) is bounded
    assert within(bounded, 0.2, {}).cost_usd_max == 0.2
    assert within(NO_TERMS, 0.2, {}).cost_usd_max == 0.2
    there, priced = peer(1), offer(cost_usd_per_unit=0.1)
    assert not is_too_expensive(within(bounded, 1.0, {there.node: 5.0}), there, priced)
    assert is_too_expensive(within(bounded, 1.0, {there.node: 6.0}), there, priced)
    assert not is_too_expensive(within(bounded, 1.0, {there.node: 6.0}), peer(2), priced)
    assert peer(1).labels == {}
