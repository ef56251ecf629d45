"""Load: the newest record wins, and only what could change where work goes is rumoured."""

import pytest

from meshd.clock import Instant
from meshd.gossip.codec import LOAD_ENTRY_BYTES, LOAD_SEQUENCES, pack_load
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.loads import LoadPlane, is_significant
from meshd.model import Epoch, Load, NodeId

ME, OTHER = NodeId(b"me______"), NodeId(b"other___")


def plane(epoch: int = 0, config: GossipConfig | None = None) -> LoadPlane:
    return LoadPlane(ME, Epoch(epoch), config or profile("lan"))


def packed(sequence: int, cpu: float = 0.0) -> bytes:
    return pack_load(Load(cpu_fraction=cpu, sequence=sequence % LOAD_SEQUENCES))


@pytest.mark.parametrize(
    ("after", "significant"),
    [
        (Load(slots=4), False),
        (Load(slots=4, cpu_fraction=0.4, mem_fraction=0.1, lag_s=0.01), False),
        (Load(slots=4, cpu_fraction=0.6), True),
        (Load(slots=4, mem_fraction=0.6), True),
        (Load(slots=4, error_fraction=0.3), True),
        (Load(slots=4, in_flight=1), True),
        (Load(slots=4, queue=1), True),
        (Load(slots=8), True),
        (Load(slots=4, ready=False), True),
        (Load(slots=4, full=True), True),
        (Load(slots=4, draining=True), True),
        (Load(slots=4, service_s=0.0005), False),
        (Load(slots=4, service_s=0.5), True),
    ],
)
def test_only_what_could_move_work_is_significant(after, significant):
    assert is_significant(Load(slots=4), after) is significant


def test_an_unchanged_load_is_rumoured_once_and_never_again():
    loads = plane()
    assert loads.sampled(Load(cpu_fraction=0.5), 10, Instant(0.0))
    assert loads.take(1_000)
    for second in range(1, 60):
        assert not loads.sampled(Load(cpu_fraction=0.5), 10, Instant(float(second)))


def test_a_change_that_comes_too_soon_is_told_with_a_later_sample():
    loads = plane()
    assert loads.told is None
    loads.sampled(Load(), 10, Instant(0.0))
    assert not loads.sampled(Load(full=True), 10, Instant(0.5))
    assert loads.told == (Load(sequence=1), 0.0)
    assert loads.sampled(Load(full=True), 10, Instant(1.1))
    assert loads.told == (Load(full=True, sequence=2), 1.1)


def test_the_period_grows_with_the_mesh_once_the_budget_is_spent():
    assert plane().period_s(10) == 1.0
    assert plane().period_s(1_000) == pytest.approx(1_000 * 3 * LOAD_ENTRY_BYTES / 8_192)


def test_a_rumour_is_passed_on_as_often_as_the_limit_says():
    loads = plane()
    loads.sampled(Load(), 10, Instant(0.0))
    assert loads.waiting
    taken = [loads.take(100) for _ in range(4)]
    assert [len(part) for part in taken] == [LOAD_ENTRY_BYTES] * 3 + [0]
    assert not loads.waiting


def test_a_sample_that_comes_a_little_early_is_told_all_the_same():
    loads, told = plane(), []
    for number, at in enumerate((0.0, 0.95, 1.9, 2.5, 2.9)):
        sample = Load(in_flight=number, slots=1)
        told.append(loads.sampled(sample, 10, Instant(at)))
    assert told == [True, True, True, False, True]


def test_of_rumours_the_newest_wins():
    loads = plane()
    entries = OTHER + packed(5)
    assert list(loads.heard_rumour(entries, lambda _: True, Instant(1.0))) == [OTHER]
    assert list(loads.heard_rumour(entries, lambda _: True, Instant(2.0))) == []
    assert list(loads.heard_rumour(OTHER + packed(4), lambda _: True, Instant(2.0))) == []
    assert list(loads.heard_rumour(OTHER + packed(6), lambda _: True, Instant(3.0))) == [OTHER]
    assert loads.get(OTHER)[0].sequence == 6
    assert loads.get(OTHER)[1] == 3.0
    loads.pass_on(OTHER)
    assert loads.take(100) == OTHER + packed(6)


def test_rumours_of_oneself_of_strangers_and_torn_ones_are_left_out():
    loads = plane()
    entries = ME + packed(1) + OTHER + packed(1) + b"torn"
    assert list(loads.heard_rumour(entries, lambda _: False, Instant(1.0))) == []
    assert loads.get(ME) is None
    assert loads.get(OTHER) is None


def test_a_record_overtaken_on_the_way_does_not_replace_a_newer_one():
    loads = plane()
    loads.heard_directly(OTHER, packed(9, 0.9), Instant(1.0))
    loads.heard_directly(OTHER, packed(8, 0.1), Instant(2.0))
    assert loads.get(OTHER)[0].sequence == 9
    loads.heard_directly(OTHER, packed(9, 0.9), Instant(3.0))
    assert loads.get(OTHER)[1] == 3.0


@pytest.mark.parametrize("samples", [1, 2_047, 2_100, 4_095, 4_096])
def test_a_rumour_is_newer_than_the_last_one_however_many_samples_lie_between(samples):
    owner, other = LoadPlane(OTHER, Epoch(0), profile("lan")), plane()
    owner.sampled(Load(slots=4), 1_000, Instant(0.0))
    assert list(other.heard_rumour(owner.take(100), lambda _: True, Instant(0.0))) == [OTHER]
    owner.take(100), owner.take(100)
    for number in range(samples):
        assert not owner.sampled(Load(in_flight=number % 4, slots=4), 1_000, Instant(1.0))
    assert owner.sampled(Load(queue=9, slots=4), 1_000, Instant(7.0))
    assert list(other.heard_rumour(owner.take(100), lambda _: True, Instant(7.0))) == [OTHER]
    assert other.get(OTHER)[0].queue == 9


def test_between_two_rumours_the_owners_latest_word_counts_and_is_what_is_passed_on():
    loads = plane()
    loads.heard_directly(OTHER, packed(5, 0.2), Instant(1.0))
    loads.heard_directly(OTHER, packed(5, 0.4), Instant(2.0))
    assert list(loads.heard_rumour(OTHER + packed(5), lambda _: True, Instant(3.0))) == [OTHER]
    assert loads.get(OTHER) == (Load(cpu_fraction=0.4, sequence=5), 2.0)
    loads.pass_on(OTHER)
    assert loads.take(100) == OTHER + packed(5, 0.4)


def test_a_restarted_node_is_believed_although_an_old_rumour_counts_higher():
    loads = plane()
    list(loads.heard_rumour(OTHER + packed(900, 0.9), lambda _: True, Instant(1.0)))
    loads.heard_directly(OTHER, packed(1, 0.1), Instant(2.0))
    assert loads.get(OTHER)[0].sequence == 1


def test_an_owners_own_packet_replaces_a_rumour_of_a_sequence_that_it_never_told():
    loads = plane()
    loads.heard_directly(OTHER, packed(9, 0.1), Instant(1.0))
    list(loads.heard_rumour(OTHER + packed(60, 0.9), lambda _: True, Instant(2.0)))
    assert loads.get(OTHER)[0].sequence == 60
    loads.heard_directly(OTHER, packed(10, 0.1), Instant(3.0))
    assert loads.get(OTHER)[0].sequence == 10
    loads.heard_directly(OTHER, packed(9, 0.1), Instant(4.0))
    assert loads.get(OTHER)[0].sequence == 10


def test_a_later_run_counts_on_from_where_the_earlier_one_can_have_come_to():
    first, second = plane(epoch=1_000_000), plane(epoch=1_060_000)
    for second_number in range(60):
        first.sampled(Load(), 2, Instant(float(second_number)))
    second.sampled(Load(), 2, Instant(0.0))
    old, new = first.own, second.own
    witness = plane()
    list(witness.heard_rumour(OTHER + old, lambda _: True, Instant(1.0)))
    assert list(witness.heard_rumour(OTHER + new, lambda _: True, Instant(2.0))) == [OTHER]


def test_the_load_of_the_forgotten_neither_waits_nor_stays():
    loads = plane()
    list(loads.heard_rumour(OTHER + packed(1), lambda _: True, Instant(1.0)))
    loads.pass_on(OTHER)
    loads.forget(OTHER)
    assert (loads.get(OTHER), loads.waiting) == (None, False)


def test_in_a_large_mesh_it_is_told_early_whether_a_node_takes_work_at_all():
    plane = LoadPlane(NodeId(b"node-one"), Epoch(0), profile("lan"))
    members = 2_000
    assert plane.period_s(members) > 5
    assert plane.sampled(Load(in_flight=0, slots=4), members, Instant(10.0))
    assert not plane.sampled(Load(in_flight=4, slots=4), members, Instant(11.5))
    assert plane.sampled(Load(in_flight=4, slots=4, full=True), members, Instant(11.6))
    assert not plane.sampled(Load(in_flight=1, slots=4), members, Instant(12.0))
    assert plane.sampled(Load(in_flight=1, slots=4), members, Instant(12.7))


def test_a_swing_of_the_machine_alone_is_told_once_a_minute():
    plane = LoadPlane(NodeId(b"node-one"), Epoch(0), profile("lan"))
    assert plane.sampled(Load(cpu_fraction=0.1), 5, Instant(10.0))
    assert not plane.sampled(Load(cpu_fraction=0.9), 5, Instant(30.0))
    assert plane.sampled(Load(cpu_fraction=0.9, in_flight=1), 5, Instant(31.0))
    assert not plane.sampled(Load(cpu_fraction=0.1, in_flight=1), 5, Instant(90.0))
    assert plane.sampled(Load(cpu_fraction=0.1, in_flight=1), 5, Instant(91.0))
