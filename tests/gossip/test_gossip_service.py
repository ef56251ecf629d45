"""The gossip shell on real sockets and threads: two and three services on loopback."""

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from meshd.capability.manifest import Manifest, summarise
from meshd.daemon.platform import SystemClock, SystemPlatform
from meshd.errors import UsageError
from meshd.gossip.config import profile
from meshd.gossip.effects import DatagramRejected, Woken
from meshd.gossip.service import GossipService
from meshd.model import Address, Epoch, Load, MemberState, MeshId, NodeId
from meshd.view import ClusterView

pytestmark = pytest.mark.net
FAST = msgspec.structs.replace(profile("local"), quiet_s=0.2, sync_interval_s=0.3)


class Watched:
    """A service whose views can be waited for."""

    def __init__(self, number: int, *, mesh: bytes = b"one-mesh") -> None:
        self.loads: list[Load] = []
        """What the work has come to since the protocol last asked."""
        self.platform = SystemPlatform()
        self.effects: list[object] = []
        self.service = GossipService(
            platform=self.platform,
            mesh=MeshId(mesh),
            node=NodeId(bytes([number]) * 8),
            epoch=Epoch(1_000 + number),
            bind=Address("127.0.0.1", 0),
            advertise=lambda bound: (bound,),
            config=FAST,
            listener=self.effects.append,
            load_now=lambda: self.loads.pop() if self.loads else None,
        )
        self._news = asyncio.Event()

    async def start(self) -> "Watched":
        await self.service.start()
        self.service.on_view(lambda _: self._news.set())
        return self

    async def until(
        self, wanted: Callable[[ClusterView], bool], seconds: float = 10
    ) -> ClusterView:
        async with asyncio.timeout(seconds):
            while not wanted(self.service.view):
                self._news.clear()
                if not wanted(self.service.view):
                    await self._news.wait()
        return self.service.view


@pytest.fixture
async def make():
    made: list[Watched] = []

    async def start(number: int, **choices: bytes) -> Watched:
        made.append(await Watched(number, **choices).start())
        return made[-1]

    yield start
    for watched in made:
        await watched.service.stop()
    assert not [t for t in threading.enumerate() if t.name == "meshd-gossip"]


def _alive(count: int) -> Callable[[ClusterView], bool]:
    return lambda view: sum(1 for _ in view.in_state(MemberState.ALIVE)) == count


async def test_three_services_that_join_one_see_each_other(make):
    nodes = [await make(number) for number in (1, 2, 3)]
    for node in nodes[1:]:
        node.service.join(nodes[0].service.address)
    views = [await node.until(_alive(3)) for node in nodes]
    assert {view.me for view in views} == {bytes([n]) * 8 for n in (1, 2, 3)}
    hashes = {(await n.until(lambda v: v.view_hash != "")).view_hash for n in nodes}
    assert len(hashes) == 1


async def test_names_capabilities_and_load_arrive_at_others(make):
    one, two = await make(1), await make(2)
    manifest = Manifest(name="translate", description="turn text into another language")
    one.service.describe(name="lab-a", version="1.2.3", manifests=(manifest,))
    one.service.tell_load(lambda: Load(in_flight=3, slots=4, cpu_fraction=0.5))
    two.service.join(one.service.address)
    view = await two.until(lambda v: bool(v.named("lab-a")))
    (peer,) = view.named("lab-a")
    assert peer.version == "1.2.3"
    assert peer.offers("translate") == summarise(manifest)
    view = await two.until(lambda v: (p := v.get(peer.node)) is not None and p.load is not None)
    load = view.by_node[peer.node].load
    assert load is not None
    assert (load.in_flight, load.slots) == (3, 4)
    one.service.describe(name="lab-a", version="1.2.3", manifests=())
    await two.until(lambda v: v.by_node[peer.node].capabilities == ())


async def test_a_manifest_is_waited_for_and_its_absence_is_told_in_time(make):
    one, two = await make(1), await make(2)
    manifest = Manifest(name="translate", examples=("e" * 5_000,))
    two.service.join(one.service.address)
    await two.until(_alive(2))
    one.service.describe(name="lab-a", version="1.2.3", manifests=(manifest,))
    view = await two.until(lambda v: any(p.capabilities for p in v.peers))
    (peer,) = view.named("lab-a")
    summary = summarise(manifest)
    assert await two.service.manifest(peer.node, summary, 5.0) == manifest
    other = msgspec.structs.replace(summary, name="other")
    assert await two.service.manifest(peer.node, other, 0.0) is None
    assert await two.service.manifest(peer.node, other, 0.01) is None


async def test_manifests_that_gossip_cannot_carry_are_refused_at_once(make):
    one = await make(1)
    huge = tuple(Manifest(name=f"x{n}", examples=("e" * 40_000,)) for n in range(2))
    with pytest.raises(UsageError, match="documents would be 80,"):
        one.service.describe(name="a", version="1", manifests=huge)


async def test_a_goodbye_is_seen_as_left_and_a_return_as_alive(make):
    one, two = await make(1), await make(2)
    two.service.join(one.service.address)
    await one.until(_alive(2))
    await two.until(_alive(2))
    assert await two.service.leave(2.0) >= 1
    await one.until(lambda v: v.by_node[two.service.view.me].state is MemberState.LEFT)
    two.service.rejoin()
    await one.until(_alive(2))


async def test_leaving_alone_takes_no_time(make):
    one = await make(1)
    assert await one.service.leave(5.0) == 0


async def test_a_service_that_vanishes_is_found_dead_and_explained(make):
    one, two, three = await make(1), await make(2), await make(3)
    for node in (two, three):
        node.service.join(one.service.address)
    for node in (one, two, three):
        await node.until(_alive(3))
    gone = three.service.view.me
    await three.service.stop()
    await one.until(lambda v: v.by_node[gone].state is MemberState.DEAD, 20)
    found = await one.service.explain(gone)
    assert found.state is found.events[-1].state is MemberState.DEAD
    assert found.gone_at == found.events[-1].at
    counters = one.service.counters()
    assert counters["became_dead"] == 1
    assert counters["packets_sent"] > 0


async def test_a_ping_measures_a_member_and_gives_up_on_a_silent_one(make):
    one, two = await make(1), await make(2)
    two.service.join(one.service.address)
    await one.until(_alive(2))
    other = two.service.view.me
    rtt_s = await one.service.ping(other, 2.0)
    assert rtt_s is not None
    assert 0 < rtt_s < 2.0
    await two.service.stop()
    assert await one.service.ping(other, 0.05) is None
    assert await one.service.ping(NodeId(b"nobody!!"), 0.05) is None


async def test_a_probe_brings_the_load_of_this_very_moment_from_each_who_answers(make):
    one, two, three = await make(1), await make(2), await make(3)
    for node in (two, three):
        node.service.join(one.service.address)
    await one.until(_alive(3))
    nodes = [node.service.view.me for node in (two, three)]
    for number, node in enumerate((two, three), 5):
        node.service.tell_load(lambda: Load(in_flight=1, slots=4))
        node.loads.append(Load(in_flight=number, slots=8))
    answers = await one.service.probe([*nodes, NodeId(b"nobody!!")], 5.0, lambda a: len(a) == 2)
    assert {node: load.in_flight for node, (_, load) in answers.items()} == dict(
        zip(nodes, (5, 6), strict=True)
    )
    assert all(0 < rtt_s < 5.0 for rtt_s, _ in answers.values())
    await three.service.stop()
    answers = await one.service.probe(nodes[1:], 0.05)
    assert answers == {}
    await one.service.explain(nodes[0])  # the protocol's loop has come past what was asked before
    assert len(one.service._questions) == 0


async def test_another_mesh_and_garbage_are_counted_and_change_nothing(make):
    one, other = await make(1), await make(2, mesh=b"another!")
    other.service.join(one.service.address)
    sender = SystemPlatform().open_datagram(Address("127.0.0.1", 0), bytes_max=1400)
    for data in (b"", b"x", bytes(1399), bytes(1500), b"\x01" + bytes(60)):
        sender.send(data, one.service.address)
    sender.close()

    def counted() -> bool:
        counters = one.service.counters()
        return counters.get("rejected_other_mesh", 0) >= 2 and (
            counters.get("rejected_too_large", 0) >= 1
        )

    # The view does not change for a refusal, so the probe of a real peer paces the wait.
    three = await make(3)
    three.service.join(one.service.address)
    await one.until(lambda view: counted() and len(view.peers) == 2)
    assert other.service.view.peers == (other.service.view.self_peer,)


async def test_a_bug_that_one_datagram_meets_is_counted_and_costs_no_other(make, caplog):
    one, two = await make(1), await make(2)

    def fails(effect: object) -> None:
        if isinstance(effect, DatagramRejected):
            raise KeyError("a bug")

    one.service._listener = fails
    sender = SystemPlatform().open_datagram(Address("127.0.0.1", 0), bytes_max=1400)
    for _ in range(3):
        sender.send(b"x", one.service.address)
    sender.close()
    two.service.join(one.service.address)
    await two.until(lambda view: _alive(2)(view) and "internal_errors" in one.service.counters())
    assert one.service.counters()["internal_errors"] == 3
    assert [record.message for record in caplog.records] == ["internal_error"]


async def test_a_load_that_cannot_be_told_costs_no_mail(make, caplog):
    one, two = await make(1), await make(2)

    def fails() -> Load:
        raise KeyError("a bug")

    one.service._load_now = fails
    two.service.join(one.service.address)
    await one.until(_alive(2))
    await two.until(_alive(2))
    assert one.service.counters()["internal_errors"] > 0
    assert [record.message for record in caplog.records] == ["internal_error"]


async def test_probes_are_answered_while_the_main_loop_is_blocked(make):
    one, two = await make(1), await make(2)
    two.service.join(one.service.address)
    await one.until(_alive(2))
    await two.until(_alive(2))
    before = two.service.counters().get("probes_ok", 0)
    time.sleep(1.0)  # plays work: blocks the loop of this thread on purpose
    assert two.service.counters()["probes_ok"] > before
    assert two.service.counters().get("probes_failed", 0) == 0
    assert one.service.view.by_node[two.service.view.me].state is MemberState.ALIVE


async def test_a_changed_address_reaches_the_others(make):
    one, two = await make(1), await make(2)
    two.service.join(one.service.address)
    await one.until(_alive(2))
    await two.until(_alive(2))
    moved = Address("127.0.0.2", two.service.address.port)
    two.service.set_address(moved)
    await one.until(lambda v: v.by_node[two.service.view.me].address == moved)


async def test_a_service_that_never_started_gives_its_socket_back():
    idle = Watched(9)
    port = idle.service.bound.port
    await idle.service.stop()
    again = SystemPlatform().open_datagram(Address("127.0.0.1", port), bytes_max=1400)
    again.close()


class Sleeper(SystemClock):
    """A clock of a machine that was suspended for a while."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def boot_s(self) -> float:
        return super().boot_s() + self.slept_s


async def test_a_suspend_is_noticed_by_the_clock_that_ran_on(make):
    one, two = [await make(number) for number in (1, 2)]
    two.service.join(one.service.address)
    await one.until(_alive(2))
    one.service._clock = clock = Sleeper()
    clock.slept_s = 300.0
    async with asyncio.timeout(5):
        while not any(isinstance(e, Woken) for e in one.effects):
            await asyncio.sleep(0)
    (woken,) = [e for e in one.effects if isinstance(e, Woken)]
    assert woken.slept_s == pytest.approx(300, abs=1)
    assert one.service.counters()["suspends"] == 1
    await one.until(lambda view: all(peer.reachable for peer in view.peers))
    assert not any(isinstance(e, Woken) for e in two.effects)


async def test_views_that_tell_no_news_go_to_those_alone_who_want_them(make):
    one, two = await make(1), await make(2)
    plain: list[int] = []
    eager: list[int] = []
    one.service.on_view(lambda view: plain.append(view.version), lambda: False)
    one.service.on_view(lambda view: eager.append(view.version), lambda: True)
    two.service.join(one.service.address)
    await one.until(_alive(2))

    def tells(count: int) -> Callable[[ClusterView], bool]:
        return lambda view: (load := view.self_peer.load) is not None and load.in_flight == count

    for count in range(1, 6):
        one.service.tell_load(partial(Load, in_flight=count, slots=8))
        await one.until(tells(count))
    assert set(plain) < set(eager)
    told = plain[-1]
    await two.service.leave(2.0)
    await one.until(_alive(1))
    await one.until(lambda _: plain[-1] > told)
