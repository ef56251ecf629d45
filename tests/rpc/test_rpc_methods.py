"""The registry of methods: names, parameters, who may call."""

import msgspec
import pytest

from meshd.errors import Code, MeshError, UsageError
from meshd.rpc.methods import CallContext, Registry

NETWORK = CallContext(remote="192.0.2.1", local=False)
CONTROL = CallContext()


class AddParams(msgspec.Struct, forbid_unknown_fields=True):
    left: int
    right: int = 10


class Loose(msgspec.Struct):
    left: int


async def add(params, context):
    return params.left + params.right


async def raw(params, context):
    return params


async def stop(params, context):
    return "stopped"


@pytest.fixture
def registry():
    made = Registry()
    made.add("add", AddParams, add)
    made.add("raw", None, raw)
    made.add("stop", None, stop, control=True)
    return made


@pytest.mark.parametrize("params", [{"left": 1, "right": 2}, [1, 2]])
async def test_parameters_come_by_name_or_by_position(registry, params):
    assert await registry.call("add", params, NETWORK) == 3


async def test_left_out_parameters_take_their_defaults(registry):
    assert await registry.call("add", [1], NETWORK) == 11


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (None, "missing required field `left`"),
        ({"left": "1"}, "Expected `int`, got `str`"),
        ({"left": 1, "rigth": 2}, "unknown field `rigth`"),
        ([1, 2, 3], "3 positional values"),
        ({"left": True}, "got `bool`"),
        ({"left": 1.5}, "got `float`"),
    ],
)
async def test_parameters_that_do_not_fit_say_what_and_what_would(registry, params, says):
    with pytest.raises(UsageError, match=says) as caught:
        await registry.call("add", params, NETWORK)
    assert caught.value.code == Code.INVALID_PARAMS
    assert caught.value.hint == "add takes: left, right"
    assert caught.value.definite


@pytest.mark.parametrize("params", [None, [], {}, [1], {"a": 1}])
async def test_an_untyped_method_gets_parameters_as_they_came(registry, params):
    assert await registry.call("raw", params, NETWORK) == params


@pytest.mark.parametrize(
    "name", ["", "nope", "_add", "__class__", "__init__", "rpc.add", "_entries", "ADD", "é" * 99]
)
async def test_unknown_private_and_reserved_names_are_not_found(registry, name):
    with pytest.raises(MeshError) as caught:
        await registry.call(name, None, CONTROL)
    assert caught.value.code == Code.METHOD_NOT_FOUND
    assert caught.value.definite


async def test_a_slip_of_the_pen_is_answered_with_a_guess(registry):
    with pytest.raises(MeshError, match="did you mean 'add'"):
        await registry.call("ad", None, NETWORK)


async def test_a_huge_name_is_neither_echoed_nor_compared(registry):
    with pytest.raises(MeshError) as caught:
        await registry.call("a" * 1_000_000, None, NETWORK)
    assert len(str(caught.value)) < 300


async def test_control_methods_do_not_exist_for_the_network(registry):
    assert await registry.call("stop", None, CONTROL) == "stopped"
    with pytest.raises(MeshError) as caught:
        await registry.call("stop", None, NETWORK)
    assert caught.value.code == Code.METHOD_NOT_FOUND
    assert "stop" not in caught.value.hint
    assert registry.names(local=False) == ["add", "raw"]
    assert registry.names(local=True) == ["add", "raw", "stop"]


async def test_a_child_registry_falls_back_to_its_parent(registry):
    child = Registry(parent=registry)
    child.add("own", None, raw)
    assert await child.call("add", [1, 1], CONTROL) == 2
    assert await child.call("own", [7], CONTROL) == [7]
    assert child.names(local=True) == ["add", "own", "raw", "stop"]
    with pytest.raises(MeshError):
        await registry.call("own", None, CONTROL)


@pytest.mark.parametrize("name", ["_x", "rpc.x", "", "a b", "add", "x" * 65])
def test_a_reserved_invalid_or_taken_name_cannot_be_added(registry, name):
    with pytest.raises(ValueError, match="reserved, invalid or taken"):
        registry.add(name, None, raw)


def test_a_struct_that_would_ignore_unknown_fields_cannot_be_added(registry):
    with pytest.raises(ValueError, match="forbid_unknown_fields"):
        registry.add("loose", Loose, raw)


async def test_a_method_without_parameters_says_so():
    class Nothing(msgspec.Struct, forbid_unknown_fields=True):
        pass

    registry = Registry()
    registry.add("ping", Nothing, raw)
    with pytest.raises(UsageError, match="ping takes: no parameters"):
        await registry.call("ping", {"x": 1}, NETWORK)
