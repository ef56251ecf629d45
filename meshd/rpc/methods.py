"""Which methods there are, what parameters they take, and who may call them."""

import difflib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from meshd.clock import Seconds
from meshd.errors import Code, MeshError, UsageError
from meshd.model import NAME_CHARS_MAX, is_name
from meshd.sink import Sink

Params = dict[str, Any] | list[Any] | None


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls and how long they will wait.

    Attributes:
        remote: the caller's address in text; "control" on the control socket.
        local: whether the call came over the control socket.
        deadline_s: seconds that the caller still waits, as far as it said so.
        sink: takes partial results and progress; None where the caller wants the result alone.
        caller: the name under which it has introduced itself, if it has.
    """

    remote: str = "control"
    local: bool = True
    deadline_s: Seconds | None = None
    sink: Sink | None = None
    caller: str = ""

    @property
    def who(self) -> str:
        """Who spends what the call costs: its name, or else its address."""
        return self.caller or self.remote


Handler = Callable[[Any, CallContext], Coroutine[Any, Any, Any]]


class Begun(Protocol):
    """A call that runs without a task of its own."""

    def cancel(self, msg: object = None) -> object:
        """Its caller has left, or (`LINK_LOST`) its link: end it; nobody takes its answer."""
        ...


Answered = Callable[[Any], None]
"""Takes the end of a call, once: its result, or the MeshError that it failed with."""

Beginner = Callable[[Params, CallContext, Answered], Begun | None]
"""Begins a plain call at once, or does nothing and says None: then the handler has it.

It may be answered before this returns. It raises nothing.
"""


@dataclass(frozen=True, slots=True)
class _Entry:
    params: type[msgspec.Struct] | None
    handler: Handler
    control: bool
    beginner: Beginner | None


class Registry:
    """Methods by name. `parent` answers for names that this registry does not know."""

    def __init__(self, parent: "Registry | None" = None) -> None:
        self._entries: dict[str, _Entry] = {}
        self._parent = parent

    def add(
        self,
        name: str,
        params: type[msgspec.Struct] | None,
        handler: Handler,
        *,
        control: bool = False,
        beginner: Beginner | None = None,
    ) -> None:
        """Serve `name`. A `control` method answers on the control socket alone.

        `beginner` is the short way for what needs no task; it is offered calls first.

        `params` is a struct that forbids unknown fields, into which parameters are converted
        strictly (an array by position); or None, and the handler gets them as they came.

        Raises:
            ValueError: a bug of ours: a reserved or taken name, or a struct that is not strict.
        """
        if not is_name(name) or _is_private(name) or name in self._entries:
            raise ValueError(f"method name {name!r} is reserved, invalid or taken")
        if params is not None and not params.__struct_config__.forbid_unknown_fields:
            raise ValueError(f"{params.__name__} must set forbid_unknown_fields=True")
        self._entries[name] = _Entry(params, handler, control, beginner)

    def names(self, *, local: bool) -> list[str]:
        """The methods that such a caller may call, sorted."""
        inherited = self._parent.names(local=local) if self._parent else []
        own = [name for name, entry in self._entries.items() if local or not entry.control]
        return sorted({*own, *inherited})

    def call(self, method: str, params: Params, context: CallContext) -> Coroutine[Any, Any, Any]:
        """Call `method`; await what it returns.

        Raises:
            MeshError: -32601 for a name that this caller cannot call (nothing ran).
            UsageError: -32602 for parameters that do not fit (nothing ran).
            Exception: whatever the handler raises.
        """
        entry = self._find(method, context)
        if entry is None:
            raise self._not_found(method, context)
        if entry.params is None:
            return entry.handler(params, context)
        return entry.handler(_convert(method, params, entry.params), context)

    def begin(
        self, method: str, params: Params, context: CallContext, answered: Answered
    ) -> Begun | None:
        """Begin a call the short way, if the method has one and this call may take it."""
        entry = self._find(method, context)
        if entry is None or entry.beginner is None:
            return None
        return entry.beginner(params, context, answered)

    def _find(self, method: str, context: CallContext) -> _Entry | None:
        """What this caller may call under the name."""
        entry = self._entries.get(method)
        if entry is None:
            parent = self._parent
            return None if parent is None else parent._find(method, context)  # noqa: SLF001 - a registry may look into its own kind
        return None if entry.control and not context.local else entry

    def _not_found(self, method: str, context: CallContext) -> MeshError:
        names = self.names(local=context.local)
        # Comparing costs length times length: nobody gets to choose a long one.
        guess = difflib.get_close_matches(method, names, n=1) if _is_short(method) else []
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        return MeshError(
            f"there is no method {method[:NAME_CHARS_MAX]!r}",
            hint=f"{hint}methods here: {', '.join(names)}",
            code=Code.METHOD_NOT_FOUND,
        )


def _is_short(method: str) -> bool:
    return len(method) <= NAME_CHARS_MAX


def _is_private(name: str) -> bool:
    return name.startswith(("_", "rpc."))


def _convert(method: str, params: Params, target: type[msgspec.Struct]) -> Any:
    fields = target.__struct_encode_fields__
    if isinstance(params, list):
        if len(params) > len(fields):
            raise _misfit(method, f"{len(params)} positional values", fields)
        params = dict(zip(fields, params, strict=False))
    try:
        return msgspec.convert({} if params is None else params, target)
    except msgspec.ValidationError as error:
        raise _misfit(method, str(error), fields) from None


def _misfit(method: str, what: str, fields: tuple[str, ...]) -> UsageError:
    takes = ", ".join(fields) if fields else "no parameters"
    return UsageError(
        f"wrong parameters for {method!r}: {what}",
        hint=f"{method} takes: {takes}",
        code=Code.INVALID_PARAMS,
    )
