"""The cluster that users test their own agents on."""

import asyncio
import gc

import pytest

from meshd import Mesh
from meshd.errors import DeadlineError, MeshError, PeerError, UsageError
from meshd.model import MemberState
from meshd.testing import Cluster, Exponential, Shape, simulated


async def passes(seconds):
    """Virtual time passes: nobody waits."""
    await asyncio.sleep(seconds)  # plays work: a handler's, or the network's, in virtual time


def offer_greeting(mesh: Mesh, index: int) -> None:
    """Every node greets, and says which one it is."""

    @mesh.agent("greeter", idempotent=True)
    async def greet(name: str) -> str:
        await passes(0.01)
        return f"hello {name} from {index}"

    if index == 2:

        @mesh.agent("slow")
        async def dawdle(seconds: float) -> str:
            await passes(seconds)
            return "done"

    if index == 0:

        @mesh.agent("asker")
        async def ask(seconds: float) -> str:
            return await mesh.call("dawdle", {"seconds": seconds})


@simulated(3, program=offer_greeting)
async def test_every_node_calls_every_other(cluster):
    for node in cluster:
        for other in cluster:
            answer = await node.call("greet", {"name": "x"}, to=other.name)
            assert answer == f"hello x from {other.index}"


def greet_by_own_policy(mesh: Mesh, index: int) -> None:
    offer_greeting(mesh, index)
    mesh.add_policy("the_last", lambda peer, _: -int(peer.name.removeprefix("node")))
    mesh.add_policy("the_first", lambda peer, _: int(peer.name.removeprefix("node")))


@simulated(3, program=greet_by_own_policy, routing_policy="the_last")
async def test_nodes_have_the_policies_of_their_programs_and_may_be_configured_by_them(cluster):
    await cluster[1].restart()
    await cluster.settled()
    for node in cluster:
        assert await node.call("greet", {"name": "x"}) == "hello x from 2"
        answer = await node.call("greet", {"name": "x"}, policy="the_first")
        assert answer == "hello x from 0"


@pytest.mark.no_cover
@simulated(3, program=offer_greeting)
async def test_a_quarter_of_an_hour_passes_in_no_time(cluster):
    await cluster.sleep(900)
    assert cluster.now > 900
    assert await cluster[1].call("dawdle", {"seconds": 25.0}) == "done"


@pytest.mark.no_cover
@simulated(5, program=offer_greeting, seeds=5)
async def test_both_sides_of_a_partition_go_on_by_themselves(cluster):
    cluster.partition([0, 1], [2, 3, 4])
    await cluster.until(lambda: cluster[0].sees(cluster[2]) is MemberState.DEAD)
    envelope = await cluster[0].delegate("greet", {"name": "x"})
    assert envelope["delegated_to"]["node"] in {"node0", "node1"}
    with pytest.raises(MeshError):
        await cluster[1].call("dawdle", {"seconds": 0.1})
    assert await cluster[4].call("dawdle", {"seconds": 0.1}) == "done"
    cluster.heal()
    await cluster.settled()
    assert await cluster[1].call("dawdle", {"seconds": 0.1}) == "done"


@simulated(3, program=offer_greeting)
async def test_a_killed_worker_is_found_dead_and_comes_back(cluster):
    calling = asyncio.ensure_future(cluster[1].call("dawdle", {"seconds": 20.0}))
    await cluster.sleep(1)
    cluster[2].crash()
    with pytest.raises(PeerError):
        await calling
    await cluster.until(lambda: cluster[0].sees(cluster[2]) is MemberState.DEAD)
    await cluster[2].restart()
    await cluster.settled()
    assert await cluster[0].call("dawdle", {"seconds": 0.1}) == "done"


@simulated(3, program=offer_greeting)
async def test_who_leaves_finishes_first(cluster):
    calling = asyncio.ensure_future(cluster[1].call("dawdle", {"seconds": 5.0}))
    await cluster.sleep(1)
    await cluster[2].leave()
    assert await calling == "done"
    await cluster.until(lambda: cluster[0].sees(cluster[2]) is MemberState.LEFT, within_s=1)
    assert not cluster[2].is_up


@simulated(3, program=offer_greeting)
async def test_a_handler_that_blocks_does_not_make_its_node_look_dead(cluster):
    cluster[2].block(30.0)
    calling = asyncio.ensure_future(cluster[0].call("dawdle", {"seconds": 0.1}, deadline_s=60))
    await cluster.sleep(20)
    assert cluster[0].sees(cluster[2]) is MemberState.ALIVE
    assert not calling.done()
    assert await calling == "done"


@simulated(3, program=offer_greeting)
async def test_a_paused_node_goes_on_where_it_was(cluster):
    cluster[2].pause(20.0)
    await cluster.until(lambda: cluster[0].sees(cluster[2]) is MemberState.DEAD)
    await cluster.settled()
    assert cluster.now >= 20


@simulated(3, program=offer_greeting)
async def test_a_call_into_a_one_way_cut_ends_by_its_deadline(cluster):
    cluster.cut([2], [0, 1])
    with pytest.raises(DeadlineError):
        await cluster[0].call("dawdle", {"seconds": 0.1}, deadline_s=0.4, to="node2")


@simulated(3, program=offer_greeting)
async def test_a_handlers_own_call_keeps_its_callers_deadline(cluster):
    with pytest.raises(DeadlineError):
        await cluster[1].call("ask", {"seconds": 10.0}, deadline_s=1.0)
    assert cluster.now < 5


@simulated(4, program=offer_greeting, network=Shape(latency=Exponential(0.0, 0.02, 0.2), loss=0.1))
async def test_calls_pass_through_a_bad_network(cluster):
    answers = await asyncio.gather(*(n.call("greet", {"name": "x"}) for n in cluster))
    assert len(answers) == 4


def test_equal_seeds_give_equal_runs():
    async def talk(cluster):
        cluster[1].crash()
        for number in range(20):
            await cluster[0].call("greet", {"name": str(number)})
            await cluster.sleep(0.3)

    digests = []
    for seed in (1, 1, 2):
        with Cluster(4, seed=seed, program=offer_greeting) as cluster:
            cluster.run(talk(cluster))
            digests.append(cluster.digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_failure_says_which_seed_and_what_happened_last():
    @simulated(2, seeds=[3, 4])
    async def fails(cluster):
        cluster.partition([0], [1], name="rack")
        assert cluster.seed == 3

    with pytest.raises(AssertionError) as told:
        fails()
    note = "\n".join(told.value.__notes__)
    assert "seed 4" in note
    assert "rack: [0] | [1]" in note


def test_what_nobody_handles_fails_the_run():
    async def forgets(cluster):
        asyncio.get_running_loop().call_soon(int, "x")
        await cluster.sleep(1)

    with Cluster(1) as cluster, pytest.raises(AssertionError, match="invalid literal"):
        cluster.run(forgets(cluster))


def test_waiting_for_what_never_comes_ends():
    async def waits(cluster):
        await cluster.until(lambda: False, within_s=5, what="the moon")

    with Cluster(1) as cluster:
        with pytest.raises(TimeoutError, match="the moon did not come true within 5 virtual s"):
            cluster.run(waits(cluster))
        with pytest.raises(TimeoutError):
            cluster.run(cluster.sleep(100), limit_s=50)


def test_bad_arguments_are_named():
    with pytest.raises(UsageError, match="1 to 1000 nodes, not 0"):
        Cluster(0)
    with pytest.raises(UsageError, match="is not an async function"):
        simulated(2)(lambda cluster: None)

    async def cuts(cluster):
        cluster.isolate(7)

    with Cluster(2) as cluster, pytest.raises(UsageError, match="no node 7"):
        cluster.run(cuts(cluster))


@simulated(2)
async def test_a_node_that_is_down_says_so(cluster):
    cluster[1].crash()
    with pytest.raises(UsageError, match="node1 is down"):
        _ = cluster[1].view
    with pytest.raises(PeerError, match="no daemon runs on node1"):
        await cluster[1].call("x")


@pytest.fixture
def greeting():
    return "hello"


@pytest.mark.parametrize("name", ["x", "y"])
@simulated(2, program=offer_greeting)
async def test_fixtures_and_parameters_are_passed_on(greeting, cluster, name):
    answer = await cluster[1].call("greet", {"name": name}, to="node1")
    assert answer == f"{greeting} {name} from 1"


class TestInAClass:
    """Methods are tests, too."""

    @simulated(1)
    async def test_it_has_its_cluster(self, cluster):
        assert isinstance(self, TestInAClass)
        assert len(cluster) == 1


@simulated(3)
async def test_a_pause_ends_neither_a_longer_one_nor_that_of_the_next_run(cluster):
    cluster[2].pause(20.0)
    await cluster.sleep(1)
    cluster[2].pause(60.0)
    cluster[1].pause(20.0)
    await cluster[1].restart()
    cluster[1].pause(60.0)
    await cluster.sleep(40)
    assert {cluster[0].sees(cluster[1]), cluster[0].sees(cluster[2])} == {MemberState.DEAD}
    await cluster.settled(within_s=60)
    assert cluster.now > 60


@simulated(2, program=offer_greeting)
async def test_a_main_loop_is_blocked_as_long_as_the_longest_block(cluster):
    cluster[1].block(5.0)
    cluster[1].block(20.0)
    began = cluster.now
    await cluster[0].call("greet", {"name": "x"}, to="node1", deadline_s=60)
    assert 20 <= cluster.now - began < 25


@simulated(2)
async def test_who_waits_for_a_start_hears_that_it_was_killed(cluster):
    cluster[1].crash()
    starting = asyncio.ensure_future(cluster[1].start())
    while not cluster[1].is_up:
        await asyncio.sleep(0)
    cluster[1].crash()
    with pytest.raises(PeerError, match="node1 was killed while it started"):
        await starting
    await cluster[1].start()
    await cluster.settled()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda cluster: cluster.partition([0]), "two groups or more"),
        (lambda cluster: cluster.partition([0, 1], [1]), r"in common, not \[0, 1\], \[1\]"),
        (lambda cluster: cluster.lossy(0, 30), "a share is 0 to 1, not 30"),
    ],
)
@simulated(2)
async def test_faults_that_would_do_nothing_are_refused(cluster, fault, told):
    with pytest.raises(UsageError, match=told):
        fault(cluster)


def test_a_decorator_that_would_run_nothing_is_refused():
    async def test(cluster):
        raise AssertionError

    async def lonely():
        raise AssertionError

    with pytest.raises(UsageError, match="without a seed nothing would run"):
        simulated(2, seeds=0)
    with pytest.raises(UsageError, match="the decorator is called"):
        simulated(test)
    with pytest.raises(UsageError, match="'lonely' takes no `cluster`"):
        simulated(2)(lonely)


def test_a_cluster_says_where_it_cannot_be_used():
    async def inside():
        Cluster(1)

    with pytest.raises(UsageError, match="an event loop runs here already"):
        asyncio.run(inside())
    with pytest.raises(UsageError, match="agents are several"):
        Cluster(1, agents=offer_greeting)
    with pytest.raises(UsageError, match="'lan' is no network"):
        Cluster(1, network="lan")
    with Cluster(1) as cluster:
        cluster.run(cluster.sleep(1))
    with pytest.raises(UsageError, match="the cluster is closed"):
        cluster.run(cluster.sleep(1))


def test_a_test_that_takes_too_long_is_told_its_limit():
    with Cluster(1) as cluster, pytest.raises(TimeoutError, match="not done within 5 virtual s"):
        cluster.run(cluster.sleep(100), limit_s=5)


def test_what_a_program_started_ends_when_its_node_has_left():
    ticks = []

    def program(mesh, index):
        async def tick():
            while True:
                ticks.append(index)
                await passes(1.0)

        program.tasks.append(asyncio.ensure_future(tick()))

    program.tasks = []

    async def leaves(cluster):
        await cluster[1].leave()
        seen = ticks.count(1)
        await cluster.sleep(30)
        assert ticks.count(1) == seen
        await cluster[1].start()
        await cluster.sleep(30)
        assert seen + 29 <= ticks.count(1) <= seen + 32, "one that ticks, not two"

    with Cluster(2, program=program) as cluster:
        cluster.run(leaves(cluster))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its loop complains
def test_a_cluster_that_nobody_closes_leaves_no_files_and_no_rule_behind():
    def forget():
        cluster = Cluster(1)
        return cluster._fleet._directory

    directory = forget()
    gc.collect()
    assert not directory.exists()
    assert gc.isenabled()
