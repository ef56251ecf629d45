"""`[[handler]]` tables: what they may say, and which events a handler is run for."""

import pytest

from meshd.errors import UsageError
from meshd.event_handler import HANDLERS_MAX, handlers_from_config
from meshd.happening import Event, Kind


def happened(kind, name=""):
    return Event(1, 0, kind, "00" * 8, event=name)


def test_a_handler_is_run_for_the_types_and_names_that_it_asks_for():
    (some,) = handlers_from_config([{"on": ["dead", "event:deploy"], "command": ["notify"]}])
    assert some.wants(happened(Kind.DEAD))
    assert some.wants(happened(Kind.EVENT, "deploy"))
    assert not some.wants(happened(Kind.EVENT, "other"))
    assert not some.wants(happened(Kind.JOINED))
    assert some.label == "dead,event:deploy: notify"
    (any_event,) = handlers_from_config([{"on": ["event"], "command": ["notify"]}])
    assert any_event.wants(happened(Kind.EVENT, "other"))


def test_a_query_has_one_handler():
    (answerer,) = handlers_from_config([{"query": "uptime", "command": ["uptime"]}])
    assert answerer.label == "uptime: uptime"
    assert not answerer.wants(happened(Kind.EVENT, "uptime"))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"on": ["dead"]}, "missing required field `command`"),
        ({"on": ["dead"], "command": []}, "command is empty"),
        ({"on": ["dead"], "command": ["x"], "time_s": 1}, "did you mean 'timeout_s'?"),
        ({"on": ["dead"], "command": ["x"], "zzz": 1}, "unknown key 'zzz'"),
        ({"on": "dead", "command": ["x"]}, "Expected `array`"),
        ({"command": ["x"]}, "exactly one of on"),
        ({"on": ["dead"], "query": "x", "command": ["x"]}, "exactly one of on"),
        ({"on": ["died"], "command": ["x"]}, "did you mean 'dead'? types: joined"),
        ({"on": ["event:a b"], "command": ["x"]}, "there is no event 'event:a b'"),
        ({"query": "a b", "command": ["x"]}, "query 'a b' is not a valid name"),
        ({"query": "q", "command": ["x"]}, "query 'q' has a handler already"),
        ({"on": ["dead"], "command": ["x\0"]}, "null characters"),
        ({"on": ["dead"], "command": ["x"], "timeout_s": 0}, "timeout_s must be above 0"),
    ],
)
def test_what_is_wrong_is_said(table, fault):
    tables = [{"query": "q", "command": ["x"]}, table]
    with pytest.raises(UsageError) as refused:
        handlers_from_config(tables)
    assert refused.value.message.startswith("handler 2: ")
    assert fault in refused.value.message


def test_all_faults_are_listed_and_the_number_is_bounded():
    with pytest.raises(UsageError) as refused:
        handlers_from_config([{"command": []}] * (HANDLERS_MAX + 1))
    assert refused.value.message.count("command is empty") == HANDLERS_MAX
    assert f"more than {HANDLERS_MAX} handlers" in refused.value.message
