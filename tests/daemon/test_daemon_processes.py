"""Daemons as processes: they find each other, die, come back, leave, stop and pause."""

import json
import random
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshd.errors import MeshError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
SERVED = ("--capability", "served")


def test_a_daemon_starts_and_peers_shows_it(site):
    ready = site.path / "ready"
    daemon = site.start("a", "--ready-file", str(ready), *SERVED)
    daemon.until(ready.exists, "the ready file")
    assert ready.read_text() == f"{daemon.address}\n"
    shown = site.cli("peers", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    (row,) = json.loads(shown.stdout)["nodes"]
    assert (row["name"], row["state"], row["self"]) == ("a", "alive", True)
    assert f"{row['address']}:{row['port']}" == daemon.address
    assert "shout" in site.cli("peers").stdout
    assert daemon.stop() == 0
    assert not ready.exists()
    assert not (site.run / "meshd" / "default" / "a.sock").exists()


def test_the_start_screen_tells_of_working_mdns_and_of_names(site):
    site.start("a", is_mdns=True)
    screen = site.path / "screen"
    flags = ("--log-format", "text", "--log-level", "error")
    prefix = ("sh", "-c", f'exec "$@" > {screen}', "sh")
    b = site.spawn("b", *flags, is_mdns=True, prefix=prefix)
    b.until(lambda: screen.exists() and "joined: " in screen.read_text(), "the whole screen")
    told = screen.read_text()
    assert "failed" not in told
    assert re.search(r"mdns +ok +on lo", told), told
    assert re.search(r"found 1 peer in \d\.\d\d s \(a\)", told), told


# Finding each other


def test_three_daemons_find_each_other_by_mdns_on_loopback(site):
    daemons = [site.spawn(name, is_mdns=True) for name in "abc"]
    for daemon in daemons:
        daemon.sees(a="alive", b="alive", c="alive")
    assert len({daemon.call("peers")["view_hash"] for daemon in daemons}) == 1


def test_daemons_find_each_other_through_one_seed(site):
    a, b, c = site.start_mesh("a", "b", "c")
    # c was told of a alone, and learnt of b from it.
    assert c.row("b")["port"] == b.port
    assert {row["id"] for row in a.peers()} == {a.id, b.id, c.id}


def test_two_meshes_on_one_host_never_merge(site):
    first = [site.spawn(name, mesh="red", is_mdns=True) for name in ("r1", "r2")]
    # The blue ones hear the red ones' mDNS, and are even told to join one of them.
    seed = first[0]
    assert seed.started
    blue = [site.spawn(name, mesh="blue", is_mdns=True, join=[seed]) for name in ("b1", "b2")]
    for daemon in first:
        daemon.sees(r1="alive", r2="alive")
    for daemon in blue:
        daemon.sees(b1="alive", b2="alive")
    # Both went on to talk past each other: the seed has refused what the blue ones sent.
    seed.until(
        lambda: any(
            count for name, count in seed.call("status")["gossip"].items() if "mesh" in name
        ),
        "a refused datagram of another mesh",
    )
    assert set(seed.states()) == {"r1", "r2"}
    assert set(blue[0].states()) == {"b1", "b2"}


# Dying and coming back


def test_a_killed_daemon_is_dead_everywhere_and_comes_back_as_itself(site):
    a, b, c = site.start_mesh("a", "b", "c", flags=SERVED)
    before = a.row("c")
    c.kill()
    for daemon in (a, b):
        daemon.sees(a="alive", b="alive", c="dead")
    again = site.start("c", *SERVED, join=[a])
    for daemon in (a, b, again):
        daemon.sees(a="alive", b="alive", c="alive")
    after = a.row("c")
    assert after["id"] == before["id"]
    assert after["epoch"] > before["epoch"]
    assert after["port"] == again.port


def test_a_stopped_daemon_has_left_and_is_not_dead(site):
    a, b, c = site.start_mesh("a", "b", "c")
    done = site.cli("--node", "c", "stop")
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
    assert c.wait() == 0
    for daemon in (a, b):
        daemon.sees(a="alive", b="alive", c="left")
        assert not daemon.logged("member_dead")


def test_a_daemon_that_left_comes_back_by_join(site):
    a, b = site.start_mesh("a", "b", flags=SERVED)
    left = site.cli("--node", "b", "leave", "--json")
    assert left.returncode == 0, left.stderr
    assert json.loads(left.stdout)["left"] is True
    a.sees(a="alive", b="left")
    assert b.is_running
    assert site.cli("--node", "b", "status", "--check").returncode == 7
    joined = site.cli("--node", "b", "join", a.address)
    assert joined.returncode == 0, joined.stderr
    for daemon in (a, b):
        daemon.sees(a="alive", b="alive")
    a.offers("shout", 2)
    called = site.cli("--node", "a", "call", "shout", "text=hi", "--to", "b")
    assert called.stdout == "HI\n", called.stderr


def test_a_daemon_thought_dead_is_alive_again_once_it_speaks(site):
    a, b, c = site.start_mesh("a", "b", "c")
    c.send(signal.SIGSTOP)
    for daemon in (a, b):
        daemon.sees(a="alive", b="alive", c="dead")
    c.send(signal.SIGCONT)
    for daemon in (a, b, c):
        daemon.sees(5.0, a="alive", b="alive", c="alive")


def test_a_pause_of_three_seconds_accuses_nobody_and_kills_nobody(site):
    daemons = site.start_mesh("a", "b", "c", profile="lan")
    paused, others = daemons[2], daemons[:2]
    paused.send(signal.SIGSTOP)
    for daemon in others:
        daemon.event("member_suspect", id=paused.id)
    # Suspicion came after about a second; the pause lasts for three in all.
    site.news.never(lambda: others[0].logged("member_dead"), 2.0)
    paused.send(signal.SIGCONT)
    for daemon in daemons:
        daemon.sees(a="alive", b="alive", c="alive")
    refuted = others[0].row("c")["incarnation"]
    assert refuted > 0
    for daemon in daemons:
        daemon.until(lambda d=daemon: d.row("c")["incarnation"] == refuted, "the refutation")
        assert not daemon.logged("member_dead")
        told = daemon.call("explain", {"node": "c"})["history"]
        assert "dead" not in {event["state"] for event in told}
        assert [event["reason"] for event in told[-1:]] == ["refuted"] * (daemon is not paused)
    assert not paused.logged("member_suspect")


def test_info_explains_who_doubts_a_stopped_node_and_then_that_it_refuted(site):
    a, _, c = site.start_mesh("a", "b", "c", profile="lan")
    a.until(lambda: a.row("c")["rtt_ms"] is not None, "a probe")
    c.send(signal.SIGSTOP)
    try:
        a.until(lambda: a.row("c")["doubt"], "the doubt")
        told = a.call("explain", {"node": "c"})
        screen = site.cli("--node", "a", "info", "c").stdout
        peers = site.cli("--node", "a", "peers").stdout
    finally:
        c.send(signal.SIGCONT)
    names = {who["name"] for who in told["doubt"]["accusers"]}
    assert names <= {"a", "b"}
    assert names
    assert told["state"] == "suspect"
    assert told["doubt"]["needed"] == 1
    assert 0 < told["doubt"]["dead_in_s"] <= told["doubt"]["t_max_s"]
    doubted = told["history"][-1]
    assert doubted["accuser"]["name"] in names
    assert doubted["incarnation"] == told["incarnation"]
    assert re.search(r"^state +suspect for .*: no answer to .*probe", screen, re.MULTILINE)
    assert "unless it refutes" in screen
    assert re.search(r"^c .*\(\d of 1 confirmations, dead in .*\)$", peers, re.MULTILINE)
    a.sees(5.0, a="alive", b="alive", c="alive")
    refuted = a.call("explain", {"node": "c"})
    assert refuted["doubt"] is None
    assert refuted["history"][-1]["reason"] == "refuted"
    assert refuted["history"][-1]["incarnation"] > doubted["incarnation"]
    assert "refuted, told by" in site.cli("--node", "a", "info", "c").stdout


def test_a_mesh_grows_together_again_by_the_cache_alone(site):
    a, b, c = site.start_mesh("a", "b", "c")
    caches = [site.state / "meshd" / "default" / name / "peers.cache" for name in "bc"]
    for daemon, cache in zip((b, c), caches, strict=True):
        daemon.until(lambda cache=cache: cache.exists() and a.id in _ids(cache), "the cache")
    ports = {a.port, b.port, c.port}
    for daemon in (b, c):
        daemon.kill()
    a.sees(a="alive", b="dead", c="dead")
    # No seed, no mDNS, and other ports than those that anybody knew.
    daemons = [a, site.spawn("b"), site.spawn("c")]
    for daemon in daemons:
        daemon.sees(a="alive", b="alive", c="alive")
    assert {daemons[1].port, daemons[2].port}.isdisjoint(ports)


def _ids(cache):
    body = cache.read_bytes().partition(b"\n")[2]
    from meshd.discovery.cache import _decode

    return {peer.node.hex() for peer in _decode(body)}


# Signals


def test_sigterm_lets_running_work_end(site):
    a, b = site.start_mesh("a", "b", flags=(*SERVED, "--slots", "2"))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            b.call, "work", {"capability": "nap", "input": {"seconds": 1.0}}, 10.0
        )
        a.until(lambda: a.row("b")["load"]["in_flight"] == 1, "the running task")
        b.send(signal.SIGTERM)
        a.until(lambda: a.row("b")["load"]["draining"], "the draining")
        with pytest.raises(MeshError, match="draining"):
            b.call("work", {"capability": "shout", "input": "x"})
        assert running.result()["result"] == b.pid
    assert b.wait() == 0
    a.sees(a="alive", b="left")


def test_a_second_sigterm_stops_at_once_and_still_says_goodbye(site):
    a, b = site.start_mesh("a", "b", flags=SERVED)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            b.call, "work", {"capability": "doze", "input": {"seconds": 60.0}}, 60.0
        )
        a.until(lambda: a.row("b")["load"]["in_flight"] == 1, "the running task")
        b.send(signal.SIGTERM)
        a.until(lambda: a.row("b")["load"]["draining"], "the draining")
        b.send(signal.SIGTERM)
        assert b.wait(5.0) == 0
        with pytest.raises(MeshError) as caught:
            running.result()
    assert not caught.value.definite
    assert "stopping" in caught.value.message
    a.sees(a="alive", b="left")


def test_a_handler_stuck_in_a_thread_does_not_keep_a_stopped_daemon_alive(site):
    a, b = site.start_mesh("a", "b", flags=SERVED)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            b.call, "work", {"capability": "nap", "input": {"seconds": 600.0}}, 60.0
        )
        a.until(lambda: a.row("b")["load"]["in_flight"] == 1, "the running task")
        assert site.cli("--node", "b", "stop", "--now").returncode == 0
        assert b.wait(10.0) == 0
        with pytest.raises(MeshError):
            running.result()
    assert b.logged("stopped")


def test_sighup_and_reload_read_the_capabilities_again(site):
    module = site.write("changing.py", _module("one"))
    daemon = site.start("a", "--capability", "changing")
    daemon.offers("one")
    module.write_text(_module("three"))
    daemon.send(signal.SIGHUP)
    assert set(daemon.event("reloaded")["changed"].split(",")) == {"one", "three"}
    daemon.offers("three")
    daemon.offers("one", 0)
    assert site.cli("call", "three", "text=x").stdout == "three x\n"
    module.write_text("raise RuntimeError('half saved')")
    failed = site.cli("reload")
    assert failed.returncode == 2
    assert "half saved" in failed.stderr
    daemon.send(signal.SIGHUP)
    assert "half saved" in daemon.event("reload_failed")["reason"]
    assert site.cli("call", "three", "text=x").stdout == "three x\n"


def _module(name):
    return (
        "from meshd import capability\n\n\n"
        f"@capability\ndef {name}(text: str) -> str:\n    return '{name} ' + text\n"
    )


# A flood


def test_a_flood_of_garbage_is_counted_and_harms_nobody(site):
    a, b = site.start_mesh("a", "b")
    chance = random.Random(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(10_000):
            sender.sendto(chance.randbytes(chance.randrange(0, 1_500)), ("127.0.0.1", a.port))
    rejected = {}

    def counted():
        counters = a.call("status", timeout_s=5.0)["gossip"]
        rejected.update({k: v for k, v in counters.items() if k.startswith("rejected_")})
        return sum(rejected.values()) > 1_000

    a.until(counted, "the garbage in the counters")
    for daemon in (a, b):
        daemon.sees(a="alive", b="alive")
        assert not daemon.logged("member_dead")
    # Garbage is no event: the log of a flooded daemon must not fill the disk.
    assert len(a.lines) < 100


def test_a_leave_goes_on_although_its_caller_waits_no_longer(site):
    a, b = site.start_mesh("a", "b", flags=SERVED)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            b.call, "work", {"capability": "doze", "input": {"seconds": 1.5}}, 60.0
        )
        a.until(lambda: a.row("b")["load"]["in_flight"] == 1, "the running task")
        with pytest.raises(MeshError):
            b.call("leave", {"drain_s": 60.0}, 0.2)
        assert "is leaving" in b.call("status")["problems"][0]
        assert running.result()["result"] == b.pid
    a.sees(a="alive", b="left")


def test_reload_reads_the_capabilities_of_the_configuration_file_again(site):
    table = '[[capability]]\nname = "{}"\ncommand = ["cat"]\n'
    config = site.write("served.toml", table.format("one"))
    daemon = site.start("a", "--config", str(config))
    daemon.offers("one")
    config.write_text(table.format("one") + table.format("two"))
    assert site.cli("reload").stdout == "changed: two\noffers: one, two\n"
    daemon.offers("two")
    config.write_text("[[capability]")
    assert "broken TOML" in site.cli("reload").stderr
    daemon.offers("two")
