"""A program's own policy chooses among nodes, which are asked for their load as they are."""

import asyncio
import socket
import threading

import pytest
from small_mesh import start_node

from meshd import Mesh, capability
from meshd.capability.definition import collect
from meshd.config import load_config
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform
from meshd.errors import UsageError
from meshd.routing import probes, signals

pytestmark = pytest.mark.net


def by_name(peer, estimate):
    """The last by name first."""
    return -float(int.from_bytes(peer.name.encode()))


def program(path, *nodes, **choices):
    return Mesh(
        "program", embed=True, bind="127.0.0.1:0", mdns=False, profile="local",
        state_dir=str(path / "program"), join=[str(node.address) for node in nodes], **choices,
    )  # fmt: skip


@capability(idempotent=True)
async def where() -> str:
    return "there"


@pytest.fixture
async def nodes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = await start_node(tmp_path, "a", collect(where))
    second = await start_node(tmp_path, "b", collect(where), join=[first])
    yield first, second
    await asyncio.gather(first.stop(0.0), second.stop(0.0))


async def all_known(mesh):
    def knows(view):
        return sum(bool(p.offers("where")) and p.rtt_s is not None for p in view.peers) == 2

    view = await mesh._link.node.wait_view(knows, 10)
    assert knows(view)


async def test_the_usual_policy_and_a_named_one_may_be_functions(nodes, tmp_path):
    mesh = program(tmp_path, *nodes, policy=by_name)
    assert mesh.add_policy("first", lambda peer, estimate: -by_name(peer, estimate)) == "first"
    async with mesh:
        await all_known(mesh)
        usual = await mesh.delegate("where", explain=True)
        assert usual["delegated_to"]["node"] == "b"
        assert usual["explain"]["policy"] == "own"
        first = await mesh.delegate("where", policy="first")
        assert first["delegated_to"]["node"] == "a"
        with pytest.raises(UsageError, match="before the start"):
            mesh.add_policy("late", by_name)


async def test_affinity_and_difficulty_go_before_the_usual_policy_and_tasks_have_it_too(
    nodes, tmp_path
):
    async with program(tmp_path, *nodes, policy=by_name) as mesh:
        await all_known(mesh)

        async def told(**choices):
            explain = (await mesh.delegate("where", explain=True, **choices))["explain"]
            return explain["policy"], explain["policy_from"]

        assert await told() == ("own", "default")
        assert await told(affinity="k") == ("sticky", "the call")
        assert await told(difficulty=0.0) == ("skill", "the call")
        assert await told(policy="random", affinity="k") == ("random", "the call")
        task = await mesh.submit("where")
        assert await task.result(5) == "there"
        (last,) = mesh._link.node.dispatcher.decisions.last(1)
        assert (last.made.policy, last.made.policy_from) == ("own", "default")


async def test_a_programs_settings_may_name_its_own_policies(nodes, tmp_path):
    path = tmp_path / "policies.toml"
    path.write_text("[default]\npolicy = 'mine'\n")
    mesh = program(
        tmp_path, *nodes, routing_capability={"where": {"policy": "first"}},
        routing_policy_file=path,
    )  # fmt: skip
    mesh.add_policy("mine", by_name)
    mesh.add_policy("first", lambda peer, estimate: -by_name(peer, estimate))
    async with mesh:
        await all_known(mesh)
        routing = mesh._link._routing
        answer = await mesh.delegate("where", explain=True)
        assert answer["delegated_to"]["node"] == "a"
        assert answer["explain"]["policy_from"] == "capability where"
        assert mesh._link.node.dispatcher.settings_for("other").policy == "mine"
        assert routing.read().routing.policy == "mine", "a reload takes them too"


async def test_a_policy_that_nobody_knows_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"routing\.policy: 'adaptve' is none of"):
        await program(tmp_path, policy="adaptve").start()


async def test_an_attached_program_names_its_usual_policy_only_where_the_call_means_none(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    node = await start_node(tmp_path, "a", collect(where), control_path=str(tmp_path / "a.sock"))
    try:
        async with Mesh("program", control=node.control_path, policy="nearest") as mesh:
            for choices, policy in (
                ({}, "nearest"), ({"affinity": "k"}, "sticky"), ({"difficulty": 0.0}, "skill"),
                ({"policy": "random"}, "random"),
            ):  # fmt: skip
                answer = await mesh.delegate("where", explain=True, **choices)
                assert answer["explain"]["policy"] == policy
                assert answer["explain"]["policy_from"] == "the call"
                task = await mesh.submit("where", **choices)
                assert await task.result(5) == "there"
                (last,) = node.dispatcher.decisions.last(1)
                assert last.made.policy == policy
    finally:
        await node.stop(0.0)


@pytest.mark.parametrize(
    ("name", "cost", "said"),
    [
        ("random", by_name, "policy random is meshd's own"),
        ("pinned", by_name, "policy pinned is meshd's own"),
        ("no such name!", by_name, "'no such name!' is not a valid name"),
        ("mine", 3, "policy mine is 3, and no plain function"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_when_it_is_added(name, cost, said):
    mesh = Mesh("program")
    with pytest.raises(UsageError, match=said):
        mesh.add_policy(name, cost)
    assert mesh.policies.added == ()
    assert mesh._embed is None, "it may still attach"


def test_the_usual_policy_is_a_name_or_a_function_and_said_once():
    with pytest.raises(UsageError, match="policy own is 3, and no plain function"):
        Mesh("program", policy=3)
    with pytest.raises(UsageError, match="say the same"):
        Mesh("program", policy=by_name, routing_policy="nearest")


async def test_a_name_may_be_the_usual_policy(nodes, tmp_path):
    async with program(tmp_path, *nodes, policy="round_robin") as mesh:
        await all_known(mesh)
        ends = [(await mesh.delegate("where"))["delegated_to"]["node"] for _ in range(4)]
    assert sorted(ends) == ["a", "a", "b", "b"]


async def test_work_that_is_worth_it_is_asked_about_and_the_probes_are_counted(
    nodes, tmp_path, monkeypatch
):
    monkeypatch.setattr(signals, "DEFAULT_SERVICE_S", 1.0)  # long against any round trip here
    monkeypatch.setattr(probes, "YOUNG_FRACTION", 0.0)
    async with program(tmp_path, *nodes) as mesh:
        await all_known(mesh)
        node = mesh._link.node
        told = (await mesh.delegate("where", explain=True))["explain"]
        assert {row["name"] for row in told["probes"]} == {"a", "b"}
        assert node.dispatcher.counters["probes"] == 2
        assert 'meshd_routing_events_total{event="probes"} 2' in node._metrics.expose()


def test_who_attaches_cannot_bring_a_policy():
    with pytest.raises(UsageError, match="runs in a node of one's own"):
        Mesh("program", embed=False, policy=by_name)


async def test_a_busy_node_has_news_for_the_protocol_and_an_idle_one_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config = load_config({"name": "n", "state_dir": str(tmp_path / "n")}).config
    node = Node(config, collect(where), SystemPlatform(), control_path="")
    load = node.own_load
    assert load.if_changed() is not None
    assert load.if_changed() is None
    running = asyncio.create_task(node.worker.run("where", {}))
    await asyncio.sleep(0)
    told = load.if_changed()
    assert told is not None
    assert told.in_flight == 1
    await running
    load.changed()
    load.changed()
    load.tell()  # to nobody: it is not started
    await node.worker.close()


async def test_a_load_that_is_told_late_is_no_older_than_what_was_told_before(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    is_over, is_told = asyncio.Event(), threading.Event()

    @capability
    async def wait() -> None:
        await is_over.wait()

    node = await start_node(tmp_path, "a", collect(wait))
    gossip = node.gossip

    def mail_comes_first() -> None:
        assert is_told.wait(5)
        gossip._drain()

    gossip._call(mail_comes_first)
    node.own_load.tell()
    running = asyncio.create_task(node.worker.run("wait", {}))
    await asyncio.sleep(0)  # a turn for the work to begin
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"mail", (gossip.address.host, gossip.address.port))
    is_told.set()
    await gossip.explain(node.node_id)  # the protocol's loop has come past all that
    load, _ = gossip._swim.load_of(node.node_id)
    assert load.in_flight == node.own_load.now().in_flight == 1
    is_over.set()
    await running
    await node.stop(0.0)
