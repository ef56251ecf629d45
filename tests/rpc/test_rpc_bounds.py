"""Every bound of the RPC server, from both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.rpc.guard import browser_refusal
from meshd.rpc.limits import CallGate


def refusal(host, origin=None, *, names=frozenset(), check_host=True):
    return browser_refusal(host, origin, names=names, check_host=check_host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "127.0.0.1",
        "127.0.0.1:6374",
        "[::1]:6374",
        "[fe80::1%25eth0]:1",
        "localhost",
        "LOCALHOST:80",
        "localhost.",
    ],
)
def test_an_address_or_localhost_is_our_own_host(host):
    assert refusal(host) == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6374", "127.0.0.1.evil.example"])
def test_a_foreign_name_in_host_is_a_rebound_one(host):
    assert "neither an IP address nor a name" in refusal(host)
    assert refusal(host, f"http://{host}") != ""


def test_a_configured_name_is_our_own():
    assert refusal("Lab-A.local:6374", names=frozenset({"lab-a.local"})) == ""


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:9", "file://"]
)
def test_a_page_of_another_origin_is_refused(origin):
    assert "may not call" in refusal("127.0.0.1:6374", origin)


def test_a_page_that_this_host_served_may_call():
    assert refusal("127.0.0.1:6374", "http://127.0.0.1:6374") == ""
    assert refusal("localhost:1", "HTTP://LOCALHOST:1") == ""


def test_an_origin_without_a_host_is_refused():
    assert refusal(None, "http://x") != ""


def test_on_the_control_socket_any_host_will_do_but_no_page():
    assert refusal("anything", check_host=False) == ""
    assert refusal("anything", "http://evil.example", check_host=False) != ""


def test_one_caller_cannot_take_the_places_of_all():
    gate = CallGate(10, 2)
    assert gate.enter("a") is None
    assert gate.enter("a") is None
    busy = gate.enter("a")
    assert busy is not None
    assert busy.data["bound"] == "remote"
    assert gate.enter("b") is None
    gate.leave("a")
    assert gate.enter("a") is None


def test_all_callers_together_are_bounded():
    gate = CallGate(2, 2)
    assert gate.enter("a") is None
    assert gate.enter("b") is None
    busy = gate.enter("c")
    assert busy is not None
    assert busy.data["bound"] == "node"
    assert gate.running == 2


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_the_gate_forgets_who_left(remotes):
    gate = CallGate(5, 3)
    entered = [remote for remote in remotes if gate.enter(remote) is None]
    assert gate.running == len(entered) <= 5
    for remote in entered:
        gate.leave(remote)
    assert gate.running == 0
    assert gate._by_remote == {}
