"""Programs that the configuration declares for events and queries, run by real daemons."""

import json
import os
import signal

import pytest
from processes import whole_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HANDLERS = """
[[handler]]
on = ["event:deploy", "dead"]
command = ["sh", "-c", "printf '%s ' $MESHD_EVENT$MESHD_EVENT_NAME >> told; cat >> told"]

[[handler]]
on = ["event:bad"]
command = ["sh", "-c", "echo it went wrong >&2; exit 3"]

[[handler]]
on = ["event:long"]
command = ["sh", "-c", "echo $$ > long; exec sleep 60"]

[[handler]]
query = "who"
command = ["sh", "-c", "read asked; echo $MESHD_QUERY $asked"]
"""


@pytest.fixture
def told(site):
    """What the first handler has written: its variables, and the event."""

    def read():
        lines = whole_lines(site.path / "told")
        return [(line.split()[0], json.loads(line.partition(" ")[2])) for line in lines]

    return read


def test_declared_programs_hear_in_order_answer_and_may_fail(site, told):
    config = site.write("meshd.toml", HANDLERS)
    a = site.start("a", "--config", str(config))
    b = site.start("b", join=[a])
    a.sees(a="alive", b="alive")
    site.cli("--node", "b", "event", "bad")
    assert a.line("handler_failed")
    assert any("exit code 3: it went wrong" in line for line in a.lines)
    for version in ("v1", "v2", "v3"):
        site.cli("--node", "b", "event", "deploy", version)
    a.until(lambda: len(told()) == 3, "three events")
    assert [(what, each["payload"]) for what, each in told()] == [
        ("eventdeploy", "v1"), ("eventdeploy", "v2"), ("eventdeploy", "v3"),
    ]  # fmt: skip
    answer = site.cli("--node", "b", "query", "who", "now", "--to", "a", "--timeout", "2s")
    assert answer.stdout == "a  who now\n"
    b.kill()
    a.until(lambda: len(told()) == 4, "the death")
    assert told()[-1][0] == "dead"
    assert told()[-1][1]["name"] == "b"


def test_a_reload_changes_them_and_a_stop_ends_them(site, told):
    config = site.write("meshd.toml", HANDLERS)
    a = site.start("a", "--config", str(config))
    site.cli("event", "long")
    long = site.path / "long"
    a.until(lambda: whole_lines(long), "the long run")
    site.cli("event", "now", "before the reload")
    config.write_text('[[handler]]\non = ["event:now"]\ncommand = ["sh", "-c", "cat >> now"]\n')
    a.send(signal.SIGHUP)
    assert a.line("reloaded")
    site.cli("event", "deploy", "v1")
    site.cli("event", "now", "x")

    def heard():
        return [json.loads(line)["payload"] for line in whole_lines(site.path / "now")]

    a.until(lambda: heard() == ["x"], "the new handler")
    assert told() == []
    # The old handler's program is gone with it.
    a.until(lambda: not _runs(int(long.read_text())), "the end of the long run")
    config.write_text('[[handler]]\non = ["nwo"]\ncommand = ["tee", "now"]\n')
    a.send(signal.SIGHUP)
    assert a.line("reload_failed")
    site.cli("event", "now", "y")
    a.until(lambda: heard() == ["x", "y"], "the handler that stayed")
    assert a.stop() == 0


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
