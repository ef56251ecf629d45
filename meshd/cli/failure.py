"""How errors are told: what, how to fix it, a stable code, and the exit code of the process."""

import errno
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from meshd.cli.output import Palette, escape, json_text
from meshd.errors import Code, MeshError, NoDaemonError

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    NOT_FOUND = 4
    DEADLINE = 5
    DENIED = 6
    DEGRADED = 7
    INTERRUPTED = 130


class Report(NamedTuple):
    """An error as it is told. `code` (`MESHD-E003`) never changes its meaning between versions."""

    message: str
    hint: str
    code: str
    exit: Exit
    data: Mapping[str, Any] = _NOTHING


class ReportedError(Exception):
    """An error whose report is already made."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.message)
        self.report = report


_BY_CODE: dict[int, tuple[str, Exit]] = {
    Code.PARSE: ("MESHD-E018", Exit.FAILED),
    Code.INVALID_REQUEST: ("MESHD-E018", Exit.FAILED),
    Code.METHOD_NOT_FOUND: ("MESHD-E018", Exit.FAILED),
    Code.INVALID_PARAMS: ("MESHD-E002", Exit.USAGE),
    Code.INTERNAL: ("MESHD-E019", Exit.FAILED),
    Code.NO_CANDIDATE: ("MESHD-E004", Exit.NOT_FOUND),
    Code.BUSY: ("MESHD-E011", Exit.FAILED),
    Code.DEADLINE: ("MESHD-E005", Exit.DEADLINE),
    Code.FORBIDDEN: ("MESHD-E006", Exit.DENIED),
    Code.CYCLE: ("MESHD-E012", Exit.FAILED),
    Code.CIRCUIT_OPEN: ("MESHD-E013", Exit.FAILED),
    Code.REJECTED: ("MESHD-E014", Exit.FAILED),
    Code.QUORUM: ("MESHD-E015", Exit.FAILED),
    Code.UPSTREAM: ("MESHD-E016", Exit.FAILED),
    Code.CANCELLED: ("MESHD-E017", Exit.FAILED),
    Code.OVER_BUDGET: ("MESHD-E020", Exit.DENIED),
}
_OTHER = ("MESHD-E001", Exit.FAILED)
START_FAILED = "MESHD-E009"
PORT_TAKEN = "MESHD-E010"
USAGE = "MESHD-E002"

_HINTS: dict[int, str] = {
    Code.NO_CANDIDATE: "see who offers what: meshd capabilities",
    Code.BUSY: "try again later, or add a node that offers it",
    Code.DEADLINE: "give it more time with --timeout, or see who is slow: meshd peers",
    Code.METHOD_NOT_FOUND: "the daemon is of another version: see meshd --version, meshd status",
}


def report_of(error: Exception) -> Report:
    """What to tell about an exception of any kind."""
    if isinstance(error, ReportedError):
        return error.report
    if isinstance(error, NoDaemonError):
        hint = error.hint or "start it: meshd start"
        return Report(error.message, hint, "MESHD-E003", Exit.NO_DAEMON, error.data)
    if isinstance(error, MeshError):
        code, leave = _BY_CODE.get(error.code, _OTHER)
        hint = error.hint or _HINTS.get(error.code, "")
        return Report(error.message, hint, code, leave, error.data)
    if isinstance(error, PermissionError):
        where = error.filename or "a file"
        hint = "run it as the user who owns that, or choose another path"
        return Report(f"permission denied on {where}", hint, "MESHD-E006", Exit.DENIED)
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        message = f"{error.filename}: {what}" if error.filename else what
        return Report(message, "", "MESHD-E001", Exit.FAILED)
    return Report(
        f"internal error: {type(error).__name__}: {error}",
        "this is a fault of meshd; `meshd -v ...` shows where it happened",
        "MESHD-E019",
        Exit.FAILED,
    )


_BIND_ERRORS = frozenset({errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM})


def start_report(error: MeshError | OSError, bind: str) -> Report:
    """What to tell where the daemon could not start: exit code 1 whoever is at fault.

    `bind` is the address that it should have listened on.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return _port_taken(bind)
    told = report_of(error)
    if isinstance(error, OSError) and error.errno in _BIND_ERRORS and not error.filename:
        message = f"cannot bind {bind}: {error.strerror}"
        hint = "choose an address of this machine and a port above 1023 with --bind"
        return Report(message, hint, START_FAILED, Exit.FAILED)
    code = START_FAILED if told.exit is Exit.USAGE else told.code
    return told._replace(code=code, exit=Exit.FAILED)


def _port_taken(bind: str) -> Report:
    from meshd.cli.holder import holder

    by = holder(bind)
    hint = "already running? meshd status"
    hint += "\nsecond node here: meshd start --name b --bind :0"
    return Report(f"cannot bind {bind}: in use by {by}", hint, PORT_TAKEN, Exit.FAILED)


def report_text(report: Report, palette: Palette) -> str:
    """An error for people: `meshd: what  [code]`, then how to fix it, indented."""
    what, *more = escape(report.message, keep="\n").split("\n")
    code = palette.paint(f"[{report.code}]", "dim")
    lines = [f"{palette.paint('meshd:', 'red')} {what}  {code}", *more]
    lines += [f"  {line}" for line in escape(report.hint, keep="\n").split("\n") if line]
    return "\n".join(lines)


def report_json(report: Report) -> str:
    """An error for programs: one JSON object in one line."""
    error: dict[str, Any] = {
        "code": report.code,
        "exit": int(report.exit),
        "message": report.message,
        "hint": report.hint,
    }
    if report.data:
        error["data"] = dict(report.data)
    return json_text({"schema": "meshd.error/1", "error": error})
