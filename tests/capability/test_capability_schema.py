"""Functions described as JSON Schema, and JSON bound to their parameters."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.capability.schema import (
    FAULT_CHARS_MAX,
    PARAMETERS_MAX,
    describe,
    to_json,
)
from meshd.errors import Code, PeerError, UsageError


@dataclasses.dataclass
class Box:
    width: int
    label: str = ""


class Row(TypedDict):
    key: str


class Point(msgspec.Struct):
    x: float


def mixed(
    text: str,
    limit: int = 5,
    mode: Literal["fast", "exact"] = "fast",
    box: Box | None = None,
    rows: list[Row] = [],  # noqa: B006 - never changed; a default that JSON can say
) -> dict[str, int]:
    return {"n": len(text) * limit}


def test_schema_lists_parameters_defaults_and_components():
    schema = describe(mixed)
    assert schema.input_schema["required"] == ["text"]
    assert schema.input_schema["additionalProperties"] is False
    assert schema.input_schema["properties"]["limit"] == {"type": "integer", "default": 5}
    assert set(schema.input_schema["$defs"]) == {"Box", "Row"}
    assert schema.output_schema == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_schema_is_one_that_a_validator_takes():
    validator = jsonschema_rs.validator_for(describe(mixed).input_schema)
    assert validator.is_valid({"text": "a", "box": {"width": 1}, "rows": [{"key": "k"}]})
    assert not validator.is_valid({"text": "a", "box": {"label": "x"}})


def test_values_are_converted_to_their_types():
    found = describe(mixed).arguments({"text": "a", "box": {"width": 2}, "rows": [{"key": "k"}]})
    assert found == {"text": "a", "box": Box(2), "rows": [{"key": "k"}]}


def test_every_fault_is_named_with_what_is_accepted():
    with pytest.raises(UsageError) as caught:
        describe(mixed, "mixer").arguments({"limit": "3", "boxx": {}, "mode": "slow"})
    message = caught.value.message
    assert caught.value.code == Code.INVALID_PARAMS
    assert caught.value.definite
    assert "missing parameter 'text'" in message
    assert "'limit': Expected `int`, got `str`" in message
    assert "unknown parameter 'boxx' (did you mean 'box'?)" in message
    assert "'mode'" in message
    assert "text (string, required)" in caught.value.hint
    assert "mode (one of 'exact', 'fast', optional)" in caught.value.hint
    assert "box (Box or null, optional)" in caught.value.hint


def one(message: str) -> str:
    return message


@pytest.mark.parametrize("value", ["hi", {"text": "hi"}, {"message": "hi"}])
def test_the_only_parameter_takes_a_bare_value_and_the_plain_form(value):
    assert describe(one).arguments(value) == {"message": "hi"}


def test_the_only_required_parameter_takes_a_bare_value():
    assert describe(mixed).arguments("hi") == {"text": "hi"}


def test_a_parameter_named_text_is_no_plain_form():
    def shout(text: str) -> str:
        return text

    assert describe(shout).arguments({"text": "hi"}) == {"text": "hi"}


def test_open_functions_keep_text_as_a_name():
    def free(message: str = "", **more: int) -> None: ...

    assert describe(free).arguments({"text": 1, "message": "m"}) == {"message": "m", "text": 1}
    schema = describe(free)
    assert schema.input_schema["additionalProperties"] == {"type": "integer"}
    assert "further names freely" in schema.accepts()
    with pytest.raises(UsageError, match="'text'"):
        describe(free).arguments({"text": "no number"})


def test_untyped_open_functions_take_anything():
    def free(**more): ...

    assert describe(free).input_schema["additionalProperties"] is True
    with pytest.raises(UsageError, match="unknown parameter 3"):
        describe(free).arguments({3: 4})


def test_functions_without_parameters_take_null_and_nothing_else():
    def now() -> None: ...

    assert describe(now).arguments(None) == {}
    assert describe(now).arguments({}) == {}
    assert describe(now).output_schema == {"type": "null"}
    with pytest.raises(UsageError, match="must be a JSON object") as caught:
        describe(now).arguments("x")
    assert caught.value.hint == "it takes no parameters"


def test_null_goes_to_a_required_parameter():
    def maybe(value: int | None) -> None: ...

    assert describe(maybe).arguments(None) == {"value": None}


def test_a_default_of_none_allows_null():
    def maybe(limit: int = None) -> None: ...  # noqa: RUF013 - the habit that is allowed for

    assert describe(maybe).arguments({"limit": None}) == {"limit": None}


def test_bound_methods_partials_and_callable_objects_are_functions():
    class Tool:
        def run(self, text: str) -> str:
            return text

        def __call__(self, number: int) -> int:
            return number

    assert describe(Tool().run).arguments("a") == {"text": "a"}
    assert describe(Tool()).arguments(3) == {"number": 3}
    assert describe(functools.partial(mixed, limit=2)).arguments({"text": "a"}) == {"text": "a"}


def test_wrapped_functions_keep_their_own_signature():
    @functools.wraps(one)
    def wrapper(*args, **kwargs):
        return one(*args, **kwargs)

    assert describe(wrapper).arguments("a") == {"message": "a"}


def test_constraints_of_annotated_types_hold():
    def small(n: Annotated[int, msgspec.Meta(le=3)]) -> None: ...

    with pytest.raises(UsageError, match="<= 3"):
        describe(small).arguments({"n": 4})


def test_paths_are_text_in_json():
    def read(file: Path = Path("a")) -> Path:
        return file

    schema = describe(read)
    assert schema.input_schema["properties"]["file"] == {"type": "string", "default": "a"}
    assert schema.output_schema == {"type": "string"}
    assert schema.arguments("b/c") == {"file": Path("b/c")}
    assert to_json(Path("b/c"), "read") == "b/c"
    with pytest.raises(UsageError, match="Expected `P"):
        schema.arguments(3)


def test_defaults_that_json_cannot_say_are_left_out():
    def odd(value: Any = object()) -> None: ...  # noqa: B008 - what is tested

    assert describe(odd).input_schema["properties"]["value"] == {}


def test_unknown_return_types_are_no_fault():
    def odd() -> object: ...

    class Odd: ...

    def odder() -> Odd: ...

    assert describe(odder).output_schema == {}
    assert describe(odd).output_schema == {}


def test_return_types_with_components_carry_them():
    def make() -> Box: ...

    assert "Box" in describe(make).output_schema["$defs"]


class Strange: ...


def positional(*things: int) -> None: ...


def slashed(a: int, /) -> None: ...


def strange(ok: int, thing: Strange) -> None: ...


def two_structs(thing: Point | Box | Row) -> None: ...


def unreadable(thing: "Nowhere") -> None: ...  # noqa: F821 - what is tested


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (positional, r"takes \*things"),
        (slashed, "'a' cannot be passed by name"),
        (strange, "type of parameter 'thing' has no JSON form"),
        (two_structs, "type of parameter 'thing' has no JSON form"),
        (unreadable, "type hints cannot be read"),
        (dict, "no signature"),
    ],
)
def test_functions_that_json_cannot_call_are_refused(function, words):
    with pytest.raises(UsageError, match=words):
        describe(function)


def test_parameters_are_bounded():
    source = f"def many({', '.join(f'a{i}' for i in range(PARAMETERS_MAX + 1))}): ..."
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - our own text
    with pytest.raises(UsageError, match="more than"):
        describe(names["many"])


def test_long_names_are_cut_in_messages():
    with pytest.raises(UsageError) as caught:
        describe(one).arguments({"x" * 10_000: 1, "message": "m"})
    assert len(caught.value.message) < 3 * FAULT_CHARS_MAX


def test_results_become_json():
    assert to_json({"box": Box(1), 2: {"set"}, "p": Point(1.0)}, "f") == {
        "box": {"width": 1, "label": ""},
        "2": ["set"],
        "p": {"x": 1.0},
    }


@pytest.mark.parametrize("value", [Strange(), {(1, 2): 3}])
def test_results_that_are_no_json_are_an_indefinite_error(value):
    with pytest.raises(PeerError, match="not JSON") as caught:
        to_json(value, "f")
    assert not caught.value.definite


def test_results_that_contain_themselves_are_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PeerError, match="not JSON"):
        to_json(endless, "f")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def attempt(function, value: Any) -> Any:
    try:
        return describe(function).arguments(value)
    except UsageError as error:
        return error


@given(st.dictionaries(st.sampled_from(["text", "limit", "mode", "box", "rows", "x"]), JSON))
def test_binding_agrees_with_the_schema(value):
    validator = jsonschema_rs.validator_for(describe(mixed).input_schema)
    found = attempt(mixed, value)
    if isinstance(found, UsageError):
        assert found.definite
        # A whole float is an integer to JSON Schema and not to us: the one way to be stricter.
        assert not validator.is_valid(value) or "float" in found.message
    else:
        assert validator.is_valid(value)
        assert set(found) == set(value)


@given(JSON)
def test_any_json_is_bound_or_refused_and_never_worse(value):
    found = attempt(one, value)
    if isinstance(found, UsageError):
        assert found.definite
    else:
        assert isinstance(found["message"], str)


class Word(str):
    """A text of a kind of its own."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        (int, 1, 1), (int, True, None), (int, 1.5, None), (float, 1, 1.0), (float, True, None),
        (bool, True, True), (bool, 1, None), (str, "x", "x"), (str, 1, None), (int, None, None),
    ],
)  # fmt: skip
def test_plain_values_are_taken_by_their_exact_type(kind, given, taken):
    def function(value):
        return value

    function.__annotations__ = {"value": kind}
    schema = describe(function)
    if taken is None:
        with pytest.raises(UsageError):
            schema.arguments({"value": given})
    else:
        found = schema.arguments({"value": given})["value"]
        assert found == taken
        assert type(found) is type(taken)


def test_a_text_of_a_kind_of_its_own_is_what_the_slow_way_makes_of_it():
    def function(value: str) -> str:
        return value

    assert describe(function).arguments({"value": Word("x")}) == {"value": "x"}


def test_a_plain_text_is_not_taken_for_another_parameter_where_one_is_called_so():
    def function(a: str, text: str = "x") -> str:
        return a + text

    with pytest.raises(UsageError, match="missing parameter 'a'"):
        describe(function).arguments({"text": "b"})
