"""`meshd trace --decisions`: for people, for programs, and what is said where there is nothing."""

import math

import pytest

from meshd.cli.output import NONE

pytestmark = pytest.mark.net

DECISION = {
    "number": 7, "wall_ms": 0, "capability": "sum", "took_ms": 12.34, "ok": True,
    "attempts": [
        {"node": "4b", "name": "lab-b", "outcome": "busy", "latency_ms": 1.0, "error": "full"},
        {"node": "9f", "name": "lab-a", "outcome": "ok", "latency_ms": 11.0},
    ],
    "explain": {
        "policy": "adaptive", "capability": "sum", "chosen": {"node": "9f", "name": "lab-a"},
        "candidates": [{"node": "9f", "name": "lab-a", "score": 0.25, "factors": {"rif": 1}}],
        "left_out": [{"node": "4b", "name": "lab-b", "why": "was already tried in this call"}],
    },
}  # fmt: skip


@pytest.fixture
def answer(fake):
    def answer(*decisions):
        document = {"schema": "meshd.decisions/1", "count": 7, "decisions": list(decisions)}
        fake.results["decisions"] = document
        return document

    return answer


def test_a_decision_says_how_it_ended_whom_it_went_to_and_why(meshd, answer):
    answer(DECISION)
    done = meshd("trace", "--decisions")
    first, *rest = done.out.splitlines()
    assert first.startswith("#7  ")
    assert first.endswith("  sum  ok  12.3 ms")
    assert rest == [
        "  sent to lab-b: busy after 1.0 ms (full)",
        "  sent to lab-a: ok after 11.0 ms",
        "  sum by policy adaptive → lab-a (score 0.25: rif 1)",
        "    not lab-b: was already tried in this call",
    ]


def test_an_infinite_score_which_json_has_as_null_is_last(meshd, answer):
    plan = DECISION["explain"]
    row = {"node": "9f", "name": "lab-a", "score": None, "factors": {"cost": None, "rif": 1}}
    answer({**DECISION, "explain": {**plan, "candidates": [row, {**row, "score": math.inf}]}})
    lines = meshd("trace", "--decisions").out.splitlines()
    assert f"  sum by policy adaptive → lab-a (score last: cost {NONE}, rif 1)" in lines
    assert f"    then lab-a (score last: cost {NONE}, rif 1)" in lines


def test_who_was_asked_how_busy_it_is_and_who_was_not_looked_at_are_told(meshd, answer):
    probes = [
        {"node": "9f", "name": "lab-a", "answered": True, "rtt_s": 0.0012, "rif": 3},
        {"node": "4b", "name": "lab-b", "answered": False, "rtt_s": None, "rif": None},
    ]
    plan = DECISION["explain"]
    answer({**DECISION, "explain": {**plan, "probes": probes, "is_whole": False}})
    lines = meshd("trace", "--decisions").out.splitlines()
    assert "    asked lab-a how busy it is: 3 under way or waiting, after 1.2 ms" in lines
    assert "    asked lab-b how busy it is: no answer by then" in lines
    assert lines[-1].endswith("a few are drawn; --explain tells all")
    answer({**DECISION, "explain": {**plan, "not_probed": "there is no choice"}})
    lines = meshd("trace", "--decisions").out.splitlines()
    assert "    nobody was asked how busy it is: there is no choice" in lines


def test_a_failed_one_says_its_error_and_needs_no_plan(meshd, answer):
    answer({**DECISION, "ok": False, "error": "time ran out", "attempts": [], "explain": None})
    done = meshd("trace", "--decisions")
    assert done.out.splitlines()[0].endswith("  sum  time ran out  12.3 ms")
    assert done.out.count("\n") == 1


def test_the_choice_reaches_the_daemon_and_json_is_its_document(meshd, fake, answer):
    document = answer(DECISION)
    done = meshd("trace", "--decisions", "-n", "3", "--capability", "sum", "--json")
    assert done.json == document
    assert fake.params("decisions") == {"last": 3, "capability": "sum"}


def test_nothing_decided_yet_is_said(meshd, answer):
    answer()
    done = meshd("trace", "--decisions", "--capability", "sum")
    assert (done.exit, done.out) == (0, "")
    assert "no call of 'sum' was decided here yet" in done.err


@pytest.mark.parametrize("arguments", [[], ["--decisions", "-n", "0"], ["--decisions", "-n", "65"]])
def test_what_is_not_said_or_out_of_range_is_wrong_usage(meshd, fake, arguments):
    done = meshd("trace", *arguments)
    assert done.exit == 2
    assert "--decisions" in done.err or "range" in done.err
