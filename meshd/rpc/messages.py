"""What JSON-RPC messages are to meshd: requests, answers, and what is neither.

Source: https://www.jsonrpc.org/specification (2.0), sections 4 to 6.
"""

from typing import Any, Literal

import msgspec

from meshd.errors import MeshError

Id = str | int | float | None
"""What a request's id may be. It is echoed as it came."""


class Request(msgspec.Struct, frozen=True):
    """A valid call, or (`is_notification`) one that wants no answer, not even an error.

    `window`, a member of our own beside JSON-RPC's, asks for partial results as notifications
    before the answer: so many bytes of them may be under way.
    """

    method: str
    params: dict[str, Any] | list[Any] | None = None
    id: Id = None
    is_notification: bool = False
    window: int = 0


class Refused(msgspec.Struct, frozen=True):
    """An element that is no valid request. It is answered with `error`, under `id` if readable."""

    error: MeshError
    id: Id = None


class Response(msgspec.Struct, frozen=True):
    """The other side's answer: `error`, or else `result`."""

    id: Id
    result: Any = None
    error: MeshError | None = None


class Body(msgspec.Struct, frozen=True):
    """All that one HTTP body asks for, in its order. A batch is answered by an array."""

    entries: tuple[Request | Refused, ...]
    is_batch: bool = False


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """A request or an answer, and nothing else: what is passed over is not checked so well."""

    jsonrpc: Literal["2.0"]
    id: Any = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | list[Any] | msgspec.UnsetType = msgspec.UNSET
    result: Any = msgspec.UNSET
    error: Any = msgspec.UNSET
    window: Any = 0
