"""JSON-RPC 2.0 to the letter: every example of the specification, and an oracle of its own."""

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_bench import http

from meshd.rpc.dispatch import answer
from meshd.rpc.jsonrpc import encode_error, parse_body
from meshd.rpc.messages import Refused
from meshd.rpc.methods import CallContext, Registry

PARSE, INVALID, NO_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602


class Operands(msgspec.Struct, forbid_unknown_fields=True):
    minuend: float
    subtrahend: float


async def subtract(params, context):
    return params.minuend - params.subtrahend


async def total(params, context):
    return sum(params)


async def data(params, context):
    return ["hello", 5]


async def nothing(params, context):
    return None


def methods() -> Registry:
    registry = Registry()
    registry.add("subtract", Operands, subtract)
    registry.add("sum", None, total)
    registry.add("get_data", None, data)
    for name in ("update", "notify_hello", "notify_sum"):
        registry.add(name, None, nothing)
    return registry


def call(method, params=None, **more):
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params}),
            **more}  # fmt: skip


def gives(result, request_id):
    return {"jsonrpc": "2.0", "result": result, "id": request_id}


def fails(code, request_id=None):
    return {"jsonrpc": "2.0", "error": code, "id": request_id}


NAMED = {"subtrahend": 23, "minuend": 42}
EXAMPLES = [
    ("by position", call("subtract", [42, 23], id=1), gives(19, 1)),
    ("by position, turned round", call("subtract", [23, 42], id=2), gives(-19, 2)),
    ("by name", call("subtract", NAMED, id=3), gives(19, 3)),
    ("by name, turned round", call("subtract", dict(reversed(NAMED.items())), id=4), gives(19, 4)),
    ("a notification", call("update", [1, 2, 3, 4, 5]), None),
    ("a notification to nobody", call("foobar"), None),
    ("no such method", call("foobar", id="1"), fails(NO_METHOD, "1")),
    ("broken JSON", b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', fails(PARSE)),
    ("no valid request", call(1, "bar"), fails(INVALID)),
    ("a batch of broken JSON", b'[{"jsonrpc": "2.0", "method": "sum"}, {"jsonrpc"]', fails(PARSE)),
    ("an empty batch", [], fails(INVALID)),
    ("a batch of one that is none", [1], [fails(INVALID)]),
    ("a batch of three that are none", [1, 2, 3], [fails(INVALID)] * 3),
    (
        "a mixed batch",
        [
            call("sum", [1, 2, 4], id="1"), call("notify_hello", [7]),
            call("subtract", [42, 23], id="2"), {"foo": "boo"},
            call("foo.get", {"name": "myself"}, id="5"), call("get_data", id="9"),
        ],
        [
            gives(7, "1"), gives(19, "2"), fails(INVALID), fails(NO_METHOD, "5"),
            gives(["hello", 5], "9"),
        ],
    ),
    ("a batch of notifications", [call("notify_sum", [1, 2, 4]), call("notify_hello", [7])], None),
]  # fmt: skip


def outline(told):
    """An answer as the table has it: of an error its code alone, for the words are free."""
    if isinstance(told, list):
        return [outline(each) for each in told]
    if told is not None and "error" in told:
        assert set(told) == {"jsonrpc", "id", "error"}
        assert {"code", "message"} <= set(told["error"]) <= {"code", "message", "data"}
        assert isinstance(told["error"]["message"], str)
        return {**told, "error": told["error"]["code"]}
    return told


@pytest.mark.net
@pytest.mark.parametrize(
    ("given_", "wanted"), [row[1:] for row in EXAMPLES], ids=[row[0] for row in EXAMPLES]
)
async def test_every_example_of_the_specification_holds_over_http(
    serve, dial, bench, given_, wanted
):
    bench.registry = methods()
    _, address = await serve()
    wire = await dial(address)
    wire.send(http(given_))
    status, _, body = await wire.answer()
    told = json.loads(body) if body else None
    assert outline(told) == wanted
    assert status == (204 if wanted is None else 200 if wanted != fails(PARSE) else status)


# The oracle: the specification's sentences, one after the other, without our own code.


def expected_of(entry):
    """What one element is answered; None if by nothing."""
    request_id = entry.get("id") if isinstance(entry, dict) else None
    is_id = isinstance(request_id, str | int | float | None) and not isinstance(request_id, bool)
    is_valid = (
        isinstance(entry, dict)
        and is_id
        and entry.get("jsonrpc") == "2.0"
        and isinstance(entry.get("method"), str)
        and ("params" not in entry or isinstance(entry["params"], list | dict))
    )
    if not is_valid:
        return fails(INVALID, request_id if is_id else None)
    if "id" not in entry:
        return None
    outcome = result_of(entry["method"], entry.get("params"))
    code, result = outcome
    return fails(code, request_id) if code else gives(result, request_id)


def result_of(method, params):
    match method, params:
        case "subtract", [int() | float() as one, int() | float() as other]:
            return 0, one - other
        case "subtract", {
            "minuend": int() | float() as one,
            "subtrahend": int() | float() as other,
        }:
            return (BAD_PARAMS, None) if len(params) > 2 else (0, one - other)
        case "subtract", _:
            return BAD_PARAMS, None
        case "get_data", _:
            return 0, ["hello", 5]
        case (("update" | "notify_hello" | "notify_sum"), _):
            return 0, None
    return NO_METHOD, None


def expected(value):
    if not isinstance(value, list):
        return expected_of(value)
    if not value:
        return fails(INVALID)
    told = [one for one in map(expected_of, value) if one is not None]
    return told or None


async def answered(body: bytes, registry: Registry):
    parsed = parse_body(body)
    told = []
    for entry in parsed.entries:
        if isinstance(entry, Refused):
            told.append(encode_error(entry.id, entry.error))
        else:
            encoded = await answer(entry, registry, CallContext(), bytes_max=10**6)
            told += [] if entry.is_notification else [encoded]
    found = [json.loads(each) for each in told]
    if not parsed.is_batch:
        return found[0] if found else None
    return found or None


NUMBERS = st.integers(-1000, 1000)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=4)
IDS = NUMBERS | st.text(max_size=4) | st.none() | st.sampled_from([True, [], {}, 1.5])
PARAMS = (
    st.lists(NUMBERS, max_size=3)
    | st.fixed_dictionaries(
        {}, optional={"minuend": NUMBERS, "subtrahend": NUMBERS, "more": SCALARS}
    )
    | SCALARS
)
METHODS = st.sampled_from(["subtract", "get_data", "update", "foobar", "", "rpc.x", 1, None, []])
ENTRIES = SCALARS | st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.sampled_from(["2.0", "2.0", "2.0", "1.0", 2.0, None]),
        "method": METHODS,
        "params": PARAMS,
        "id": IDS,
        "extra": SCALARS,
    },
)
REGISTRY = methods()


@given(ENTRIES | st.lists(ENTRIES, max_size=6))
def test_whatever_is_asked_is_answered_as_the_oracle_says(value):
    found = asyncio.run(answered(json.dumps(value).encode(), REGISTRY))
    assert outline(found) == expected(value)


def test_the_oracle_agrees_with_the_specifications_examples():
    for name, value, wanted in EXAMPLES:
        if not isinstance(value, bytes) and name != "a mixed batch":
            assert expected(value) == wanted, name
