"""Policies of a running node: read again, applied without losing calls, refused where wrong."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshd import Mesh
from meshd.errors import UsageError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

GATED = """
[routing]
policy_file = "policies.toml"

[[capability]]
name = "gate"
command = ["sh", "-c", "echo x > begun; cat > /dev/null; cat gate"]

[[capability]]
name = "echo"
command = ["cat"]
"""


def put(path, text):
    """Replace the file as a whole, so that nobody reads half of it."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


def chosen_by(daemon, capability="echo"):
    answer = daemon.call("delegate", {"capability": capability, "input": 1, "explain": True})
    return answer["explain"]["policy"], answer["explain"]["policy_from"]


def test_a_new_policy_file_is_followed_and_a_broken_one_changes_nothing(site):
    policies = site.write("policies.toml", "[capability.echo]\npolicy = 'random'\n")
    config = site.write("meshd.toml", GATED)
    gate, begun = site.path / "gate", site.path / "begun"
    os.mkfifo(gate)
    a = site.start("a", "--config", str(config))
    a.offers("gate")
    assert chosen_by(a) == ("random", "capability echo")
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(a.call, "delegate", {"capability": "gate", "input": 1}, 60.0)
        a.until(begun.exists, "the call under way")
        put(policies, "[default]\npolicy = 'nearest'\n[capability.gate]\nretries = 0\n")
        changed = a.event("routing_changed")["changed"]
        assert changed == "policy,capability.echo,capability.gate"
        assert chosen_by(a) == ("nearest", "default")
        assert not held.done()
        gate.write_text("through")
        answer = held.result()
    assert answer["peer_result"]["result"] == "through"
    assert len(answer["attempts"]) == 1

    put(policies, "[default]\nretries = 9\npolcy = 'random'\n")
    told = a.event("routing_not_changed")
    assert told["level"] == "error"
    problem = a.call("status")["problems"][0]
    for text in (problem, told["reason"], site.cli("status").stdout, site.cli("reload").stderr):
        assert f"{policies}: default.retries: expected `int` <= 3" in text
        assert "default.polcy: unknown key; did you mean policy?" in text
    assert chosen_by(a) == ("nearest", "default")

    put(policies, "[default]\npolicy = 'nearest'\n")
    a.until(lambda: not a.call("status")["problems"], "the end of the problem")
    assert chosen_by(a) == ("nearest", "default")

    put(config, GATED + "\n[routing.capability.'e*']\npolicy = 'round_robin'\n")
    assert site.cli("reload").stdout == (
        "changed: nothing\noffers: echo, gate\nrouting: capability.e*\n"
    )
    assert chosen_by(a) == ("round_robin", "capability e*")
    put(config, GATED)
    a.send(signal.SIGHUP)
    assert a.event("reloaded", routing="capability.e*")
    assert chosen_by(a) == ("nearest", "default")


async def test_an_embedded_node_takes_the_same_settings_and_watches_the_same_file(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    policies = tmp_path / "policies.toml"
    policies.write_text("[capability.'e*']\nfallback = ['echo']\n")
    place = {"bind": "127.0.0.1:0", "mdns": False, "profile": "local", "embed": True}
    mesh = Mesh(
        "policies", **place, routing_policy_file=policies,
        routing_capability={"echo": {"policy": "random"}},
    )  # fmt: skip

    @mesh.agent()
    def echo(x: int) -> int:
        return x

    async with mesh:
        answer = await mesh.delegate("else", {"x": 1}, explain=True)
        assert answer["peer_result"]["result"] == 1
        told = answer["explain"]
        assert (told["capability"], told["policy_from"]) == ("echo", "capability echo")
    with pytest.raises(UsageError, match=r"routing\.capability\.a\.retries: expected"):
        async with Mesh("wrong", **place, routing_capability={"a": {"retries": 4}}):
            pass
