"""What can go wrong, whose fault it is, and whether it surely had no effect."""

from enum import IntEnum
from typing import Any

LINK_LOST = "the caller's link got lost"
"""The message of the cancellation of a handler whose caller did not call it off, but vanished."""

TEXT_CHARS_MAX = 2_000
"""Of a message or a hint that came over the wire, so much is kept, as errors are passed on."""

NOT_CALLED_OFF = "whoever comes after this caller asks for the answer"
"""The message of the cancellation of a call that the peer goes on with, as for a lost link."""


class Code(IntEnum):
    """JSON-RPC error codes: the standard's own, and meshd's, clear of A2A's and MCP's ranges."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL = -32603
    NO_CANDIDATE = -32010
    BUSY = -32011
    DEADLINE = -32012
    FORBIDDEN = -32013
    CYCLE = -32014
    CIRCUIT_OPEN = -32015
    REJECTED = -32016
    QUORUM = -32017
    UPSTREAM = -32018
    CANCELLED = -32019
    OVER_BUDGET = -32020


class MeshError(Exception):
    """Base of every error that meshd raises for its users.

    Attributes:
        message: what happened, in one sentence.
        hint: how to fix it, or an empty string.
        code: the JSON-RPC code that carries it over the wire.
        definite: true where the failed action surely had no effect, so that trying elsewhere is
            safe (Maelstrom's definite errors); false where it may have had one.
        data: further facts for programs (JSON values only), e.g. load and ETA of a refusal.
    """

    default_code = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: int | None = None,
        definite: bool = True,
        data: dict[str, Any] | None = None,
    ) -> None:
        # A handler's own error may be made with anything, and is told all the same.
        self.message = str(message)
        super().__init__(self.message)
        self.hint = str(hint or "")
        self.code = int(self.default_code if code is None else code)
        self.definite = bool(definite)
        self.data: dict[str, Any] = dict(data or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(MeshError):
    """Our side asked for something impossible: a bad flag, file, argument or configuration."""

    default_code = Code.INVALID_PARAMS


class PeerError(MeshError):
    """The other side failed us: refused, broke the protocol, went away or answered an error."""

    default_code = Code.UPSTREAM


class DecodeError(PeerError):
    """Bytes from a peer were not a valid message. State is unchanged."""

    default_code = Code.PARSE


class NoCandidateError(PeerError):
    """Nobody in the view can do what was asked."""

    default_code = Code.NO_CANDIDATE


class BusyError(PeerError):
    """A worker refused for now. `data` holds `eta_s`, `queue` and `load` where known."""

    default_code = Code.BUSY


class DeadlineError(PeerError):
    """Time ran out before an answer came."""

    default_code = Code.DEADLINE


class BudgetError(PeerError):
    """Nobody does it for what may be spent. `data` says which bound, and when a cap resets."""

    default_code = Code.OVER_BUDGET


class NoDaemonError(UsageError):
    """No daemon answers on the local control socket."""


_BY_CODE: dict[int, type[MeshError]] = {
    Code.NO_CANDIDATE: NoCandidateError,
    Code.BUSY: BusyError,
    Code.DEADLINE: DeadlineError,
    Code.INVALID_PARAMS: UsageError,
    Code.OVER_BUDGET: BudgetError,
}


def error_from_wire(code: int, message: str, data: dict[str, Any] | None = None) -> MeshError:
    """Rebuild the exception that a JSON-RPC error object stands for.

    `data` may hold `hint` (str) and `definite` (bool); without `definite` only the codes that are
    answered before anything runs count as definite. Texts are cut at `TEXT_CHARS_MAX`.
    """
    data = dict(data or {})
    hint = data.pop("hint", "")
    definite = data.pop("definite", code in _DEFINITE_CODES)
    kind = _BY_CODE.get(code, PeerError)
    return kind(
        _cut(message),
        hint=_cut(hint) if isinstance(hint, str) else "",
        code=code,
        definite=definite is True,
        data=data,
    )


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


_DEFINITE_CODES = frozenset(
    {
        Code.PARSE,
        Code.INVALID_REQUEST,
        Code.METHOD_NOT_FOUND,
        Code.INVALID_PARAMS,
        Code.NO_CANDIDATE,
        Code.BUSY,
        Code.FORBIDDEN,
        Code.CYCLE,
        Code.CIRCUIT_OPEN,
        Code.REJECTED,
        Code.OVER_BUDGET,
    }
)
