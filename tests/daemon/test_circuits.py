"""Circuits of a running node: refusals, `status`, `/metrics`, and the settings that hold."""

import pytest
from small_mesh import start_node

from meshd import capability
from meshd.capability.definition import collect
from meshd.clock import Instant
from meshd.config import load_config
from meshd.daemon.metrics import NodeMetrics
from meshd.daemon.settings import routing_settings
from meshd.daemon.shapes import CIRCUITS_SHOWN_MAX, circuits_shape
from meshd.errors import Code, MeshError
from meshd.model import Address, Epoch, Incarnation, MemberState, NodeId
from meshd.routing.breaker import BreakerState, Circuit
from meshd.rpc.methods import CallContext
from meshd.view import ClusterView, Peer

ME = Peer(
    node=NodeId(b"\1" * 8),
    name="a",
    address=Address("127.0.0.1", 1),
    state=MemberState.ALIVE,
    epoch=Epoch(1),
    incarnation=Incarnation(0),
    changed_at=Instant(0.0),
)
VIEW = ClusterView(version=1, me=ME.node, by_node={ME.node: ME}, stale_after_s=1.0)


@capability
def broken(text: str) -> str:
    """Fail."""
    raise OSError("the database is gone")


@capability
def plain(text: str) -> str:
    """Answer."""
    return text


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    node = await start_node(tmp_path, "a", (*collect(broken), *collect(plain)))
    yield node
    await node.stop(0)


async def ask(node, method, **params):
    return await node.registry.call(method, params, CallContext(remote="x", local=True))


@pytest.mark.net
async def test_what_fails_ten_times_is_refused_and_told_and_its_fallback_is_taken(node):
    wanted = {"capability": "broken", "input": {"text": "x"}}
    codes = []
    for _ in range(11):
        with pytest.raises(MeshError) as caught:
            await ask(node, "delegate", **wanted)
        codes.append(caught.value.code)
    assert codes == [Code.UPSTREAM] * 10 + [Code.CIRCUIT_OPEN]
    done = await ask(node, "delegate", **wanted, fallback=["plain"])
    assert done["peer_result"]["result"] == "x"
    circuits = (await ask(node, "status"))["circuits"]
    assert (circuits["open"], circuits["half_open"], circuits["opened"]) == (2, 0, 2)
    whole, own = circuits["rows"]
    assert (whole["node"], whole["why"]) == (None, "10 failures in a row wherever it was tried")
    assert (own["name"], own["why"]) == ("a", "3 failures in a row")
    text = NodeMetrics(node).expose()
    assert 'meshd_circuits{scope="capability",state="open"} 1' in text
    assert 'meshd_circuits{scope="node",state="half_open"} 0' in text
    assert 'meshd_circuits_opened_total{scope="node"} 1' in text


def circuit(node=None, state=BreakerState.OPEN):
    return Circuit("echo", node, state, "3 failures in a row", 1.23456, 2)


def test_circuits_have_the_names_of_their_nodes_and_are_counted_beyond_those_shown():
    half_open = circuit(NodeId(b"\2" * 8), BreakerState.HALF_OPEN)
    shape = circuits_shape([circuit(), circuit(ME.node), half_open], VIEW, opened=7)
    assert (shape["open"], shape["half_open"], shape["opened"]) == (2, 1, 7)
    assert [(row["node"], row["name"]) for row in shape["rows"]] == [
        (None, None),
        ("01" * 8, "a"),
        ("02" * 8, None),
    ]
    assert shape["rows"][2] == {
        "capability": "echo", "node": "02" * 8, "name": None, "state": "half_open",
        "why": "3 failures in a row", "left_s": 1.235, "repeats": 2,
    }  # fmt: skip
    many = circuits_shape([circuit()] * 100, VIEW, opened=100)
    assert (many["open"], len(many["rows"])) == (100, CIRCUITS_SHOWN_MAX)


def test_what_the_configuration_says_of_breakers_holds(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[routing.breaker]\nfailures = 7\n")
    assert routing_settings(load_config({"config": path}, {}).config.routing).breaker.failures == 7
