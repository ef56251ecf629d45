"""Each client command against a daemon's stand-in: its table, its JSON, its exit code."""

import io
import os
import re
import shlex
import subprocess
import sys

import pytest
from stand_in import B_ID, NUC_ID, PEERS, SELF_ID, RefusalError

from meshd.cli import stop
from meshd.cli.output import NONE
from meshd.errors import Code

pytestmark = pytest.mark.net


def test_peers_shows_the_table_of_the_mesh(meshd, fake):
    done = meshd("peers")
    away = "(2 of 3 confirmations, dead in 3.2s, unreachable from here)"
    assert done.exit == 0
    assert done.out.replace(NONE, "-").splitlines() == [
        "NODE     STATE    ADDRESS            CPU  MEM  INFL  RTT     CAPABILITIES   SEEN  VERSION",
        "lab-a *  alive    192.168.1.17:6374  12%  41%   0/8  -       translate,ocr  -     0.1.0",
        "lab-b    alive    192.168.1.18:6374  63%  58%   5/8  0.8 ms  sum,translate  0.3s  0.1.0",
        "nuc      suspect  [fd00::40]:6374     9%  22%   0/4  -       render         4.1s  0.1.0  "
        + away,
        "3 nodes: 2 alive, 1 suspect · view 7c1e",
    ]  # fmt: skip


def test_peers_json_is_the_daemons_document(meshd, fake):
    done = meshd("peers", "--json")
    assert done.json == PEERS
    assert done.out.count("\n") == 1


def test_peers_wide_adds_ids_and_urls(meshd, fake):
    done = meshd("peers", "-o", "wide")
    assert re.search(rf"^lab-b .* {B_ID} +3 +1  http://192.168.1.18:6374$", done.out, re.MULTILINE)


def test_peers_jsonl_is_one_row_a_line(meshd, fake):
    assert meshd("peers", "-o", "jsonl").out.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "lab-a lab-b nuc"),
        (["lab-*"], "lab-a lab-b"),
        (["nuc"], "nuc"),
        ([B_ID], "lab-b"),
        ([B_ID[:6]], "lab-b"),
        (["--state", "suspect,dead"], "nuc"),
        (["--cap", "transl*"], "lab-a lab-b"),
        (["--sort", "cpu"], "nuc lab-a lab-b"),
        (["--sort", "mem"], "nuc lab-a lab-b"),
        (["--sort", "rtt"], "lab-b lab-a nuc"),
        (["--sort", "age"], "lab-a lab-b nuc"),
        (["--sort", "state"], "lab-a lab-b nuc"),
        (["--sort", "name"], "lab-a lab-b nuc"),
        (["--state", "left"], ""),
    ],
)
def test_peers_filters_and_sorts(meshd, fake, arguments, names):
    done = meshd("peers", "-o", "name", *arguments)
    assert (done.exit, done.out.split()) == (0, names.split())


def test_peers_quiet_prints_ids(meshd, fake):
    assert meshd("peers", "-q", "nuc").out == NUC_ID + "\n"


def test_an_unknown_node_is_not_found_and_a_near_name_suggested(meshd, fake):
    done = meshd("peers", "lab-bb")
    assert done.exit == 4
    assert "no node is called 'lab-bb'  [MESHD-E004]" in done.err
    assert "did you mean 'lab-b'?" in done.err
    assert "known nodes: lab-a, lab-b, nuc" in meshd("peers", "xyz").err


def test_a_clashing_name_is_a_usage_error_that_lists_the_ids(meshd, fake):
    twin = {**PEERS["nodes"][1], "id": "ffff000000000099"}
    fake.results["peers"] = {**PEERS, "nodes": [*PEERS["nodes"], twin]}
    done = meshd("info", "lab-b")
    assert done.exit == 2
    assert "names 2 nodes" in done.err
    assert twin["id"] in done.err


def test_a_name_means_the_living_one_of_its_bearers(meshd, fake):
    old = {**PEERS["nodes"][1], "id": "ffff000000000099", "state": "dead"}
    fake.results["peers"] = {**PEERS, "nodes": [old, *PEERS["nodes"]]}
    assert meshd("peers", "lab-b", "-q").out == f"{PEERS['nodes'][1]['id']}\n"


def test_a_call_may_take_a_day_and_no_longer(meshd):
    done = meshd("call", "x", "--timeout", "25h")
    assert done.exit == 2
    assert "at most 86400s" in done.err


def test_an_unknown_state_is_a_usage_error(meshd, fake):
    done = meshd("peers", "--state", "happy")
    assert done.exit == 2
    assert "choose from alive, suspect, dead, left" in done.err


def test_peers_watch_writes_a_document_a_line_when_piped(meshd, fake):
    done = meshd("peers", "--watch=0.1", "--count", "2")
    assert done.out.count('{"schema":"meshd.peers/1"') == done.out.count("\n") == 2


def test_peers_watch_redraws_on_a_terminal_and_restores_it(meshd, fake, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    assert meshd("peers", "--watch=0.1", "--count", "2").exit == 0
    text = screen.getvalue()
    assert text.count("\x1b[H") == 2
    assert text.startswith("\x1b[?25l")
    assert text.endswith("\x1b[?25h\x1b[?7h\n")


def test_watched_names_stay_names_when_piped(meshd, fake):
    done = meshd("peers", "-o", "name", "--watch=0.1", "--count", "1")
    assert done.out.split() == ["lab-a", "lab-b", "nuc"]


def test_what_peers_call_themselves_cannot_move_the_cursor(meshd, fake):
    evil = {**PEERS["nodes"][1], "name": "x\x1b[2J", "version": "\u202e"}
    fake.results["peers"] = {**PEERS, "nodes": [evil]}
    for form in ("table", "wide", "json", "jsonl", "name"):
        assert "\x1b" not in meshd("peers", "-o", form).out
        assert "\u202e" not in meshd("peers", "-o", form).out


def test_colour_is_added_to_the_word_and_never_replaces_it(meshd, fake):
    painted = meshd("--color", "always", "peers").out
    assert "\x1b[33msuspect\x1b[0m" in painted
    assert re.sub(r"\x1b\[\d+m", "", painted) == meshd("peers", "--color", "never").out


def test_info_tells_everything_of_one_node(meshd, fake):
    fake.results["explain"] = {"node": B_ID, "state": "alive", "history": []}
    done = meshd("info", "lab-b")
    assert done.exit == 0
    assert "cpu 63%, mem 58%, 5/8 in flight" in done.out
    assert "history      nothing recorded" in done.out
    assert fake.params("explain") == {"node": B_ID}
    document = meshd("info", "lab-b", "--json").json
    assert document["schema"] == "meshd.node/2"
    assert document["belief"] == {"node": B_ID, "state": "alive", "history": []}


def test_info_of_this_node_adds_its_own_words(meshd, fake):
    fake.results["explain"] = {"node": SELF_ID, "state": "alive", "history": []}
    fake.results["info"] = {"uptime_s": 7200.0, "mesh": "default", "agent": "nlp"}
    done = meshd("info")
    assert re.search(r"^up +2h$", done.out, re.MULTILINE)
    assert "history" not in done.out
    assert meshd("info", "--json").json["info"]["agent"] == "nlp"


def test_capabilities_shows_who_offers_what(meshd, fake):
    done = meshd("caps")
    assert done.out.splitlines() == [
        "CAPABILITY  VERSION  REPEATABLE  NODES          DESCRIPTION",
        "translate   1.2.0    yes         lab-a *,lab-b  Turn text into another language.",
        "render      1.0.0    no          nuc            Draw.",
        "2 capabilities on 3 nodes",
    ]
    assert meshd("capabilities", "--json").json["schema"] == "meshd.capabilities/1"
    assert meshd("caps", "-q", "--tag", "nlp").out == "translate\n"
    assert "nlp" in meshd("caps", "-o", "wide").out
    assert meshd("caps", "-o", "jsonl").out.count("\n") == 2


def test_capabilities_passes_its_filters_on(meshd, fake):
    meshd("caps", "--own")
    assert fake.params("capabilities") == {"node": "self"}
    meshd("caps", "--on", "lab-b")
    assert fake.params("capabilities") == {"node": "lab-b"}
    assert meshd("caps", "--own", "--on", "lab-b").exit == 2


def test_one_capability_is_shown_with_its_schemas(meshd, fake):
    done = meshd("caps", "translate")
    assert '"type": "object"' in done.out
    assert "lab-b  alive" in done.out


def test_an_unknown_capability_is_not_found(meshd, fake):
    done = meshd("caps", "transmogrify", "--json")
    assert (done.exit, done.error["code"]) == (4, "MESHD-E004")


def test_no_capabilities_is_an_empty_table(meshd, fake):
    fake.results["capabilities"] = {"capabilities": []}
    done = meshd("caps")
    assert done.exit == 0
    assert "0 capabilities on 0 nodes" in done.out
    assert "meshd start --capability" in done.err


DISCOVERED = {
    "schema": "meshd.discover/1",
    "query": "q",
    "matches": [
        {"capability": "translate", "score": 0.714, "why": "name", "description": "Turn text.",
         "tags": [], "nodes": ["lab-b", {"name": "lab-a"}]},
    ],
}  # fmt: skip


def test_discover_ranks_and_explains(meshd, fake):
    fake.results["discover"] = DISCOVERED
    done = meshd("discover", "into", "German", "--explain", "--tag", "nlp", "--limit", "3")
    assert done.out.splitlines() == [
        "SCORE  CAPABILITY  NODES        WHY",
        "0.71   translate   lab-b,lab-a  name",
    ]
    assert fake.params("discover") == {"query": "into German", "tags": ["nlp"], "limit": 3}
    assert "Turn text." in meshd("discover", "x").out
    assert meshd("discover", "x", "--json").json == DISCOVERED
    assert meshd("discover", "x", "-o", "name").out == "translate\n"
    assert meshd("discover", "x", "-o", "jsonl").out.count("\n") == 1
    assert meshd("discover", "x", "--watch=0.1", "--count=1").json == DISCOVERED


def test_discover_without_a_match_is_not_found(meshd, fake):
    fake.results["discover"] = {**DISCOVERED, "matches": []}
    done = meshd("discover", "x", "--json")
    assert (done.exit, done.json["matches"]) == (4, [])


EXPLAINED = {
    "policy": "adaptive",
    "capability": "translate",
    "chosen": {"node": B_ID, "name": "lab-b"},
    "candidates": [
        {"node": B_ID, "name": "lab-b", "score": 0.0123, "factors": {"eta_s": 0.0123}},
        {"node": "1", "name": "lab-a", "score": 2, "factors": {}},
    ],
    "left_out": [{"node": str(i), "name": f"n{i}", "why": "suspect"} for i in range(10)],
}


def delegated(result, **more):
    return {
        "delegated_to": {"agent": "nlp", "node": "lab-b", "cpu": 63.0, "mem": 58.0,
                         "latency_ms": 0.8, "url": "http://192.168.1.18:6374"},
        "peer_result": {"agent": "nlp", "node": "lab-b", "result": result, "rpc_latency_ms": 11.0},
        "rpc_latency_ms": 12.4,
        "attempts": [{"node": B_ID, "name": "lab-b", "outcome": "ok", "latency_ms": 11.0}],
        **more,
    }  # fmt: skip


def test_call_prints_the_result_alone_and_tells_the_rest_on_stderr(meshd, fake):
    fake.results["delegate"] = delegated({"text": "hällo"})
    done = meshd("call", "translate", "text=hello", "n=3", "--to", "lab-b", "--timeout", "500ms")
    assert done.json == {"text": "hällo"}
    assert "hällo" in done.out
    assert done.err == "lab-b · agent nlp · 12.4 ms\n"
    assert fake.params("delegate") == {
        "capability": "translate",
        "input": {"text": "hello", "n": 3},
        "to": "lab-b",
        "deadline_ms": 500,
    }


def test_call_prints_a_string_as_it_is(meshd, fake):
    fake.results["delegate"] = delegated("two\nlines\x1b")
    assert meshd("call", "translate").out == "two\nlines\x1b\n"


def test_call_json_is_the_whole_answer(meshd, fake):
    fake.results["delegate"] = delegated(5)
    document = meshd("call", "translate", "-d", "[1]", "--json").json
    assert document["schema"] == "meshd.call/1"
    assert document["peer_result"]["result"] == 5
    assert fake.params("delegate")["input"] == [1]


def test_call_explains_the_choice(meshd, fake):
    fake.results["delegate"] = delegated(5, explain=EXPLAINED)
    done = meshd("call", "translate", "--explain", "--policy", "adaptive", "--idempotency-key", "k")
    assert done.out == "5\n"
    assert done.err.splitlines()[:3] == [
        "translate by policy adaptive → lab-b (score 0.0123: eta_s 0.0123)",
        "  then lab-a (score 2)",
        "  not n0: suspect",
    ]
    assert "… and 2 others" in done.err
    assert fake.params("delegate")["policy"] == "adaptive"
    assert fake.params("delegate")["idempotency_key"] == "k"


def test_quiet_leaves_the_notes_out(meshd, fake):
    fake.results["delegate"] = delegated(5)
    assert meshd("-q", "call", "translate").err == ""


def test_a_retry_is_told(meshd, fake):
    tries = [{"name": "nuc", "outcome": "busy"}, {"name": "lab-b", "outcome": "ok"}]
    fake.results["delegate"] = delegated(5, attempts=tries)
    assert "after nuc: busy" in meshd("call", "translate").err


def test_a_dry_run_calls_nobody(meshd, fake):
    done = meshd("call", "translate", "a=1", "--dry-run")
    assert "one of: lab-a, lab-b" in done.out
    assert [method for method, _ in fake.calls] == ["capabilities"]
    document = meshd("call", "translate", "--dry-run", "--to", "lab-b", "--json").json
    assert [n["name"] for n in document["candidates"]] == ["lab-b"]
    assert meshd("call", "render", "--dry-run").exit == 4
    assert meshd("call", "translate", "--dry-run", "--to", "nuc").exit == 4


def test_call_reads_stdin(meshd, fake, monkeypatch):
    fake.results["delegate"] = delegated(None)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}')))
    assert meshd("call", "translate", "-").out == "null\n"
    assert fake.params("delegate")["input"] == {"a": 1}


def test_invalid_json_is_a_usage_error(meshd, fake):
    done = meshd("call", "translate", "-d", "{oops")
    assert done.exit == 2
    assert "-d is not valid JSON" in done.err
    assert fake.calls == []


def test_delegate_prints_the_whole_envelope(meshd, fake):
    fake.results["delegate"] = delegated(5)
    done = meshd("delegate", "translate", "text=x")
    assert done.json["delegated_to"]["node"] == "lab-b"
    assert done.json["schema"] == "meshd.delegate/1"
    assert fake.params("delegate")["capability"] == "translate"
    assert meshd("delegate", "translate", "--json").json == done.json


def test_delegate_hands_plain_text_over(meshd, fake):
    fake.results["delegate"] = delegated(5)
    meshd("delegate", "summarise this")
    assert fake.params("delegate") == {"text": "summarise this"}


@pytest.mark.parametrize(
    ("given", "deadline_ms"), [([], 3_600_000), (["--timeout", "10m"], 600_000)]
)
def test_what_is_handed_in_has_an_hour_unless_it_is_given_another_time(
    meshd, fake, given, deadline_ms
):
    meshd("call", "--detach", "render", *given)
    assert fake.params("task.submit")["deadline_ms"] == deadline_ms
    meshd("call", "render")
    assert "deadline_ms" not in fake.params("delegate"), "its capability may have one of its own"


def test_delegate_describes_a_need_beside_its_input(meshd, fake):
    fake.results["delegate"] = delegated(5)
    meshd("delegate", "into German", "text=x", "--to", "lab-b")
    assert fake.params("delegate") == {
        "need": "into German",
        "input": {"text": "x"},
        "to": "lab-b",
    }


def test_ping_tells_each_reply_and_sums_up(meshd, fake):
    replies = iter([{"rtt_ms": 0.8}, {"rtt_ms": None, "error": "timeout"}, {"rtt_ms": 1.2}])
    fake.results["probe"] = lambda params: {"replies": [next(replies)]}
    done = meshd("ping", "lab-b", "-i", "0", "--via", "rpc")
    assert done.exit == 0
    assert done.out.splitlines() == [
        "lab-b (192.168.1.18:6374) rpc seq=1  0.8 ms",
        "lab-b (192.168.1.18:6374) rpc seq=2  timeout",
        "lab-b (192.168.1.18:6374) rpc seq=3  1.2 ms",
        "3 sent, 2 answered, 33% lost · min 0.8 ms · mean 1.0 ms · max 1.2 ms",
    ]
    assert fake.params("probe") == {"node": B_ID, "count": 1, "via": "rpc"}


def test_ping_without_an_answer_exits_with_the_deadlines_code(meshd, fake):
    fake.results["probe"] = {"replies": [{"rtt_ms": None}]}
    assert meshd("ping", "nuc", "-c", "1").exit == 5
    document = meshd("ping", "nuc", "-c", "1", "--json").json
    assert document["schema"] == "meshd.ping/1"
    assert document["replies"] == [{"rtt_ms": None, "seq": 1}]


CHECKS = {
    "schema": "meshd.doctor/1",
    "checks": [
        {"name": "daemon", "status": "ok", "detail": "running", "fix": ""},
        {"name": "udp 6374", "status": "error", "detail": "one-way", "fix": "open it\nreally"},
        {"name": "key", "status": "warning", "detail": "none", "fix": ""},
    ],
}


def test_doctor_marks_what_is_wrong_and_exits_degraded(meshd, fake):
    fake.results["doctor"] = CHECKS
    done = meshd("doctor", "--deep")
    assert done.exit == 7
    assert done.out.splitlines() == [
        "✔ daemon    running",
        "✖ udp 6374  one-way",
        "            fix: open it",
        "                 really",
        "⚠ key       none",
        "1 error, 1 warning",
    ]
    assert fake.params("doctor") == {"deep": True}
    assert meshd("doctor", "--json").json == CHECKS


def test_doctor_with_all_well_exits_ok(meshd, fake):
    fake.results["doctor"] = {"checks": CHECKS["checks"][:1]}
    done = meshd("doctor")
    assert (done.exit, done.out.splitlines()[-1]) == (0, "nothing is wrong (1 check)")


STATUS = {
    "schema": "meshd.status/1", "healthy": True, "name": "lab-a", "id": "9f3c", "mesh": "default",
    "version": "0.1.0", "pid": 4121, "address": "192.168.1.17:6374", "socket": "/run/a.sock",
    "state_dir": "/var/a", "uptime_s": 10_800.0, "profile": "lan",
    "members": {"alive": 2, "suspect": 1, "dead": 0, "left": 0},
    "tasks": {"in_flight": 1, "queue": 0, "done": 9, "failed": 0},
    "gossip": {"packets_sent": 5, "packets_received": 6, "odd": 1},
    "discovery": [{"source": "mdns", "state": "ok", "detail": "eth0"},
                  {"source": "seeds", "state": "off", "detail": ""}],
    "loop_lag_s": 0.004, "problems": [],
}  # fmt: skip


def test_status_is_one_screen(meshd, fake):
    fake.results["status"] = STATUS
    done = meshd("status", "--check")
    assert done.exit == 0
    assert done.out.splitlines() == [
        "node       lab-a  (9f3c)  mesh default",
        "health     healthy",
        "daemon     meshd 0.1.0, pid 4121, up 3h, profile lan, loop lag 4.0 ms",
        "address    192.168.1.17:6374",
        "members    2 alive, 1 suspect, 0 dead, 0 left",
        "tasks      1 in flight, 0 queue, 9 done, 0 failed",
        "gossip     packets sent 5, packets received 6, 1 more: --json",
        "discovery  mdns: ok  (eth0)",
        "           seeds: off",
        "socket     /run/a.sock",
        "state      /var/a",
    ]
    assert meshd("status", "--json").json == STATUS
    assert meshd("status", "--watch=0.1", "--count=1").json == STATUS


def test_a_degraded_node_fails_its_check(meshd, fake):
    fake.results["status"] = {**STATUS, "healthy": False, "problems": ["clock is off"]}
    assert meshd("status").exit == 0
    done = meshd("status", "--check")
    assert done.exit == 7
    assert "health     degraded\n           - clock is off" in done.out


def test_join_tells_how_many_answered(meshd, fake):
    fake.results["join"] = {"joined": 1, "contacted": 2}
    assert meshd("join", "10.0.0.1", "nuc").out == "joined through 1 of 2 addresses\n"
    assert fake.params("join") == {"addresses": ["10.0.0.1", "nuc"]}
    assert meshd("join", "nuc", "--json").json["schema"] == "meshd.join/1"


def test_a_join_that_nobody_answers_fails(meshd, fake):
    fake.results["join"] = {"joined": 0, "contacted": 1}
    done = meshd("join", "nuc")
    assert done.exit == 1
    assert "nobody answered at nuc" in done.err


def test_leave_says_who_heard_it(meshd, fake):
    fake.results["leave"] = {"left": True, "heard_by": 1}
    assert meshd("leave", "--drain", "2s").out == "left the mesh; 1 node heard it\n"
    assert fake.params("leave") == {"drain_s": 2.0}
    fake.results["status"] = {"drain_s": 90.0}
    assert meshd("leave", "--json").json == {
        "schema": "meshd.leave/1",
        "left": True,
        "heard_by": 1,
    }
    assert fake.params("leave") == {"drain_s": 90.0}


def test_leave_and_stop_wait_as_long_as_the_daemon_may_drain(meshd, fake, monkeypatch):
    waited = []
    monkeypatch.setattr(stop, "wait_until_gone", lambda session, for_s: waited.append(for_s))
    fake.results.update(stop={"stopping": True, "drain_s": 90.0})
    assert meshd("stop").exit == 0
    assert waited == [90.0 + stop.END_WITHIN_S]


def test_reload_says_what_changed(meshd, fake):
    fake.results["reload"] = {"capabilities": ["a", "b"], "changed": []}
    assert meshd("reload").out == "changed: nothing\noffers: a, b\n"
    assert meshd("reload", "--json").json["capabilities"] == ["a", "b"]
    fake.results["reload"] = {"capabilities": [], "changed": ["a"], "routing": ["capability.b*"]}
    assert meshd("reload").out == "changed: a\noffers: nothing\nrouting: capability.b*\n"


def test_stop_waits_until_the_daemon_is_gone(meshd, fake):
    answers = iter([{"node": "x"}, {"node": "x"}])

    def ping(params):
        answer = next(answers, None)
        if answer is None:
            fake.vanish()
            raise RefusalError(Code.INTERNAL, "closing")
        return answer

    fake.results.update(stop={"stopping": True}, ping=ping)
    done = meshd("stop", "--drain", "1s", "--json")
    assert done.json == {"schema": "meshd.stop/1", "stopping": True, "stopped": True}
    assert fake.params("stop") == {"drain_s": 1.0}


def test_stop_can_return_at_once(meshd, fake):
    fake.results["stop"] = {"stopping": True}
    assert meshd("stop", "--now", "--no-wait").out == "stopping\n"
    assert fake.params("stop") == {"now": True}
    assert meshd("stop", "--now", "--drain", "1s").exit == 2


def test_a_daemon_that_does_not_stop_is_told_of(meshd, fake, monkeypatch):
    monkeypatch.setattr(stop, "END_WITHIN_S", 0.1)
    fake.results.update(stop={"stopping": True}, ping={})
    done = meshd("stop", "--now")
    assert done.exit == 5
    assert "still answers 0.1 s after" in done.err


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_error(fake):
    command = (
        f"{shlex.quote(sys.executable)} -m meshd peers -o jsonl --watch=0.1 --count 50 | head -n 1"
    )
    environment = {**os.environ, "MESHD_SOCKET": str(fake.path)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def estimated(fake):
    """The second of the canned nodes was not measured, but its distance is estimated."""
    one, two, *rest = PEERS["nodes"]
    guess = {**two, "rtt_ms": None, "rtt_estimate_ms": 12.34, "rtt_estimate_error": 0.182}
    fake.results["peers"] = {**PEERS, "nodes": [one, guess, {**rest[0], "rtt_ms": 40.0}]}


def test_an_estimated_round_trip_is_marked_and_sorted_as_if_it_were_measured(meshd, fake):
    estimated(fake)
    assert re.search(r"^lab-b .* ~12.3 ms ", meshd("peers").out, re.MULTILINE)
    assert meshd("peers", "--sort", "rtt", "-o", "name").out.split() == ["lab-b", "nuc", "lab-a"]


def test_info_and_ping_tell_what_coordinates_say(meshd, fake):
    estimated(fake)
    words = "12.3 ms by coordinates, give or take 18%"
    belief = {"node": B_ID, "state": "alive", "history": []}
    fake.results |= {"capabilities": {"capabilities": []}, "explain": belief}
    assert words in meshd("info", "lab-b").out
    assert "by coordinates" not in meshd("info", "nuc").out
    fake.results["probe"] = {"replies": [{"rtt_ms": 0.8}]}
    assert meshd("ping", "lab-b", "-c", "1").out.rstrip().endswith(f"max 0.8 ms · {words}")
