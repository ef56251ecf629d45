"""A node's state reaches others by version, whole or in parts, and nothing forged spoils it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UsageError
from meshd.gossip.codec import encode_delta
from meshd.gossip.messages import Delta, StateEntry
from meshd.gossip.state import STATE_KEYS_MAX, NodeState, StateStore
from meshd.model import Epoch, NodeId

ME, OTHER = NodeId(b"me______"), NodeId(b"other___")
RUN, NEXT_RUN = Epoch(5), Epoch(6)


def copy_by_deltas(owner: NodeState, copy: NodeState, room: int) -> int:
    """Pull until nothing is missing; how many deltas it took."""
    for count in range(2_000):
        delta = owner.delta_since(OTHER, copy.version, room)
        if delta is None:
            return count
        assert len(encode_delta(delta)) <= room
        assert copy.merge(delta)
    raise AssertionError("no end")


writes = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.binary(max_size=300))),
    max_size=30,
)


@given(writes, st.integers(360, 1_100))
def test_a_copy_by_deltas_equals_the_original_however_small_the_datagrams(steps, room):
    owner, copy = NodeState(RUN), NodeState(RUN)
    for key, value in steps:
        owner.write(key, value)
    copy_by_deltas(owner, copy, room)
    assert copy.version == owner.version
    assert copy.values() == owner.values()


def test_many_keys_arrive_in_several_parts():
    owner, copy = NodeState(RUN), NodeState(RUN)
    owner.write_all({f"cap/{n}": bytes(200) for n in range(100)})
    assert copy_by_deltas(owner, copy, 1_000) > 20
    assert len(copy.values()) == 100
    owner.write_all({f"k{n}": b"" for n in range(200)})
    assert copy_by_deltas(owner, copy, 10_000) == 4


def test_a_deleted_key_is_deleted_in_the_copy_too():
    owner, copy = NodeState(RUN), NodeState(RUN)
    owner.write("a", b"1")
    copy_by_deltas(owner, copy, 1_000)
    owner.write("a", None)
    copy_by_deltas(owner, copy, 1_000)
    assert copy.values() == {}
    assert "a" in copy.entries


def test_a_write_that_changes_nothing_raises_no_version():
    state = NodeState(RUN)
    assert state.write("a", b"1")
    assert not state.write("a", b"1")
    assert not state.write("never", None)
    assert state.version == 1


@pytest.mark.parametrize(
    "entries",
    [
        {"good": b"1", "": b"1"},
        {"good": b"1", "k" * 73: b"1"},
        {"good": b"1", "long": bytes(401)},
        {f"k{n}": b"1" for n in range(STATE_KEYS_MAX + 1)},
    ],
)
def test_what_gossip_cannot_carry_is_refused_and_nothing_changes(entries):
    state = NodeState(RUN)
    with pytest.raises(UsageError):
        state.write_all(entries)
    assert (state.version, state.entries) == (0, {})


def test_nothing_fits_into_no_room():
    owner = NodeState(RUN)
    owner.write("a", bytes(100))
    assert owner.delta_since(OTHER, 0, 60) is None
    assert owner.delta_since(OTHER, 0, 10) is None
    assert owner.delta_since(OTHER, 1, 1_000) is None


def entry(key: str, version: int) -> StateEntry:
    return StateEntry(key, version, b"v")


@pytest.mark.parametrize(
    "delta",
    [
        Delta(OTHER, RUN, 9, 12, (entry("x", 10),)),
        Delta(OTHER, RUN, 0, 3, ()),
        Delta(OTHER, RUN, 3, 6, (entry("x", 5), entry("y", 5))),
        Delta(OTHER, RUN, 3, 6, (entry("x", 6), entry("y", 4))),
        Delta(OTHER, RUN, 3, 6, (entry("x", 7),)),
        Delta(OTHER, RUN, 3, 6, (entry("x", 3),)),
    ],
)
def test_a_delta_that_does_not_follow_on_or_is_out_of_order_changes_nothing(delta):
    state = NodeState(RUN)
    state.write_all({"a": b"1", "b": b"2", "c": b"3"})
    assert not state.merge(delta)
    assert (state.version, set(state.entries)) == (3, {"a", "b", "c"})


def test_a_delta_that_overlaps_brings_only_what_is_newer():
    state = NodeState(RUN)
    state.write_all({"a": b"own", "b": b"own"})
    assert state.merge(Delta(OTHER, RUN, 0, 3, (entry("a", 1), entry("c", 3))))
    assert state.values() == {"a": b"own", "b": b"own", "c": b"v"}


def test_a_copy_holds_no_more_keys_than_a_node_may_have():
    state = NodeState(RUN)
    for start in range(0, 640, 64):
        part = tuple(entry(f"k{n}", n + 1) for n in range(start, start + 64))
        assert state.merge(Delta(OTHER, RUN, start, start + 64, part))
    assert len(state.entries) == STATE_KEYS_MAX
    assert state.version == 640


def delta(epoch: Epoch, upto: int, base: int = 0) -> Delta:
    return Delta(
        OTHER, epoch, base, upto, tuple(entry(f"k{v}", v) for v in range(base + 1, upto + 1))
    )


def test_what_a_rumour_tells_of_is_wanted_until_it_is_held():
    store = StateStore(ME, RUN)
    store.heard_version(OTHER, RUN, 2)
    want = store.want(OTHER)
    assert want is not None
    assert store.held_version(want) == 0
    assert store.merge(delta(RUN, 1))
    assert store.held_version(want) == 1
    assert store.merge(delta(RUN, 2, 1))
    assert store.want(OTHER) is None
    assert store.get(OTHER).version == 2
    assert list(store.wants()) == []


def test_what_was_not_asked_for_is_not_taken():
    store = StateStore(ME, RUN)
    assert not store.merge(delta(RUN, 1))
    store.heard_version(OTHER, RUN, 1)
    assert not store.merge(delta(NEXT_RUN, 1))
    assert not store.merge(delta(RUN, 1, 1))
    assert store.get(OTHER) is None


def test_whoever_told_is_remembered_once():
    store = StateStore(ME, RUN)
    assert not store.note_teller(ME)
    store.heard_version(OTHER, RUN, 1)
    assert store.note_teller(NodeId(b"teller__"))
    assert not store.note_teller(NodeId(b"another_"))
    store.heard_version(OTHER, RUN, 1)
    assert not store.note_teller(NodeId(b"another_"))
    assert store.want(OTHER).teller == b"teller__"


def test_the_old_runs_state_stands_until_there_is_some_of_the_new():
    store = StateStore(ME, RUN)
    store.heard_version(OTHER, RUN, 2)
    store.merge(delta(RUN, 2))
    store.heard_version(OTHER, NEXT_RUN, 1)
    assert store.get(OTHER).epoch == RUN
    assert store.held_version(store.want(OTHER)) == 0
    assert store.merge(delta(NEXT_RUN, 1))
    assert (store.get(OTHER).epoch, set(store.get(OTHER).values())) == (NEXT_RUN, {"k1"})


def test_a_new_run_that_says_nothing_voids_the_old_ones_word():
    store = StateStore(ME, RUN)
    store.heard_version(OTHER, RUN, 1)
    store.merge(delta(RUN, 1))
    store.heard_version(OTHER, NEXT_RUN, 0)
    assert store.get(OTHER) is None


def test_the_state_of_the_forgotten_is_neither_held_nor_wanted():
    store = StateStore(ME, RUN)
    store.heard_version(OTHER, RUN, 2)
    store.merge(delta(RUN, 1))
    store.forget(OTHER)
    store.forget(OTHER)
    assert store.get(OTHER) is None
    assert store.want(OTHER) is None
    assert store.get(ME) is store.own
