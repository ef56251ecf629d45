"""JSON-RPC 2.0 as a pure parser and encoder."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import (
    TEXT_CHARS_MAX,
    BusyError,
    Code,
    DecodeError,
    MeshError,
    UsageError,
    error_from_wire,
)
from meshd.rpc.jsonrpc import (
    BATCH_MAX,
    DEPTH_MAX,
    decode_json,
    encode_batch,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
    internal_error,
    parse_body,
    parse_message,
    parse_response,
)
from meshd.rpc.messages import Body, Refused, Request, Response

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def body(value):
    return parse_body(json.dumps(value).encode())


def only(value):
    entries = body(value).entries
    assert len(entries) == 1
    return entries[0]


def call(**changes):
    return {"jsonrpc": "2.0", "method": "echo", "id": 1, **changes}


def refused_code(entry):
    assert isinstance(entry, Refused)
    return entry.error.code


@pytest.mark.parametrize("request_id", ["a", "", 1, 0, -7, 1.5, 2**70, None, "x" * 1000])
def test_an_id_is_kept_as_it_came(request_id):
    entry = only(call(id=request_id))
    assert entry == Request("echo", None, request_id)
    assert json.loads(encode_result(entry.id, 5))["id"] == request_id
    assert type(json.loads(encode_result(entry.id, 5))["id"]) is type(request_id)


@pytest.mark.parametrize("request_id", [True, False, [], {}, [1]])
def test_an_id_of_another_kind_is_an_invalid_request_answered_with_null(request_id):
    entry = only(call(id=request_id))
    assert refused_code(entry) == Code.INVALID_REQUEST
    assert entry.id is None


@pytest.mark.parametrize("version", ["1.0", "2", 2.0, 2, None, "2.00", ["2.0"]])
def test_only_version_two_is_spoken_and_the_id_is_still_echoed(version):
    entry = only(call(jsonrpc=version))
    assert refused_code(entry) == Code.INVALID_REQUEST
    assert entry.id == 1


def test_a_missing_version_is_refused():
    assert refused_code(only({"method": "echo", "id": 3})) == Code.INVALID_REQUEST


@pytest.mark.parametrize("method", [1, None, [], {}, True])
def test_a_method_that_is_no_string_is_refused(method):
    assert refused_code(only(call(method=method))) == Code.INVALID_REQUEST


@pytest.mark.parametrize("params", ["bar", 1, None, True])
def test_params_that_are_neither_array_nor_object_are_refused(params):
    assert refused_code(only(call(params=params))) == Code.INVALID_REQUEST


@pytest.mark.parametrize("params", [[], {}, [1, 2], {"a": 1}])
def test_params_may_be_an_array_or_an_object(params):
    assert only(call(params=params)).params == params


def test_a_request_without_an_id_is_a_notification():
    assert only({"jsonrpc": "2.0", "method": "m"}).is_notification
    assert not only(call(id=None)).is_notification


def test_an_invalid_request_without_an_id_is_answered_with_null():
    entry = only({"jsonrpc": "2.0", "method": 1, "params": "bar"})
    assert refused_code(entry) == Code.INVALID_REQUEST
    assert entry.id is None


@pytest.mark.parametrize("value", [1, "x", None, True, 1.5])
def test_a_body_that_is_no_object_or_array_is_an_invalid_request(value):
    found = body(value)
    assert not found.is_batch
    assert refused_code(found.entries[0]) == Code.INVALID_REQUEST


def test_an_empty_batch_is_one_invalid_request():
    found = body([])
    assert not found.is_batch
    assert refused_code(found.entries[0]) == Code.INVALID_REQUEST


def test_each_invalid_element_of_a_batch_is_refused_by_itself():
    found = body([1, call(), 2])
    assert found.is_batch
    assert [type(entry) for entry in found.entries] == [Refused, Request, Refused]


def test_a_batch_may_be_full_but_no_longer():
    assert len(body([call()] * BATCH_MAX).entries) == BATCH_MAX
    too_long = body([call()] * (BATCH_MAX + 1))
    assert not too_long.is_batch
    assert refused_code(too_long.entries[0]) == Code.INVALID_REQUEST


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"nonsense",
        b"{} {}",
        b"NaN",
        b'{"jsonrpc":"2.0","method":"m","id":Infinity}',
        b"[-Infinity]",
        b"1e999",
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        b"9" * 5_000,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b"\x00",
    ],
)
def test_what_is_no_strict_json_is_a_parse_error_and_nothing_worse(data):
    found = parse_body(data)
    assert not found.is_batch
    assert refused_code(found.entries[0]) == Code.PARSE


def test_nesting_is_bounded_exactly():
    assert decode_json(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    with pytest.raises(DecodeError, match="nested deeper"):
        decode_json(b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1))
    with pytest.raises(DecodeError, match="nested deeper"):
        decode_json(b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1))


def test_brackets_inside_strings_are_no_nesting():
    assert decode_json(b'"' + b"[" * 5_000 + b'"') == "[" * 5_000


def test_of_duplicate_keys_the_last_one_counts():
    entry = parse_body(b'{"jsonrpc":"2.0","method":"a","method":"b","id":1,"id":2}').entries[0]
    assert entry == Request("b", None, 2)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise(data):
    assert isinstance(parse_body(data), Body)
    assert isinstance(parse_message(data), Request | Response | Refused)


@given(VALUES)
def test_random_documents_never_raise(value):
    found = body(value)
    assert all(isinstance(entry, Request | Refused) for entry in found.entries)


@given(st.text(), st.dictionaries(st.text(), VALUES, max_size=3), st.integers() | st.text())
def test_a_request_round_trips(method, params, request_id):
    message = parse_message(encode_request(request_id, method, params))
    assert message == Request(method, params, request_id)


@given(VALUES, st.integers() | st.text() | st.none())
def test_a_result_round_trips(value, request_id):
    assert parse_response(encode_result(request_id, value)) == Response(request_id, value)


def test_a_notification_round_trips_without_an_id():
    assert parse_message(encode_notification("gone", None)) == Request(
        "gone", None, None, is_notification=True
    )


def test_an_error_keeps_its_kind_hint_data_and_definiteness():
    error = BusyError("full", hint="wait", definite=True, data={"eta_s": 2})
    found = parse_response(encode_error("x", error)).error
    assert isinstance(found, BusyError)
    assert (found.message, found.hint, found.code) == ("full", "wait", Code.BUSY)
    assert found.definite
    assert found.data == {"eta_s": 2}


def test_the_texts_of_an_error_are_cut():
    told = {"code": -32017, "message": "m" * 9_000, "data": {"hint": "h" * 2_000, "x": 1}}
    error = error_from_wire(**told)
    assert error.message == "m" * (TEXT_CHARS_MAX - 1) + "…"
    assert (error.hint, error.data) == ("h" * TEXT_CHARS_MAX, {"x": 1})
    told["data"]["hint"] += "h"
    error = error_from_wire(**told)
    assert error.hint == "h" * (TEXT_CHARS_MAX - 1) + "…"


def test_an_indefinite_error_stays_indefinite():
    found = parse_response(encode_error(1, BusyError("hm", definite=False))).error
    assert found is not None
    assert not found.definite


def test_an_errors_own_data_cannot_forge_its_definiteness():
    wire = json.loads(encode_error(1, MeshError("m", definite=False, data={"definite": True})))
    assert wire["error"]["data"] == {"definite": False}


def test_an_error_whose_data_is_no_json_is_still_written():
    wire = json.loads(encode_error(1, MeshError("bad \ud800 text", data={"x": object()})))
    assert wire["error"]["message"] == "bad ? text"
    assert wire["error"]["data"] == {"definite": True}


def test_an_internal_error_tells_its_reference_and_nothing_else():
    wire = json.loads(encode_error(1, internal_error("abcd")))["error"]
    assert wire["code"] == Code.INTERNAL
    assert wire["message"] == "internal error"
    assert wire["data"]["error_id"] == "abcd"
    assert wire["data"]["definite"] is False


def test_batch_answers_are_joined_to_an_array():
    joined = json.loads(encode_batch([encode_result(1, "a"), encode_result(2, "b")]))
    assert [answer["result"] for answer in joined] == ["a", "b"]


@pytest.mark.parametrize("params", [{"a": object()}, {"a": "\ud800"}, {(1, 2): 3}])
def test_own_parameters_that_are_no_json_are_a_usage_error(params):
    with pytest.raises(UsageError, match="not JSON"):
        encode_request(1, "m", params)
    with pytest.raises(UsageError, match="not JSON"):
        encode_notification("m", params)


@pytest.mark.parametrize(
    "value",
    [
        {"jsonrpc": "2.0", "id": 1, "result": 1, "error": {"code": 1, "message": "m"}},
        {"jsonrpc": "1.0", "id": 1, "result": 1},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 1, "error": "text"},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": "1", "message": "m"}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": True, "message": "m"}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": None}},
    ],
)
def test_an_answer_that_breaks_the_rules_is_an_indefinite_error(value):
    found = parse_response(json.dumps(value).encode())
    assert isinstance(found.error, DecodeError)
    assert not found.error.definite


@pytest.mark.parametrize("data", [b"[]", b"1", b"null"])
def test_an_answer_that_is_no_object_is_a_decode_error(data):
    with pytest.raises(DecodeError):
        parse_response(data)


def test_an_answer_with_an_unreadable_id_keeps_null():
    assert parse_response(b'{"jsonrpc":"2.0","id":[1],"result":2}').id is None


def test_an_errors_data_that_is_an_array_is_left_out():
    found = parse_response(
        b'{"jsonrpc":"2.0","id":1,"error":{"code":-32001,"message":"m","data":[{"a":1}]}}'
    )
    assert found.error is not None
    assert (found.error.code, found.error.data) == (-32001, {})


def test_a_frame_is_told_apart_by_its_members():
    assert isinstance(parse_message(b'{"jsonrpc":"2.0","id":1,"result":null}'), Response)
    assert isinstance(parse_message(b'{"jsonrpc":"2.0","id":1,"method":"m"}'), Request)
    assert isinstance(parse_message('{"jsonrpc":"2.0","id":1}'), Refused)
    assert isinstance(parse_message(b"[]"), Refused)
    assert isinstance(parse_message(b"{"), Refused)


MEMBERS = {
    "jsonrpc": st.sampled_from(["2.0"] * 8 + ["1.0", 2.0, None]),
    "id": st.sampled_from([1, 1, 1, 1.0, 1e2, 2**64, 2**70, "a", None, True, [], -0.0]),
    "method": st.sampled_from(["m"] * 6 + [1, None]),
    "params": st.dictionaries(st.text(), VALUES, max_size=2) | VALUES,
    "result": VALUES,
    "error": VALUES | st.just({"code": -32011, "message": "m", "data": {"definite": True}}),
    "window": st.sampled_from([0, 5, 5.0, -1, True, None, "5", 2**70]),
    "more": VALUES,
}
PAIRS = st.lists(
    st.sampled_from(list(MEMBERS)).flatmap(
        lambda name: MEMBERS[name].map(lambda value: f"{json.dumps(name)}:{json.dumps(value)}")
    ),
    max_size=6,
)


def told(message):
    if isinstance(message, Request):
        return message, type(message.id), type(message.window)
    error = message.error
    kind = type(error), *((error.message, error.code, error.definite, error.data) if error else ())
    return type(message), message.id, type(message.id), getattr(message, "result", None), kind


@given(PAIRS, st.sampled_from(["", "", "", "{", "\ud800", "\\ud800"]))
def test_a_message_is_read_alike_whole_or_member_by_member(pairs, fault):
    text = '{"jsonrpc":"2.0",' * bool(pairs) + ",".join(pairs) + "}" * bool(pairs)
    data = text.replace("m", fault or "m", 1).encode("utf-8", "surrogatepass")
    general = parse_body(data).entries[0]
    with contextlib.suppress(DecodeError):
        value = decode_json(data)
        if "method" not in value and ("result" in value or "error" in value):
            general = parse_response(data)
    assert told(parse_message(data)) == told(general)


def test_what_would_be_passed_over_in_a_message_is_strict_json_too():
    for fault in (b"\xff", b"\\ud800"):
        data = b'{"jsonrpc":"2.0","method":"m","id":1,"more":"' + fault + b'"}'
        assert refused_code(parse_message(data)) == Code.PARSE
    assert parse_message(b'{"jsonrpc":"2.0","method":"m","id":1,"more":"x"}') == Request(
        "m", None, 1
    )


@pytest.mark.parametrize("request_id", [True, [], {"a": 1}])
def test_a_message_with_an_id_of_another_kind_is_refused_under_null(request_id):
    refused = parse_message(json.dumps(call(id=request_id)).encode())
    assert refused_code(refused) == Code.INVALID_REQUEST
    assert refused.id is None


def test_a_message_may_hold_brackets_in_texts_but_no_deeper_nesting_than_any_document():
    many = "[" * 2 * DEPTH_MAX
    for text in (json.dumps(call(params=[many])), json.dumps(call(params=["x"]))):
        expected = Request("echo", json.loads(text)["params"], 1)
        assert parse_message(text) == parse_message(text.encode()) == expected
    deep = b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert refused_code(parse_message(deep + b"}")) == Code.PARSE


def test_a_request_with_a_window_round_trips():
    assert parse_message(encode_request(1, "m", {}, 7)) == Request("m", {}, 1, window=7)
