"""Ages, units, tables, colours, escapes: what is pure in the command line."""

import json
import re

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.cli import output
from meshd.cli.app import wants_json
from meshd.cli.arguments import parse_input, parse_value
from meshd.cli.options import duration, duration_or_zero
from meshd.cli.output import Cell, Column, Palette
from meshd.cli.watch import frame
from meshd.errors import UsageError

PLAIN = Palette(enabled=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, output.NONE), (-1.0, "0.0s"), (0.3, "0.3s"), (9.94, "9.9s"), (9.96, "9s"),
        (59.9, "59s"), (60.0, "1m"), (3599.0, "59m"), (3600.0, "1h"), (86_399.0, "23h"),
        (172_800.0, "2d"),
    ],
)  # fmt: skip
def test_an_age_is_told_in_its_largest_unit(seconds, text):
    assert output.age(seconds) == text


@given(st.floats(0, 1e9))
def test_an_age_is_short(seconds):
    assert re.fullmatch(r"\d\.\ds|\d{1,2}[smh]|\d+d", output.age(seconds))


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, output.NONE),
        (0.84, "0.8 ms"),
        (99.94, "99.9 ms"),
        (99.96, "100 ms"),
        (1234.0, "1.2 s"),
    ],
)
def test_a_latency_has_a_unit(milliseconds, text):
    assert output.latency(milliseconds) == text


def test_a_fraction_is_told_in_percent():
    assert [output.percent(f) for f in (None, 0.0, 0.126, 1.0)] == [
        output.NONE,
        "0%",
        "13%",
        "100%",
    ]


def test_one_thing_is_not_plural():
    assert output.plural(1, "node") == "1 node"
    assert output.plural(0, "node") == "0 nodes"
    assert output.plural(2, "capability", "capabilities") == "2 capabilities"


@given(st.text())
def test_nothing_that_a_terminal_obeys_survives_escaping(text):
    assert output.escape(text).isprintable()


@given(st.text())
def test_printable_text_is_left_as_it_is(text):
    printable = "".join(c for c in text if c.isprintable())
    assert output.escape(printable) == printable


def test_control_and_bidirectional_characters_become_visible():
    assert output.escape("a\x1b[31m\u202eb\U000e0001\n") == r"a\x1b[31m\u202eb\U000e0001\x0a"
    assert output.escape("a\nb\t\r", keep="\n\t") == "a\nb\t\\x0d"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_says_the_same_and_holds_no_control_character(value):
    text = output.json_text(value, indent=2)
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("choice", "environment", "is_tty", "wanted"),
    [
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": "", "FORCE_COLOR": "1"}, False, True),
        ("auto", {"FORCE_COLOR": ""}, False, False),
        ("auto", {"TERM": "xterm"}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
    ],
)
def test_colour_follows_flag_then_variables_then_terminal(choice, environment, is_tty, wanted):
    assert output.wants_color(choice, environment, is_tty=is_tty) is wanted


def test_a_palette_paints_only_where_it_is_enabled():
    assert Palette(enabled=True).paint("x", "red") == "\x1b[31mx\x1b[0m"
    assert Palette(enabled=True).paint("x", "") == "x"
    assert PLAIN.paint("x", "red") == "x"


def test_columns_are_aligned_whatever_their_width():
    columns = [Column("A"), Column("N", right=True), Column("LAST")]
    rows = [[Cell("日本", "red"), Cell("5"), Cell("x")], [Cell("e\u0301"), Cell("125"), Cell("")]]
    assert output.table(columns, rows, PLAIN, notes=["", "(odd)"]) == [
        "A       N  LAST",
        "日本    5  x",
        "e\u0301     125  (odd)",
    ]


def test_colour_changes_no_alignment():
    rows = [[Cell("ab", "red"), Cell("x")], [Cell("a"), Cell("y")]]
    columns = [Column("A"), Column("B")]
    painted = "\n".join(output.table(columns, rows, Palette(enabled=True)))
    assert re.sub(r"\x1b\[\d+m", "", painted).split("\n") == output.table(columns, rows, PLAIN)


def test_fields_leave_out_what_is_unknown_and_indent_lists():
    pairs = [("name", "a"), ("gone", ""), ("xs", "1\n2")]
    assert output.fields(pairs, PLAIN) == ["name  a", "xs    1", "      2"]


def test_long_lists_of_names_say_how_many_are_left():
    assert output.some_of([], 10) == output.NONE
    assert output.some_of(["aa", "bb"], 5) == "aa,bb"
    assert output.some_of(["aa", "bb", "cc"], 6) == "aa,+2"
    assert output.some_of(["much-too-long", "b"], 4) == "much-too-long,+1"


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=9), st.integers(1, 30))
def test_a_list_of_names_counts_everyone(names, columns_max):
    shown = output.some_of(names, columns_max)
    parts = [] if shown == output.NONE else shown.split(",")
    rest = sum(int(p) for p in parts if p.startswith("+"))
    assert len([p for p in parts if not p.startswith("+")]) + rest == len(names)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400)]
)
def test_durations_are_read_with_their_units(text, seconds):
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "1e9", "nan", "inf", "5 years", "0", "1d"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(click.BadParameter):
        duration(text)


def test_zero_is_a_duration_only_where_it_may_be():
    assert duration_or_zero("0s") == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("[1, 2]", [1, 2]), ("true", True), ("null", None), ('"3"', "3"),
        ("hello", "hello"), ("", ""), ("NaN", "NaN"), ("{", "{"), ("[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_a_value_is_json_where_it_parses_and_text_where_not(text, value):
    assert parse_value(text) == value


@given(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.text() | st.none()))
def test_pairs_of_json_make_the_object(values):
    pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    assert parse_input(pairs, None) == values


def test_the_first_equals_sign_divides():
    assert parse_input(["a=b=c"], None) == {"a": "b=c"}


@pytest.mark.parametrize(
    ("pairs", "data", "message"),
    [
        (["a"], None, "not of the form"),
        (["=a"], None, "not of the form"),
        (["a=1", "a=2"], None, "given twice"),
        (["a=1"], "{}", "given twice"),
        ([], "{", "not valid JSON: .* line 1 column 2"),
        ([], "NaN", "NaN is no JSON number"),
        ([], "[" * 100_000, "not valid JSON"),
        ([], "@/nowhere/x", "cannot read /nowhere/x: No such file"),
    ],
)
def test_bad_input_says_what_is_wrong(pairs, data, message):
    with pytest.raises(UsageError, match=message):
        parse_input(pairs, data)


def test_input_comes_from_a_file(tmp_path):
    file = tmp_path / "in.json"
    file.write_text("[1]")
    assert parse_input([f"@{file}"], None) == parse_input([], f"@{file}") == [1]
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        parse_input([f"@{file}"], None)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["peers", "--json"], True), (["peers", "-o", "jsonl"], True), (["peers", "-ojson"], True),
        (["peers", "--output=json"], True), (["peers", "-o", "wide"], False), (["-o"], False),
        (["call", "x", "--", "--json"], False), ([], False),
    ],
)  # fmt: skip
def test_json_errors_follow_from_the_raw_arguments(arguments, wanted):
    assert wants_json(arguments) is wanted


def test_a_frame_keeps_the_last_line_and_says_what_it_hides():
    drawn = frame([f"line {i}" for i in range(10)], 6)
    assert [re.sub(r"\x1b\[[A-Z]", "", line) for line in drawn] == [
        "line 0",
        "line 1",
        "… 7 more lines",
        "line 9",
    ]
    assert drawn[0].startswith("\x1b[H")
    assert drawn[-1].endswith("\x1b[J")


def test_an_empty_frame_clears_the_screen():
    assert frame([], 24) == ["\x1b[H\x1b[J"]
