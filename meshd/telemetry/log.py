"""Log lines: one event a line, as key=value text or JSON, safe against hostile values."""

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

VALUE_CHARS_MAX = 2_000
"""A longer value is cut: a peer must not fill the disk through one error message."""

FIELDS_MAX = 64

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

CONTEXT: ContextVar[Mapping[str, Any] | None] = ContextVar("meshd_log_context", default=None)
"""Fields that every event of the current task carries, e.g. the trace's id."""

_RESERVED = ("time", "level", "logger", "event")
_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@+%,[]{}()*~"
)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `meshd.room.module`."""
    return logging.getLogger(name)


def event(logger: logging.Logger, level: str, name: str, /, **fields: Any) -> None:
    """Log one event. `level` is one of debug, info, warning, error; `name` is snake_case."""
    number = LEVELS[level]
    if logger.isEnabledFor(number):
        logger.log(number, name, extra={"fields": fields})


class TextFormatter(logging.Formatter):
    """`2026-11-21T14:02:11.123Z warning meshd.discovery.static seed_unresolved seed=lab-b:6374`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        parts = [
            _timestamp(record),
            record.levelname.lower(),
            record.name,
            escape(_message(record)),
        ]
        for key, value in _fields(record).items():
            parts.append(f"{escape(key)}={_quoted(_plain(value))}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        values: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _cut(_message(record)),
        }
        for key, value in _fields(record).items():
            values[f"{key}_" if key in _RESERVED else key] = _plain(value)
        # ASCII only: escapes control characters, lone surrogates and line separators alike.
        return json.dumps(values, ensure_ascii=True, separators=(",", ":"))


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines; a full disk or a closed pipe loses lines (`lost`), never the daemon."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Count what could not be written; there is nowhere left to complain."""
        del record
        self.lost += 1


def configure(
    *, level: str = "info", form: str = "text", stream: TextIO | None = None
) -> LineHandler:
    """Send all logging of this process to `stream` (stderr), and return the handler.

    Libraries speak from `warning` on, zeroconf from `error` on: it warns of every odd packet that
    somebody on the network sends. Calling it again replaces the earlier handler.
    """
    handler = LineHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, LineHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("meshd").setLevel(LEVELS[level])
    logging.getLogger("zeroconf").setLevel(logging.ERROR)
    return handler


class LimitedLog:
    """For events that a stranger can cause: `burst` at once, then `per_s` a second.

    Those left out are counted, and the next one that passes says how many (`suppressed`). Each
    event name has a budget of its own; past `names_max` names the rest share one. Safe from any
    thread.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        per_s: float = 0.2,
        burst: int = 5,
        names_max: int = 64,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._per_s = per_s
        self._burst = float(burst)
        self._names_max = names_max
        self._now = now
        self._budgets: dict[str, tuple[float, float, int]] = {}
        self._lock = threading.Lock()

    def event(self, level: str, name: str, /, **fields: Any) -> bool:
        """Log it if the budget allows; say whether it did."""
        with self._lock:
            suppressed = self._take(name)
        if suppressed is None:
            return False
        if suppressed:
            fields["suppressed"] = suppressed
        event(self._logger, level, name, **fields)
        return True

    def _take(self, name: str) -> int | None:
        """How many were left out before this one; None if this one is left out too."""
        key = name if name in self._budgets or len(self._budgets) < self._names_max else ""
        now = self._now()
        tokens, at, suppressed = self._budgets.get(key, (self._burst, now, 0))
        tokens = min(self._burst, tokens + max(0.0, now - at) * self._per_s)
        if tokens < 1.0:
            self._budgets[key] = (tokens, now, suppressed + 1)
            return None
        self._budgets[key] = (tokens - 1.0, now, 0)
        return suppressed


def escape(text: str) -> str:
    """`text` on one line of printable characters, so that no value can forge a line or a colour."""
    if text.isprintable() and "\\" not in text:
        return _cut(text)
    return "".join(_escape_char(c) for c in _cut(text))


def _escape_char(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    return char.encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  # a wrong format string in any library must not lose the line
        return str(record.msg)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {**(CONTEXT.get() or {})}
    given = getattr(record, "fields", None)
    if isinstance(given, Mapping):
        fields.update(given)
    if len(fields) > FIELDS_MAX:
        fields = dict(list(fields.items())[:FIELDS_MAX])
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        fields["error"] = f"{type(error).__name__}: {error}"
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _plain(value: Any) -> Any:
    """A JSON value: numbers, booleans and None stay; bytes become hex; the rest text."""
    match value:
        case None | bool():
            return value
        case int():
            # Longer ones have no place in JSON, and int's own text form refuses the longest.
            return value if value.bit_length() <= 64 else _cut(hex(value))
        case float():
            return round(value, 6) if math.isfinite(value) else str(value)
        case bytes():
            return _cut(value.hex())
        case list() | tuple():
            return [_plain(v) for v in value[:FIELDS_MAX]]
        case _:
            return _cut(_text(value))


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  # somebody's __str__ must not lose the line
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _quoted(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case list():
            return _quoted(",".join(_text(v) for v in value))
        case _:
            text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + escape(text).replace('"', '\\"') + '"'


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
