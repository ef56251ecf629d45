"""A node's state reaches others by version, whole or in parts, and nothing forged spoils it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UsageError
from meshd.gossip.codec import encode_delta
from meshd.gossip.library import digest_of
from meshd.gossip.messages import DIGEST_BYTES, Delta, StateChange, StateEntry
from meshd.gossip.state import (
    CHANGES_MAX,
    STATE_KEYS_MAX,
    STATE_VERSION_JUMP_MAX,
    Merged,
    NodeState,
    StateStore,
)
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

ME, OTHER, TELLER = NodeId(b"me______"), NodeId(b"other___"), NodeId(b"teller__")
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
        {"good": b"1", "long": bytes(65_537)},
        {"good": b"1", "half": bytes(40_000), "rest": b"r" * 40_000},
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
    for start in range(0, 1_280, 64):
        part = tuple(entry(f"k{n}", n + 1) for n in range(start, start + 64))
        assert state.merge(Delta(OTHER, RUN, start, start + 64, part))
    assert len(state.entries) == STATE_KEYS_MAX
    assert state.version == 1_280


def delta(epoch: Epoch, upto: int, base: int = 0, digest: bytes = b"") -> Delta:
    parts = tuple(entry(f"k{v}", v) for v in range(base + 1, upto + 1))
    return Delta(OTHER, epoch, base, upto, parts, digest)


def whole(upto: int) -> bytes:
    """The digest of what `delta` makes up to a version."""
    state = NodeState(RUN)
    state.merge(delta(RUN, upto))
    return state.digest


def told(epoch: Epoch, version: int, digest: bytes = b"") -> Member:
    return Member(
        OTHER, epoch, Incarnation(0), MemberState.ALIVE, Address("10.0.0.1", 1), version,
        digest=digest,
    )  # fmt: skip


def holding(upto: int) -> StateStore:
    store = StateStore(ME, RUN)
    store.heard(told(RUN, upto, whole(upto)))
    assert store.merge(delta(RUN, upto), TELLER) is Merged.WHOLE
    return store


def test_what_a_rumour_tells_of_is_wanted_until_all_of_it_is_held():
    store = StateStore(ME, RUN)
    assert not store.heard(told(RUN, 2))
    want = store.want(OTHER)
    assert want is not None
    assert store.held_version(want) == 0
    assert store.merge(delta(RUN, 1), TELLER) is Merged.PART
    assert store.held_version(want) == 1
    assert store.get(OTHER) is None
    assert store.merge(delta(RUN, 2, 1), TELLER) is Merged.WHOLE
    assert store.want(OTHER) is None
    assert store.get(OTHER).version == 2
    assert list(store.wants()) == []


def test_what_was_not_asked_for_is_not_taken():
    store = StateStore(ME, RUN)
    assert store.merge(delta(RUN, 1), TELLER) is Merged.NOTHING
    store.heard(told(RUN, 1))
    assert store.merge(delta(NEXT_RUN, 1), TELLER) is Merged.NOTHING
    assert store.merge(delta(RUN, 1, 1), TELLER) is Merged.NOTHING
    assert store.get(OTHER) is None


def test_whoever_told_is_remembered_once():
    store = StateStore(ME, RUN)
    assert not store.note_teller(ME)
    store.heard(told(RUN, 1))
    assert store.note_teller(TELLER)
    assert not store.note_teller(NodeId(b"another_"))
    store.heard(told(RUN, 1))
    assert not store.note_teller(NodeId(b"another_"))
    assert store.want(OTHER).teller == TELLER


def test_the_old_runs_state_stands_until_there_is_all_of_the_new():
    store = holding(2)
    store.heard(told(NEXT_RUN, 2))
    assert store.held_version(store.want(OTHER)) == 0
    assert store.merge(delta(NEXT_RUN, 1), TELLER) is Merged.PART
    assert store.get(OTHER).epoch == RUN
    assert store.merge(delta(NEXT_RUN, 2, 1), TELLER) is Merged.WHOLE
    assert store.get(OTHER).epoch == NEXT_RUN


def test_a_new_run_that_says_nothing_voids_the_old_ones_word():
    store = holding(1)
    store.heard(told(NEXT_RUN, 0))
    assert store.get(OTHER) is None
    assert store.want(OTHER) is None


def test_the_state_of_the_forgotten_is_neither_held_nor_wanted():
    store = holding(1)
    store.heard(told(RUN, 3))
    store.merge(delta(RUN, 2, 1), TELLER)
    store.forget(OTHER)
    store.forget(OTHER)
    assert store.get(OTHER) is None
    assert store.want(OTHER) is None
    assert store.get(ME) is store.own


@given(writes, writes)
def test_a_digest_stands_for_the_content_whatever_led_to_it(one_way, other_way):
    one, other = NodeState(RUN), NodeState(NEXT_RUN)
    for key, value in one_way:
        one.write(key, value)
    for key, value in other_way:
        other.write(key, value)
    assert (one.digest == other.digest) == (one.values() == other.values())
    other.write_all(dict.fromkeys(other.values()))
    assert other.digest == b""
    other.write_all(one.values())
    assert other.digest == one.digest


def test_a_new_run_of_the_same_content_is_held_already_and_can_be_passed_on():
    owner, store = NodeState(NEXT_RUN), holding(3)
    owner.write_all(store.get(OTHER).values())
    store.heard(told(NEXT_RUN, 3, owner.digest))
    assert store.want(OTHER) is None
    assert (store.get(OTHER).epoch, store.get(OTHER).version) == (NEXT_RUN, 3)
    assert store.get(OTHER).entries == owner.entries
    store.heard(told(NEXT_RUN, 7, owner.digest))
    assert store.want(OTHER) is None
    assert store.get(OTHER).delta_since(OTHER, 0, 1_000).upto == 7


def test_a_version_too_low_for_the_content_is_not_believed_to_be_it():
    store = holding(3)
    store.heard(told(NEXT_RUN, 2, whole(3)))
    assert store.want(OTHER) is not None


def test_what_is_not_what_its_digest_stands_for_is_dropped_and_asked_of_the_owner():
    store = holding(1)
    store.heard(told(RUN, 3, whole(3)))
    forged = Delta(OTHER, RUN, 1, 3, (StateEntry("k2", 2, b"forged"), entry("k3", 3)))
    assert store.merge(forged, TELLER) is Merged.WRONG
    want = store.want(OTHER)
    assert want.doubted
    assert (want.tries, store.held_version(want)) == (1, 0)
    assert store.get(OTHER).version == 1
    assert store.merge(delta(RUN, 3), OTHER) is Merged.WHOLE
    assert store.get(OTHER).digest == whole(3)


def test_a_state_that_is_ahead_of_its_rumour_is_taken_by_its_own_digest():
    store = StateStore(ME, RUN)
    store.heard(told(RUN, 1, whole(1)))
    assert store.merge(delta(RUN, 2), TELLER) is Merged.PART
    assert store.merge(delta(RUN, 3, 2, whole(3)), TELLER) is Merged.WHOLE
    store.heard(told(RUN, 2, whole(2)))
    assert store.want(OTHER) is None
    other = StateStore(ME, RUN)
    other.heard(told(RUN, 1, whole(1)))
    assert other.merge(delta(RUN, 3, digest=b"another_"), TELLER) is Merged.WRONG
    far = 2 + STATE_VERSION_JUMP_MAX
    leap = Delta(OTHER, RUN, 0, far, (entry("k1", 1),), whole(1))
    assert other.merge(leap, TELLER) is Merged.WRONG


def test_what_was_taken_unseen_is_checked_when_its_digest_is_told():
    store = StateStore(ME, RUN)
    store.heard(told(RUN, 2))
    store.merge(delta(RUN, 2), TELLER)
    store.heard(told(RUN, 2, whole(2)))
    assert store.want(OTHER) is None
    store.heard(told(RUN, 2, b"another_"))
    assert store.want(OTHER).doubted
    assert store.held_version(store.want(OTHER)) == 0
    assert store.get(OTHER).version == 2


def change(base: int, upto: int) -> StateChange:
    return StateChange(base, delta(RUN, upto, base).entries)


def test_a_change_that_comes_with_its_rumour_is_all_that_was_missing():
    store = holding(1)
    store.offered(told(RUN, 2, whole(2)), change(1, 2))
    assert store.heard(told(RUN, 2, whole(2)))
    assert store.get(OTHER).version == 2
    assert store.change_of(told(RUN, 2)) == change(1, 2)
    store.offered(told(RUN, 1), change(0, 1))
    assert store.change_of(told(RUN, 2)) == change(1, 2)
    assert store.change_of(told(RUN, 1)) is None
    # One that follows on something else is of no use, but others may have that.
    store.offered(told(RUN, 5, whole(5)), change(4, 5))
    assert not store.heard(told(RUN, 5, whole(5)))
    assert store.want(OTHER).version == 5
    assert store.change_of(told(RUN, 5)) == change(4, 5)


def test_a_change_that_does_not_lead_to_the_digest_is_pulled_as_ever():
    store = holding(1)
    store.offered(told(RUN, 2, b"another_"), change(1, 2))
    assert not store.heard(told(RUN, 2, b"another_"))
    assert not store.want(OTHER).doubted
    assert store.get(OTHER).version == 1


def test_the_last_changes_are_kept_for_a_bounded_number_of_nodes():
    store = StateStore(ME, RUN)
    ids = [NodeId(b"%08d" % number) for number in range(CHANGES_MAX + 1)]
    members = [msgspec.structs.replace(told(RUN, 1), node=node) for node in ids]
    for member in members:
        store.offered(member, change(0, 1))
    assert store.change_of(members[0]) is None
    assert store.change_of(members[1]) == change(0, 1)


def test_an_own_change_travels_along_only_if_it_is_small():
    store = StateStore(ME, RUN)
    store.write({"a": b"1", "b": b"2"})
    me = msgspec.structs.replace(told(RUN, 2), node=ME)
    assert [e.key for e in store.change_of(me).entries] == ["a", "b"]
    store.write({"a": b"3"})
    latest = store.change_of(msgspec.structs.replace(me, state_version=3))
    assert latest == StateChange(2, (StateEntry("a", 3, b"3"),))
    store.write({"a": bytes(300)})
    assert store.change_of(msgspec.structs.replace(me, state_version=4)) is None
    store.write({f"k{n}": b"" for n in range(17)})
    assert store.change_of(msgspec.structs.replace(me, state_version=21)) is None


def test_a_long_value_is_a_document_and_a_short_one_under_its_key_too():
    store = StateStore(ME, RUN)
    assert store.write({"long": b"l" * 401, "doc/a": b"d" * 17, "doc/tiny": b"t", "short": b"s"})
    assert not store.write({"long": b"l" * 401})
    sizes = {key: e.size for key, e in store.own.entries.items()}
    assert sizes == {"long": 401, "doc/a": 17, "doc/tiny": 0, "short": 0}
    assert store.value(ME, "long") == b"l" * 401
    assert store.value(ME, "doc/a") == b"d" * 17
    assert store.value(ME, "short") == b"s"
    assert store.value(ME, "none") is None
    assert store.value(OTHER, "none") is None
    store.write({"long": None})
    assert store.value(ME, "long") is None
    assert store.library.get(digest_of(b"l" * 401)) is None


def test_an_own_state_outranks_what_it_never_said():
    store = StateStore(ME, RUN)
    store.write({"a": b"1"})
    digest = store.own.digest
    store.outrank(7)
    assert (store.own.version, store.own.digest) == (8, digest)


def test_a_reference_that_is_no_digest_is_refused():
    state = NodeState(RUN)
    assert not state.merge(Delta(OTHER, RUN, 0, 1, (StateEntry("a", 1, b"short", 900),)))
    assert not state.merge(Delta(OTHER, RUN, 0, 1, (StateEntry("a", 1, None, 900),)))
    assert state.version == 0


def test_one_delta_gives_a_digest_no_two_sizes():
    body = b"d" * DIGEST_BYTES
    state = NodeState(RUN)
    first, odd = StateEntry("a", 1, body, 900), StateEntry("b", 2, body, 901)
    assert not state.merge(Delta(OTHER, RUN, 0, 2, (first, odd)))
    assert state.merge(Delta(OTHER, RUN, 0, 2, (first, StateEntry("b", 2, body, 900))))


def test_a_digest_that_several_deltas_tell_with_several_sizes_counts_once_in_any_order():
    store = StateStore(ME, Epoch(1))
    one, other = b"d" * DIGEST_BYTES, b"e" * DIGEST_BYTES
    entries = [("b", one, 1), ("a", one, 65_536), ("c", other, 65_535)]
    for version, (key, digest, size) in enumerate(entries, 1):
        held = store.get(OTHER)
        right = NodeState(RUN) if held is None else held.copy()
        right.merge(part := _single(StateEntry(key, version, digest, size)))
        store.heard(told(RUN, version, right.digest))
        assert store.merge(part, TELLER) is Merged.WHOLE
    held = store.get(OTHER)
    # The keys of a new run stand in another order: the same documents are referred to.
    assert not store.heard(told(NEXT_RUN, 3, held.digest))
    assert held.epoch == NEXT_RUN
    store.forget(OTHER)
    assert len(store.library) == 0
    assert list(store.library.users(one)) == list(store.library.users(other)) == []


def _single(entry: StateEntry) -> Delta:
    return Delta(OTHER, RUN, entry.version - 1, entry.version, (entry,))
