"""JSON-RPC 2.0 as bytes: what a body asks for, and how answers are written. No IO.

Source: https://www.jsonrpc.org/specification (2.0), sections 4 to 6.
"""

from typing import Any

import msgspec

from meshd.errors import Code, DecodeError, MeshError, UsageError, error_from_wire
from meshd.rpc.messages import Body, Id, Message, Refused, Request, Response

BODY_BYTES_MAX = 1_048_576
BATCH_MAX = 50
DEPTH_MAX = 64


def parse_body(data: bytes, *, batch_max: int = BATCH_MAX, depth_max: int = DEPTH_MAX) -> Body:
    """Read an HTTP body. Never raises: what cannot be read is a `Refused` element."""
    try:
        value = decode_json(data, depth_max=depth_max)
    except DecodeError as error:
        return Body((Refused(error),))
    if not isinstance(value, list):
        return Body((_read_request(value),))
    if not value:
        return Body((_invalid("the batch is empty", "put at least one request in the array"),))
    if len(value) > batch_max:
        hint = f"send at most {batch_max} in one batch"
        return Body((_invalid(f"the batch holds {len(value)} requests", hint),))
    return Body(tuple(_read_request(element) for element in value), is_batch=True)


def parse_message(data: bytes | str, *, depth_max: int = DEPTH_MAX) -> Request | Response | Refused:
    """Read one frame of a two-way channel: a request, a notification or a response.

    Never raises: what is neither is `Refused`. Batches are not spoken on a channel.
    """
    # In one step where all is as it should be; else the general way finds what is wrong.
    if isinstance(data, bytes) and data.count(b"{") + data.count(b"[") <= depth_max:
        try:
            message = _MESSAGES.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
        else:
            usual = _read_usual(message)
            if usual is not None:
                return usual
    try:
        value = decode_json(data, depth_max=depth_max)
    except DecodeError as error:
        return Refused(error)
    if isinstance(value, dict) and "method" not in value and not value.keys().isdisjoint(_ANSWER):
        return _read_response(value)
    return _read_request(value)


def parse_response(data: bytes, *, depth_max: int = DEPTH_MAX) -> Response:
    """Read the answer to a single request.

    Raises:
        DecodeError: it is no JSON-RPC response (the other side's fault; nothing changed here).
    """
    value = decode_json(data, depth_max=depth_max)
    if not isinstance(value, dict):
        raise DecodeError("the answer is not a JSON-RPC response", definite=False)
    return _read_response(value)


def decode_json(data: bytes | str, *, depth_max: int = DEPTH_MAX) -> Any:
    """Decode JSON strictly: no NaN, no infinity, no lone surrogates, bounded nesting.

    Raises:
        DecodeError: it is not such a document.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise _too_deep(depth_max) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise DecodeError(
            f"the body is not valid JSON: {str(error)[:200]}",
            hint="send one JSON document in UTF-8",
        ) from None
    # No document is deeper than it has opening brackets: most need no walk.
    if _opening_brackets(data) > depth_max and _is_deeper(value, depth_max):
        raise _too_deep(depth_max)
    return value


def encode_request(request_id: Id, method: str, params: Any, window: int = 0) -> bytes:
    """Write a call.

    Raises:
        UsageError: the parameters are not JSON values (our side's fault; nothing was sent).
    """
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    if window:
        message["window"] = window
    return _encode_own(message, method)


def encode_notification(method: str, params: Any) -> bytes:
    """Write a call that wants no answer.

    Raises:
        UsageError: the parameters are not JSON values (our side's fault; nothing was sent).
    """
    return _encode_own({"jsonrpc": "2.0", "method": method, "params": params}, method)


def encode_result(request_id: Id, result: Any) -> bytes:
    """Write a result. NaN and infinities become null, bytes base64.

    Raises:
        TypeError, ValueError, RecursionError: the result is not made of JSON values.
    """
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def encode_error(request_id: Id, error: MeshError) -> bytes:
    """Write an error. `data` holds `definite`, `hint` if there is one, and the error's own data."""
    data: dict[str, Any] = {**error.data, "definite": error.definite}
    if error.hint:
        data["hint"] = error.hint
    try:
        return _encode_error(request_id, error.code, error.message, data)
    except (TypeError, ValueError, RecursionError):
        # A handler's own text or data may hold what JSON cannot: keep what surely can be written.
        message = error.message.encode("utf-8", "replace").decode("utf-8")
        return _encode_error(request_id, error.code, message, {"definite": error.definite})


def encode_batch(answers: list[bytes]) -> bytes:
    """Join answers that are written already."""
    return b"[" + b",".join(answers) + b"]"


def internal_error(reference: str) -> MeshError:
    """What the other side learns of our own fault: nothing but where our log tells more."""
    return MeshError(
        "internal error",
        hint=f"the log of the answering node tells more under {reference}",
        definite=False,
        data={"error_id": reference},
    )


_ANSWER = ("result", "error")
_MESSAGES = msgspec.json.Decoder(Message)


def _read_usual(message: Message) -> Request | Response | None:
    """What it is, if it is a request or a result without any fault."""
    request_id, method, params = message.id, message.method, message.params
    if method is msgspec.UNSET:
        if type(request_id) is not int or message.result is msgspec.UNSET:
            return None
        return Response(request_id, message.result) if message.error is msgspec.UNSET else None
    is_notification = request_id is msgspec.UNSET
    if is_notification:
        request_id = None
    elif type(request_id) is not int and not _is_id(request_id):
        return None
    window = message.window
    if type(window) is not int or window < 0:
        return None
    if params is msgspec.UNSET:
        return Request(method, None, request_id, is_notification, window)
    return Request(method, params, request_id, is_notification, window)


def _encode_own(message: dict[str, Any], method: str) -> bytes:
    if message["params"] is None:
        del message["params"]
    try:
        return msgspec.json.encode(message)
    except Exception as error:  # noqa: BLE001 - values of a user's own types may raise anything
        raise UsageError(
            f"the parameters of {method[:80]!r} are not JSON values: {error}",
            hint="pass only dicts, lists, strings, numbers, booleans and None",
        ) from None


def _encode_error(request_id: Id, code: int, message: str, data: dict[str, Any]) -> bytes:
    error = {"code": code, "message": message, "data": data}
    return msgspec.json.encode({"jsonrpc": "2.0", "id": request_id, "error": error})


def _read_request(value: Any) -> Request | Refused:
    if not isinstance(value, dict):
        return _invalid("a request must be a JSON object")
    request_id = value.get("id")
    if not _is_id(request_id):
        return _invalid("id must be a string, a number or null")
    if value.get("jsonrpc") != "2.0":
        return _invalid('jsonrpc must be exactly "2.0"', request_id=request_id)
    method = value.get("method")
    if not isinstance(method, str):
        return _invalid("method must be a string", request_id=request_id)
    params = value.get("params")
    if not isinstance(params, dict | list) and "params" in value:
        return _invalid("params must be an array or an object", request_id=request_id)
    window = value.get("window", 0)
    if type(window) is not int or window < 0:
        return _invalid("window must be a number of bytes", request_id=request_id)
    return Request(method, params, request_id, "id" not in value, window)


def _read_response(value: dict[str, Any]) -> Response:
    """Read an answer leniently: whatever is wrong with it is the error that the caller gets."""
    request_id = value.get("id")
    if not _is_id(request_id):
        request_id = None
    if value.get("jsonrpc") != "2.0" or ("result" in value) == ("error" in value):
        error: MeshError = DecodeError("the answer is not a JSON-RPC 2.0 response", definite=False)
        return Response(request_id, error=error)
    if "result" in value:
        return Response(request_id, value["result"])
    return Response(request_id, error=_read_error(value["error"]))


def _read_error(value: Any) -> MeshError:
    if not isinstance(value, dict):
        return DecodeError("the answer's error is not an object", definite=False)
    code, message, data = value.get("code"), value.get("message"), value.get("data")
    if not isinstance(code, int) or isinstance(code, bool) or not isinstance(message, str):
        return DecodeError("the answer's error has no code and message", definite=False)
    return error_from_wire(code, message, data if isinstance(data, dict) else None)


def _is_id(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))


def _invalid(message: str, hint: str = "", *, request_id: Id = None) -> Refused:
    error = MeshError(
        message, hint=hint or "see the JSON-RPC 2.0 specification", code=Code.INVALID_REQUEST
    )
    return Refused(error, request_id)


def _too_deep(depth_max: int) -> DecodeError:
    return DecodeError(
        f"the body is nested deeper than {depth_max} levels", hint="flatten the document"
    )


def _opening_brackets(data: bytes | str) -> int:
    if isinstance(data, str):
        return data.count("[") + data.count("{")
    return data.count(b"[") + data.count(b"{")


def _is_deeper(value: Any, depth_max: int) -> bool:
    """Whether containers nest more than `depth_max` deep. Level by level: no recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth_max):
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return bool(level)
