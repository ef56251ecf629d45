"""Log lines that nobody can forge."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.telemetry.log import (
    CONTEXT,
    FIELDS_MAX,
    VALUE_CHARS_MAX,
    JsonFormatter,
    LimitedLog,
    LineHandler,
    TextFormatter,
    configure,
    escape,
    event,
    get_logger,
)


def record(name="something_happened", fields=None, args=None, exc_info=None):
    made = logging.LogRecord("meshd.x", logging.WARNING, "f", 1, name, args, exc_info)
    made.created = 1_763_733_731.123
    if fields is not None:
        made.fields = fields
    return made


def text(**fields):
    return TextFormatter().format(record(fields=fields))


def test_a_text_line_has_time_level_logger_event_and_fields():
    line = text(peer="lab-b:6374", count=3, ratio=0.5, node=b"\x01\xff", ok=True, none=None)
    assert line == (
        "2025-11-21T14:02:11.123Z warning meshd.x something_happened"
        " peer=lab-b:6374 count=3 ratio=0.5 node=01ff ok=true none=-"
    )


def test_values_with_spaces_and_quotes_are_quoted():
    assert text(a='say "hi"', b="", c=["x y", "z"]).endswith(r'a="say \"hi\"" b="" c="x y,z"')


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=3))
def test_no_value_breaks_out_of_its_line(fields):
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record(fields=fields))
        assert line.isprintable()
        assert len(line.splitlines()) == 1
    assert isinstance(json.loads(line), dict)


@given(st.text(max_size=100))
def test_escaping_is_one_to_one_and_printable(value):
    assert escape(value).isprintable()
    if value.isprintable() and "\\" not in value:
        assert escape(value) == value


def test_terminal_colours_and_new_lines_are_shown_not_obeyed():
    assert text(name="\x1b[31mred\nlevel=error").endswith(r'name="\x1b[31mred\nlevel=error"')


def test_long_values_are_cut():
    assert len(text(a="x" * 10 * VALUE_CHARS_MAX)) < VALUE_CHARS_MAX + 200
    assert len(text(a=10**9000)) < VALUE_CHARS_MAX + 200
    assert len(text(a=b"x" * VALUE_CHARS_MAX)) < VALUE_CHARS_MAX + 200


def test_too_many_fields_are_cut():
    line = JsonFormatter().format(record(fields={f"k{i}": i for i in range(200)}))
    assert len(json.loads(line)) == FIELDS_MAX + 4


def test_json_keeps_numbers_and_does_not_let_fields_hide_the_event():
    values = json.loads(
        JsonFormatter().format(record(fields={"n": 2, "x": float("nan"), "event": "fake"}))
    )
    assert values["n"] == 2
    assert values["x"] == "nan"
    assert values["event"] == "something_happened"
    assert values["event_"] == "fake"


def test_an_exception_stays_on_the_line():
    try:
        int("bad\nthing")
    except ValueError as error:
        made = record(exc_info=(ValueError, error, error.__traceback__))
    line = TextFormatter().format(made)
    assert r"'bad\\nthing'" in line
    assert "\n" not in line
    assert "Traceback" in json.loads(JsonFormatter().format(made))["traceback"]


def test_a_wrong_format_string_of_a_library_does_not_lose_the_line():
    assert "%d peers" in TextFormatter().format(record("%d peers", args=("x",)))


def test_a_value_whose_text_form_fails_is_named():
    class Odd:
        def __str__(self):
            raise RuntimeError

    assert text(a=Odd()).endswith('a="<Odd: RuntimeError>"')


@pytest.fixture
def restore_logging():
    root, ours, theirs = (logging.getLogger(n) for n in (None, "meshd", "zeroconf"))
    before = (root.level, ours.level, theirs.level)
    yield
    for logger, level in zip((root, ours, theirs), before, strict=True):
        logger.setLevel(level)
    for handler in [h for h in root.handlers if isinstance(h, LineHandler)]:
        root.removeHandler(handler)


@pytest.mark.usefixtures("restore_logging")
def test_configure_sets_level_and_format_and_replaces_the_earlier_handler():
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    configure(level="debug", form="json", stream=second)
    event(get_logger("meshd.room"), "debug", "seen", peer="a")
    logging.getLogger("other").info("chatter")
    logging.getLogger("zeroconf").warning("odd packet")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["peer"] == "a"


@pytest.mark.usefixtures("restore_logging")
def test_a_level_below_the_configured_one_is_not_written():
    stream = io.StringIO()
    configure(level="warning", stream=stream)
    event(get_logger("meshd.room"), "info", "seen")
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("restore_logging")
def test_events_carry_the_context_of_their_task():
    stream = io.StringIO()
    configure(stream=stream)
    token = CONTEXT.set({"trace": "4bf9"})
    try:
        event(get_logger("meshd.room"), "info", "seen", peer="a")
    finally:
        CONTEXT.reset(token)
    assert stream.getvalue().rstrip().endswith("seen trace=4bf9 peer=a")


class FullDisk(io.StringIO):
    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.usefixtures("restore_logging")
def test_a_full_disk_loses_lines_and_nothing_else(capsys):
    handler = configure(stream=FullDisk())
    event(get_logger("meshd.room"), "warning", "seen")
    assert handler.lost == 1
    assert capsys.readouterr().err == ""


def test_a_flood_is_counted_instead_of_written(caplog):
    clock = iter([0.0] * 12 + [10.0] * 5)
    limited = LimitedLog(get_logger("meshd.room"), per_s=0.2, burst=2, now=lambda: next(clock))
    written = [limited.event("warning", "bad_packet") for _ in range(12)]
    assert written == [True, True] + [False] * 10
    assert limited.event("warning", "bad_packet")
    assert caplog.records[-1].fields == {"suppressed": 10}
    assert limited.event("warning", "bad_packet")
    assert caplog.records[-1].fields == {}


def test_event_names_beyond_the_bound_share_one_budget():
    limited = LimitedLog(get_logger("meshd.room"), per_s=0, burst=1, names_max=2, now=lambda: 0.0)
    assert [limited.event("warning", name) for name in "abcd"] == [True, True, True, False]
