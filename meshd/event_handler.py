"""Handlers of events and queries that the configuration declares: programs to run. Pure."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from meshd.capability.declared import command_faults
from meshd.clock import Seconds
from meshd.errors import UsageError
from meshd.happening import Event, Kind
from meshd.model import is_name

HANDLERS_MAX = 64
TIMEOUT_DEFAULT_S: Seconds = 60.0
TIMEOUT_MAX_S: Seconds = 86_400.0
VARIABLES = frozenset({"MESHD_EVENT", "MESHD_EVENT_NAME", "MESHD_QUERY", "MESHD_QUERY_NODE"})
"""What a handler finds in its environment, beside MESHD_SOCKET."""
_OF_EVENT = f"{Kind.EVENT}:"


class EventHandler(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[handler]]` table.

    Exactly one of `on` and `query`.

    Attributes:
        command: program and arguments; no shell.
        on: types of events that it is run for, once each and in order; `event:NAME` stands for
            users' events of that name, `event` for all of them.
        query: the name of the query that it answers: payload on stdin, answer on stdout.
        cwd: its working directory; the daemon's if None.
        env: further environment variables.
        timeout_s: how long a run may take, above 0; an answer no longer than the query waits.
    """

    command: tuple[str, ...]
    on: tuple[str, ...] = ()
    query: str = ""
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout_s: Seconds = TIMEOUT_DEFAULT_S

    def wants(self, event: Event) -> bool:
        """Whether it is run for this event."""
        return event.type in self.on or f"{event.type}:{event.event}" in self.on

    @property
    def label(self) -> str:
        """What it is called in logs."""
        return f"{self.query or ','.join(self.on)}: {self.command[0]}"


def handlers_from_config(tables: Iterable[Mapping[str, Any]]) -> tuple[EventHandler, ...]:
    """The handlers that `[[handler]]` tables declare, in their order.

    Raises:
        UsageError: one error lists every fault of every table.
    """
    found: list[EventHandler] = []
    faults: list[str] = []
    for number, table in enumerate(tables, start=1):
        if number > HANDLERS_MAX:
            faults.append(f"more than {HANDLERS_MAX} handlers are declared")
            break
        try:
            handler = _read(table)
        except msgspec.ValidationError as error:
            faults.append(f"handler {number}: {error}")
            continue
        wrong = _faults(handler)
        if handler.query and any(each.query == handler.query for each in found):
            wrong.append(f"query {handler.query!r} has a handler already")
        faults.extend(f"handler {number}: {fault}" for fault in wrong)
        found.append(handler)
    if faults:
        raise UsageError("; ".join(faults), hint="correct the [[handler]] tables")
    return tuple(found)


def _read(table: Mapping[str, Any]) -> EventHandler:
    known = [field.name for field in msgspec.structs.fields(EventHandler)]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise msgspec.ValidationError(f"unknown key {key!r}{hint}")
    return msgspec.convert(table, EventHandler)


def _faults(handler: EventHandler) -> list[str]:
    faults = []
    if bool(handler.on) == bool(handler.query):
        faults.append("it needs exactly one of on = [...] and query = '...'")
    faults.extend(command_faults(handler.command, handler.cwd, handler.env))
    if not 0 < handler.timeout_s <= TIMEOUT_MAX_S:
        faults.append(f"timeout_s must be above 0 and at most {TIMEOUT_MAX_S:g}")
    if handler.query and not is_name(handler.query):
        faults.append(f"query {handler.query[:80]!r} is not a valid name")
    faults.extend(_fault_of_type(text) for text in handler.on if _fault_of_type(text))
    return faults


def _fault_of_type(text: str) -> str:
    types = [kind.value for kind in Kind]
    if text in types or (text.startswith(_OF_EVENT) and is_name(text.removeprefix(_OF_EVENT))):
        return ""
    near = difflib.get_close_matches(text, types, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"on: there is no event {text[:80]!r}; {hint}types: {', '.join(types)}, event:NAME"
