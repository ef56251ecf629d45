"""Following, telling and asking as users do it: real daemons, programs and commands."""

import json
import os
import subprocess

import pytest
from processes import HERE, MESHD, whole_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def follow(site):
    """`meshd events -f` of a daemon into a file, as long as the test lasts."""
    running = []

    def start(daemon, *flags):
        out = site.path / f"events-{daemon.name}"
        with out.open("w") as file:
            process = subprocess.Popen(
                (*MESHD, "--node", daemon.name, "events", "-f", "-n", "0", *flags),
                env=site.env, cwd=site.path, stdout=file, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        running.append(process)
        return lambda: [json.loads(line) for line in whole_lines(out)]

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_who_follows_sees_a_death_an_event_and_a_return_in_order(site, follow):
    a, _, c = site.start_mesh("a", "b", "c")
    id_of_c = c.id
    told = follow(a, "--json")
    # It follows once it shows what happens; what happened before is none of its business.
    a.until(lambda: site.cli("--node", "b", "event", "tick") and told(), "the follower's start")
    c.kill()
    a.sees(a="alive", b="alive", c="dead")
    assert site.cli("--node", "b", "event", "deploy", "v2").returncode == 0
    a.until(lambda: any(e.get("payload") == "v2" for e in told()), "the event")
    site.start("c", join=[a])
    a.until(lambda: any(e["type"] == "restarted" for e in told()), "the return")
    types = [e["type"] for e in told() if e["node"] == id_of_c and e["type"] != "updated"]
    assert types == ["suspect", "dead", "restarted"]
    suspect = next(e for e in told() if e["type"] == "suspect")
    assert suspect["name"] == "c"
    assert suspect["accuser_name"] in {"a", "b"}
    numbers = [e["seq"] for e in told()]
    assert numbers == sorted(set(numbers))
    shown = site.cli("--node", "a", "events", "c", "--type", "dead,restarted").stdout
    assert [line.split()[1] for line in shown.splitlines()] == ["dead", "restarted"]


def test_programs_hear_and_answer_through_their_daemon_and_again_when_it_is_back(site):
    a, b = site.start_mesh("a", "b")
    program = site.program(str(HERE / "answering_program.py"), a.control.path)
    assert program.line("starting")

    def asked():
        done = site.cli("--node", "b", "query", "who", "now", "--to", "a", "--timeout", "1s")
        return done.stdout if done.returncode == 0 else ""

    assert program.until(asked, "an answer") == "a  I am asked now\n"
    # The local profile's rates and a program that is up: it hears each event once.
    site.cli("--node", "b", "event", "deploy", "v1")
    assert program.line("heard v1")
    assert a.stop() == 0
    again = site.start("a", join=[b])
    assert again.started
    assert program.until(asked, "an answer after the restart") == "a  I am asked now\n"

    def heard_again():
        site.cli("--node", "b", "event", "deploy", f"v{os.urandom(2).hex()}")
        return sum("heard v" in line for line in program.lines) > 1

    program.until(heard_again, "an event after the restart")
    assert sum(line == "heard v1" for line in program.lines) == 1


def test_a_question_that_nobody_answers_is_not_found(site):
    site.start("a")
    done = site.cli("query", "who", "--timeout", "300ms")
    assert (done.returncode, done.stdout) == (4, "")
    assert "1 of 1 node got it" in done.stderr
