"""`meshd events`, `meshd event` and `meshd query` against a daemon's stand-in."""

import base64
import io
import json
import sys

import pytest
from stand_in import B_ID, NUC_ID, SELF_ID, RefusalError

from meshd.cli import events as events_command
from meshd.errors import Code
from meshd.happening import Kind

pytestmark = pytest.mark.net
WALL_MS = 1_700_000_000_123
LOG = [
    {"seq": 7, "wall_ms": WALL_MS, "type": "joined", "node": B_ID, "name": "lab-b",
     "incarnation": 0, "reason": "heard of"},
    {"seq": 8, "wall_ms": WALL_MS, "type": "suspect", "node": NUC_ID, "name": "",
     "incarnation": 3, "reason": "no answer to a probe", "accuser": B_ID, "accuser_name": "lab-b"},
    {"seq": 9, "wall_ms": WALL_MS, "type": "event", "node": SELF_ID, "name": "lab-a",
     "event": "deploy", "payload": "v2\x1b[2J", "lamport": 5, "age_s": 0.1},
    {"seq": 10, "wall_ms": WALL_MS, "type": "event", "node": SELF_ID, "name": "lab-a",
     "event": "raw", "payload_base64": "/w==", "lamport": 6, "age_s": 0.1},
]  # fmt: skip


@pytest.fixture
def logged(fake):
    """The stand-in keeps four events, two to a page, and lost three before them."""

    def answer(params):
        after = params.get("after", 0)
        page = [each for each in LOG if each["seq"] > after][:2]
        upto = page[-1]["seq"] if page else max(10, after)
        lost = 3 if params.get("after") == 3 else 0
        return {"schema": "meshd.events/1", "run": 1, "next": upto, "lost": lost, "events": page}

    fake.results["events"] = answer
    return fake


def test_events_shows_when_what_whom_and_why(meshd, logged, monkeypatch):
    monkeypatch.setattr(events_command.time, "localtime", events_command.time.gmtime)
    done = meshd("events")
    assert done.exit == 0
    assert done.out.splitlines() == [
        "22:13:20.123  joined     lab-b  heard of",
        f"22:13:20.123  suspect    {NUC_ID}  no answer to a probe (accuser lab-b)",
        r"22:13:20.123  event      lab-a  deploy  v2\x1b[2J",
        "22:13:20.123  event      lab-a  raw  /w== (base64)",
    ]
    assert logged.calls[0] == ("events", {"last": 20, "types": [], "node": ""})


def test_events_json_is_one_document_of_all_pages(meshd, logged):
    done = meshd("events", "--json", "--since", "3")
    assert done.json == {
        "schema": "meshd.events/1", "run": 1, "next": 10, "lost": 3, "events": LOG,
    }  # fmt: skip


def test_events_says_where_there_are_none(meshd, logged):
    done = meshd("events", "--since", "10")
    assert (done.exit, done.out, done.err) == (0, "", "nothing of that kind has happened\n")


def test_events_of_somebody_unknown_are_not_found_and_of_a_member_may_be_none(meshd, logged):
    done = meshd("events", "nobody", "--since", "10")
    assert (done.exit, "no node is called 'nobody'" in done.err) == (4, True)
    assert meshd("events", "lab-b", "--since", "10").exit == 0


def test_events_warns_of_what_is_gone(meshd, logged):
    assert "3 events are gone" in meshd("events", "--since", "3").err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--since", "10m"], {"since_s": 600.0}),
        (["--since", "6"], {"after": 6}),
        (["-n", "5"], {"last": 5}),
        (["--type", "dead, left", "lab-b"], {"types": ["dead", "left"], "node": "lab-b"}),
    ],
)
def test_events_asks_for_what_is_wanted(meshd, logged, arguments, asked):
    meshd("events", *arguments)
    assert asked.items() <= logged.calls[0][1].items()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--since", "yesterday"], "'--since': 'yesterday' is not a duration"),
        (["--since", "-5"], "or the number of an event"),
        (["--since", "5", "-n", "5"], "give one"),
        (["--type", "happy"], "'happy' is no type"),
    ],
)
def test_events_used_wrongly_says_so(meshd, arguments, text):
    done = meshd("events", *arguments)
    assert (done.exit, text in done.err) == (2, True)


def test_events_that_are_followed_are_a_line_of_json_each_where_piped(meshd, logged):
    done = meshd("events", "-f", "--count", "5", "--since", "3")
    lines = [json.loads(each) for each in done.out.splitlines()]
    assert lines == [{"type": "lost", "lost": 3}, *LOG]
    assert logged.params("events")["wait_s"] > 1
    assert logged.calls[1][1]["after"] == 8
    assert logged.calls[1][1]["run"] == 1


def test_events_that_are_followed_on_a_terminal_are_for_people(meshd, logged, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    meshd("--color", "never", "events", "-f", "--count", "2", "--since", "3")
    first, second = screen.getvalue().splitlines()
    assert first.strip() == "lost       3 events are gone"
    assert "joined     lab-b  heard of" in second


def test_the_types_are_those_of_the_daemon():
    assert sorted(events_command.TYPES) == sorted(Kind)


# Telling


def test_event_tells_a_payload(meshd, fake):
    fake.results["event"] = {"told": True, "name": "deploy", "bytes": 2}
    done = meshd("event", "deploy", "v2", "--coalesce")
    assert (done.exit, done.out, done.err) == (0, "", "told deploy with 2 bytes\n")
    assert fake.params("event") == {"name": "deploy", "payload": "v2", "coalesce": True}
    assert meshd("event", "deploy", "--json").json == {
        "schema": "meshd.event/1", "told": True, "name": "deploy", "bytes": 2,
    }  # fmt: skip


def test_event_reads_a_file_or_stdin(meshd, fake, tmp_path, monkeypatch):
    fake.results["event"] = {"told": True, "name": "x", "bytes": 1}
    (tmp_path / "text").write_text("ü")
    meshd("event", "x", f"@{tmp_path / 'text'}")
    assert fake.params("event")["payload"] == "ü"
    raw = io.TextIOWrapper(io.BytesIO(b"\xff\x00"))
    monkeypatch.setattr(sys, "stdin", raw)
    meshd("event", "x", "-")
    assert base64.b64decode(fake.params("event")["payload_base64"]) == b"\xff\x00"
    done = meshd("event", "x", "@nowhere")
    assert (done.exit, "cannot read nowhere" in done.err) == (2, True)


# Asking


def page(*replies, after=0, ended=True):
    return {"query": 5, "next": after + len(replies), "ended": ended, "replies": list(replies)}


ACK = {"kind": "ack", "node": B_ID, "name": "lab-b"}
ANSWER = {"kind": "answer", "node": B_ID, "name": "lab-b", "payload": "42"}
RAW = {"kind": "answer", "node": SELF_ID, "name": "lab-a", "payload_base64": "/w=="}
FAULT = {"kind": "error", "node": NUC_ID, "name": "", "error": "not today"}


def ask(fake, *pages, nodes=()):
    waiting = list(pages)
    fake.results["query"] = {
        "query": 5, "timeout_s": 3.2, "members": 3, "nodes": list(nodes),
    }  # fmt: skip
    fake.results["answers"] = lambda _params: waiting.pop(0)


def test_query_prints_answers_as_they_come(meshd, fake):
    ask(fake, page(ACK, ANSWER, ended=False), page(RAW, FAULT, after=2))
    done = meshd("query", "size", "?", "--timeout", "2s", "--capability", "ocr")
    assert done.exit == 0
    assert done.out.splitlines() == [
        "lab-b  42", "lab-a  /w== (base64)", f"{NUC_ID}  error: not today",
    ]  # fmt: skip
    assert done.err == "3 answered · 3 nodes got it\n"
    assert fake.params("query") == {
        "name": "size", "payload": "?", "nodes": [], "capability": "ocr", "timeout_s": 2.0,
    }  # fmt: skip
    assert fake.params("answers")["after"] == 2


def test_query_json_is_one_document(meshd, fake):
    ask(fake, page(ACK, ANSWER))
    assert meshd("query", "size", "--json").json == {
        "schema": "meshd.query/1", "name": "size", "members": 3, "got": 1, "replies": [ANSWER],
    }  # fmt: skip
    assert "timeout_s" not in fake.params("query")


@pytest.mark.parametrize(("nodes", "told"), [((), "1 of 3 nodes"), (("lab-b",), "1 of 1 node")])
def test_query_says_how_many_of_those_who_are_meant_got_it(meshd, fake, nodes, told):
    ask(fake, page(ACK), nodes=nodes)
    arguments = [word for node in nodes for word in ("--to", node)]
    assert meshd("query", "size", *arguments).err == f"0 answered · {told} got it\n"


@pytest.mark.parametrize(
    ("replies", "nodes", "code"),
    [
        ((ACK,), (), 4),
        ((FAULT,), (), 1),
        ((FAULT, ANSWER), (), 0),
        ((ANSWER,), ("lab-b", "nuc"), 5),
        ((ANSWER, FAULT), ("lab-b", "nuc"), 0),
    ],
)
def test_query_exits_by_who_answered(meshd, fake, replies, nodes, code):
    ask(fake, page(*replies), nodes=nodes)
    arguments = [word for node in nodes for word in ("--to", node)]
    assert meshd("query", "size", *arguments).exit == code


def test_query_to_nobody_is_not_found(meshd, fake):
    fake.results["query"] = RefusalError(Code.NO_CANDIDATE, "no living node 'x' is known")
    assert meshd("query", "size", "--to", "x").exit == 4
