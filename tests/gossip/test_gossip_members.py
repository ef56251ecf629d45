"""Beliefs merge the same way in any order, and the table keeps its counts."""

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.members import MemberTable, bucket_of, is_live, join, precedence, record_hash
from meshd.gossip.messages import BUCKETS
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId


def member(
    number: int, *, epoch: int = 1, incarnation: int = 0, state: MemberState = MemberState.ALIVE,
    port: int = 1, version: int = 0, digest: bytes = b"", other: int = 0,
) -> Member:  # fmt: skip
    return Member(
        NodeId(number.to_bytes(8, "little")), Epoch(epoch), Incarnation(incarnation), state,
        Address("10.0.0.1", port), version, digest=digest,
        other=Address("fd00::1", other) if other else None,
    )  # fmt: skip


beliefs = st.builds(
    member,
    st.just(1),
    epoch=st.integers(1, 2),
    incarnation=st.integers(0, 2),
    state=st.sampled_from(MemberState),
    port=st.integers(1, 2),
    version=st.integers(0, 2),
    digest=st.sampled_from((b"", b"digest_1", b"digest_2")),
    other=st.integers(0, 2),
)


@given(beliefs, beliefs, beliefs)
def test_joining_beliefs_is_commutative_associative_and_idempotent(a, b, c):
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert join(join(a, b), b) == join(a, b)


@given(beliefs, beliefs, beliefs)
def test_precedence_is_a_total_order_that_joining_never_lowers(a, b, c):
    assert (precedence(a) <= precedence(b)) or (precedence(b) <= precedence(a))
    if precedence(a) <= precedence(b) <= precedence(c):
        assert precedence(a) <= precedence(c)
    assert precedence(join(a, b)) == max(precedence(a), precedence(b))


def test_a_newer_run_outranks_whatever_the_old_one_said():
    old = member(1, epoch=1, incarnation=900, state=MemberState.LEFT, version=9)
    new = member(1, epoch=2, version=1)
    assert join(old, new) == new


def test_a_doubt_does_not_hide_a_newer_state_version():
    doubt = member(1, state=MemberState.SUSPECT, version=1)
    assert join(doubt, member(1, version=4)) == member(1, state=MemberState.SUSPECT, version=4)


def test_a_digest_goes_with_the_run_and_version_that_it_is_of():
    known, newer = member(1, version=4, digest=b"digest_1"), member(1, version=5)
    assert join(known, newer) == newer
    doubt = member(1, state=MemberState.SUSPECT, version=4)
    assert join(doubt, known).digest == b"digest_1"
    assert join(known, member(1, epoch=2)).digest == b""


operations = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([*MemberState, None]), st.integers(1, 5)),
    max_size=30,
)


@given(operations, st.integers(0, 4), st.booleans())
def test_the_table_counts_hashes_and_finds_like_a_plain_dict(steps, base_size, ask_early):
    base = {m.node: m for m in (member(n) for n in range(1, base_size + 1))}
    table = MemberTable(base, tuple(base))
    plain = dict(base)
    if ask_early:
        table.at_address(Address("10.0.0.1", 1))
    for number, state, port in steps:
        if state is None:
            table.forget(member(number).node)
            plain.pop(member(number).node, None)
        else:
            put = member(number, state=state, port=port % 3 + 1, other=port // 2)
            table.put(put)
            plain[put.node] = put
    assert {m.node: m for m in table} == plain
    assert len(table) == len(plain)
    live = [m for m in plain.values() if is_live(m.state)]
    assert table.live == len(live)
    view_hash = 0
    for each in live:
        view_hash ^= record_hash(each)
    assert table.view_hash == view_hash
    buckets = 0
    for value in table.bucket_hashes():
        buckets ^= value
    assert buckets == view_hash
    for port in (1, 2, 3):
        here = Address("10.0.0.1", port)
        expected = {m.node for m in plain.values() if m.address == here}
        assert {m.node for m in table.at_address(here)} == expected
        there = Address("fd00::1", port)
        assert {m.node for m in table.at_address(there)} == {
            m.node for m in plain.values() if m.other == there
        }
    assert base == {m.node: m for m in (member(n) for n in range(1, base_size + 1))}


def test_which_of_two_addresses_is_used_here_does_not_decide_between_beliefs():
    one = member(1, port=1, other=2)
    two = member(1, port=2, other=1)
    turned = [msgspec.structs.replace(m, address=m.other, other=m.address) for m in (one, two)]
    joined, joined_turned = join(one, two), join(*turned)
    assert (joined.address, joined.other) == (joined_turned.other, joined_turned.address)
    assert joined.is_at(joined.address)
    assert joined.is_at(joined.other)
    assert not joined.is_at(Address("10.0.0.9", 1))


def test_picking_gives_different_wanted_members_even_where_they_are_rare():
    table = MemberTable({}, ())
    for number in range(1, 200):
        state = MemberState.ALIVE if number in {50, 150} else MemberState.DEAD
        table.put(member(number, state=state))
    picked = table.pick(3, random.Random(1), lambda m: m.state is MemberState.ALIVE)
    assert {m.node[0] for m in picked} == {50, 150}
    assert table.pick(0, random.Random(1), lambda _: True) == []
    assert MemberTable({}, ()).pick(2, random.Random(1), lambda _: True) == []


def test_picking_from_many_needs_no_full_search():
    table = MemberTable({}, ())
    for number in range(1, 200):
        table.put(member(number))
    asked = []
    table.pick(3, random.Random(1), lambda m: bool(asked.append(m.node)) or True)
    assert len(asked) <= 3 * 8


def test_a_doubt_does_not_change_the_view_hash_but_a_death_does():
    table = MemberTable({}, ())
    table.put(member(1))
    before = table.view_hash
    table.put(member(1, state=MemberState.SUSPECT))
    assert table.view_hash == before
    table.put(member(1, state=MemberState.DEAD))
    assert table.view_hash == 0


def test_ids_spread_over_all_buckets():
    assert {bucket_of(NodeId(bytes([n, *bytes(7)]))) for n in range(256)} == set(range(BUCKETS))


def test_a_table_on_a_counted_base_is_the_same_as_one_that_counts_it():
    rows = [member(number) for number in range(3)]
    base = {row.node: row for row in rows}
    counted = MemberTable(base, tuple(base))
    table = MemberTable(base, tuple(base), summary=counted.summary)
    assert (table.live, table.view_hash, list(table)) == (3, counted.view_hash, rows)
