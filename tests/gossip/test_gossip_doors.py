"""Budgets that only a flood meets; and putting right those who are behind."""

import pytest
from fabric import node_id

from meshd.clock import Instant
from meshd.gossip import corrections, doors, hearsay, sponsors
from meshd.gossip.codec import member_from
from meshd.gossip.config import GossipConfig
from meshd.gossip.corrections import Corrections
from meshd.gossip.doors import Budget, Doors, SourceBudgets, Window
from meshd.gossip.entry import BURIED_MAX, INCARNATION_JUMP_MAX, Entry
from meshd.gossip.hearsay import Hearsay
from meshd.gossip.members import MemberTable, new_member
from meshd.gossip.messages import Update
from meshd.gossip.sponsors import Sponsors
from meshd.gossip.wall import WallClock
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

T0 = Instant(100.0)
HOME = Address("10.0.0.1", 6374)
MEMBER = Address("10.0.0.2", 6374)
STRANGER = Address("192.0.2.1", 1)
PACKED = bytes((10, 0, 0, 9, 24, 230))
ME, OTHER, NEW = node_id(0), node_id(1), NodeId(b"newcomer")


def later(seconds):
    return Instant(T0 + seconds)


def alive(node=NEW, *, epoch=7, incarnation=0, accusers=b"", state=0):
    return Update(state, node, epoch, incarnation, PACKED, accusers=accusers)


def table_of(*rows):
    table = MemberTable({}, ())
    for row in rows:
        table.put(row)
    return table


# Budgets


def test_a_budget_saves_up_to_its_burst_and_no_further():
    budget = Budget(10, 3, T0)
    assert [budget.take(T0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(later(0.11))
    assert not budget.take(later(0.11))
    assert sum(budget.take(later(60)) for _ in range(9)) == 3
    assert not budget.take(T0)  # a clock that seems to fall gives nothing


def test_sources_have_budgets_of_their_own_of_which_few_are_kept(monkeypatch):
    monkeypatch.setattr(doors, "SOURCES_MAX", 2)
    budgets = SourceBudgets(1, 1)
    assert [budgets.take(source, T0) for source in "aab"] == [True, False, True]
    assert budgets.take("c", T0)
    assert len(budgets) == 2
    assert budgets.take("a", T0)  # forgotten meanwhile


def test_a_window_holds_in_any_span():
    window = Window(2, 1.0)
    assert [window.take(later(at)) for at in (0, 0.9, 0.95, 1.0, 1.5, 1.9)] == [
        True, True, False, True, False, True,
    ]  # fmt: skip


def test_past_the_free_share_members_are_let_in_where_strangers_are_not():
    table = table_of(new_member(OTHER, Epoch(1), MEMBER))
    gates = Doors(T0)
    let_in = sum(gates.lets_in(STRANGER, table, T0) for _ in range(5_000))
    assert let_in == doors.FREE_DATAGRAMS_PER_S + doors.STRANGER_DATAGRAMS_PER_S
    assert sum(gates.lets_in(MEMBER, table, T0) for _ in range(2_000)) == (
        doors.MEMBER_DATAGRAMS_PER_S
    )
    assert gates.lets_in(STRANGER, table, later(1))


def test_addresses_of_members_that_are_forged_have_one_bound_together(monkeypatch):
    monkeypatch.setattr(doors, "DATAGRAMS_PER_S", 10)
    table = table_of(new_member(OTHER, Epoch(1), MEMBER))
    gates = Doors(T0)
    free = doors.FREE_DATAGRAMS_PER_S
    assert sum(gates.lets_in(MEMBER, table, T0) for _ in range(free + 99)) == free + 10


def test_joins_are_bounded_for_each_host_and_for_all():
    gates = Doors(T0)
    same = [gates.may_join(Address("192.0.2.1", port), T0) for port in range(1, 400)]
    assert sum(same) == doors.HOST_JOINS_BURST
    more = [gates.may_join(Address(f"192.0.2.{n}", 1), T0) for n in range(2, 255)]
    more += [gates.may_join(Address(f"192.0.3.{n}", 1), T0) for n in range(2, 255)]
    assert sum(more) == doors.JOINS_BURST - doors.HOST_JOINS_BURST


def test_one_teller_introduces_fewer_than_a_table_that_was_asked_for():
    gates = Doors(T0)
    unasked = sum(gates.may_enter(MEMBER, T0, asked=False) for _ in range(1_000))
    assert unasked == doors.INTRODUCTIONS_BURST
    asked = sum(gates.may_enter(MEMBER, T0, asked=True) for _ in range(9_000))
    assert asked == doors.NEW_MEMBERS_BURST - doors.INTRODUCTIONS_BURST


# Corrections


def test_a_pair_is_put_right_once_a_second_and_all_of_them_at_a_bounded_rate():
    told = Corrections(T0)
    assert told.may_tell(OTHER, NEW, T0)
    assert not told.may_tell(OTHER, NEW, later(0.9))
    assert told.may_tell(OTHER, NEW, later(1.0))
    pairs = [told.may_tell(node_id(n), NEW, later(1.0)) for n in range(2, 99)]
    assert sum(pairs) == corrections.PER_S - 1


def test_pairs_are_forgotten_oldest_first(monkeypatch):
    monkeypatch.setattr(corrections, "PAIRS_MAX", 2)
    told = Corrections(T0)
    assert all(told.may_tell(node_id(n), NEW, T0) for n in (1, 2, 3))
    assert told.may_tell(node_id(1), NEW, T0)
    assert not told.may_tell(node_id(3), NEW, T0)


# Hearsay


def nobody(*_any):
    return False


def test_news_waits_until_its_teller_is_proven_and_not_for_ever():
    heard = Hearsay()
    heard.keep((alive(),), OTHER, STRANGER, T0)
    heard.keep((alive(incarnation=1),), OTHER, STRANGER, T0)
    assert len(heard) == 1
    assert heard.ripe(nobody, nobody, T0) == []
    ripe = heard.ripe(lambda node, address: (node, address) == (OTHER, STRANGER), nobody, T0)
    assert ripe == [(OTHER, STRANGER, (alive(incarnation=1),))]
    heard.keep((alive(),), OTHER, STRANGER, T0)
    assert heard.ripe(lambda *_: True, nobody, later(hearsay.WAITS_S + 1)) == []
    assert len(heard) == 0


def test_what_names_a_sponsor_need_not_wait_for_its_teller():
    heard = Hearsay()
    heard.keep((alive(), alive(OTHER)), NEW, STRANGER, T0)
    ripe = heard.ripe(nobody, lambda update: update.node == OTHER, T0)
    assert ripe == [(NEW, STRANGER, (alive(OTHER),))]
    assert len(heard) == 1


def test_who_tells_from_elsewhere_starts_anew():
    heard = Hearsay()
    heard.keep((alive(),), OTHER, STRANGER, T0)
    heard.keep((alive(OTHER),), OTHER, MEMBER, T0)
    assert heard.ripe(lambda *_: True, nobody, T0) == [(OTHER, MEMBER, (alive(OTHER),))]


def test_the_count_of_what_waits_is_right_whatever_leaves():
    heard = Hearsay()
    heard.keep((alive(), alive(OTHER)), NEW, STRANGER, T0)
    heard.keep((alive(),), OTHER, STRANGER, T0)
    assert len(heard) == 3
    heard.keep((alive(),), NEW, MEMBER, T0)
    assert len(heard) == 2
    heard.ripe(nobody, lambda update: update.node != OTHER, T0)
    assert len(heard) == 0


def test_hearsay_is_bounded_in_tellers_and_in_what_each_tells():
    heard = Hearsay()
    for number in range(hearsay.TELLERS_MAX + 9):
        heard.keep((alive(),), node_id(number), STRANGER, T0)
    assert len(heard) == hearsay.TELLERS_MAX
    many = [alive(node_id(n)) for n in range(hearsay.UPDATES_MAX + 9)]
    heard.keep(many, NEW, STRANGER, T0)
    assert len(heard) == hearsay.TELLERS_MAX - 1 + hearsay.UPDATES_MAX


# Sponsors, and the door to the table


def test_only_a_live_member_is_a_sponsor_and_nobody_ones_own():
    row = new_member(OTHER, Epoch(1), MEMBER)
    known = Sponsors(ME, table_of(row), T0)
    assert known.of(alive(accusers=OTHER)) == OTHER
    assert known.of(alive()) is None
    assert known.of(alive(state=1, accusers=OTHER)) is None
    assert known.of(alive(OTHER, accusers=OTHER)) is None
    assert known.of(alive(accusers=node_id(9))) is None
    gone = Member(OTHER, Epoch(1), Incarnation(0), MemberState.DEAD, MEMBER)
    assert Sponsors(ME, table_of(gone), T0).of(alive(accusers=OTHER)) is None


def test_a_node_knows_its_own_guests_by_run_and_names_their_sponsor_while_they_are_new():
    known = Sponsors(ME, table_of(), T0)
    guest = member_from(alive())
    assert known.is_false_claim(alive(accusers=ME))
    assert known.of(alive(accusers=ME)) is None
    known.answer_for(guest, None, T0)
    assert known.of(alive(accusers=ME)) == ME
    assert not known.is_false_claim(alive(accusers=ME))
    assert known.is_false_claim(alive(accusers=ME, epoch=8))
    assert known.named(guest, T0) == ME
    assert known.named(guest, later(sponsors.SPONSOR_TOLD_S)) == b""
    assert known.named(member_from(alive(epoch=8)), T0) == b""
    assert known.named(member_from(alive(OTHER)), T0) == b""
    known.answer_for(guest, OTHER, T0)
    assert known.named(guest, T0) == OTHER


def test_guests_and_denials_are_bounded(monkeypatch):
    monkeypatch.setattr(sponsors, "SPONSORED_MAX", 2)
    known = Sponsors(ME, table_of(), T0)
    for number in range(3):
        known.answer_for(member_from(alive(node_id(number))), None, T0)
    assert known.is_false_claim(alive(node_id(0), accusers=ME))
    assert not known.is_false_claim(alive(node_id(2), accusers=ME))
    assert sum(known.may_deny(T0) for _ in range(99)) == sponsors.VETOES_PER_S


def entry(*rows, members_max=16):
    table = table_of(*rows)
    config = GossipConfig(members_max=members_max)
    return Entry(
        config=config,
        table=table,
        doors=Doors(T0),
        sponsors=Sponsors(ME, table, T0),
        wall=WallClock(Epoch(1), T0),
    )


def refusal(door, update, *, own=False, asked=False):
    return door.refusal(update, member_from(update), MEMBER, T0, own=own, asked=asked)


def test_a_newcomer_is_refused_for_a_stated_reason():
    door = entry(new_member(ME, Epoch(1), HOME))
    high = alive(incarnation=INCARNATION_JUMP_MAX + 1)
    assert refusal(door, alive()) == ""
    assert refusal(door, high) == "incarnation_jump"
    assert refusal(door, high, own=True) == refusal(door, high, asked=True) == ""
    assert refusal(door, alive(accusers=ME)) == "disowned"
    assert refusal(door, alive(accusers=ME), asked=True) == "disowned"
    assert [refusal(door, alive()) for _ in range(doors.INTRODUCTIONS_BURST + 1)][-1] == (
        "too_many_new"
    )
    full = entry(*(new_member(node_id(n), Epoch(1), HOME) for n in (0, 1)), members_max=2)
    assert refusal(full, alive(), own=True) == "table_full"


def test_old_news_of_a_buried_node_raises_nobody_but_its_own_word_does():
    door = entry()
    door.bury(member_from(alive(incarnation=2)))
    assert refusal(door, alive(incarnation=2), asked=True) == "buried"
    assert refusal(door, alive(incarnation=2), own=True) == ""
    assert refusal(door, alive(incarnation=3)) == ""
    assert refusal(door, alive(epoch=8)) == ""


def test_graves_are_forgotten_oldest_first(monkeypatch):
    assert BURIED_MAX == 4_096
    monkeypatch.setattr("meshd.gossip.entry.BURIED_MAX", 2)
    door = entry()
    for number in range(3):
        door.bury(member_from(alive(node_id(number))))
    assert [refusal(door, alive(node_id(number))) for number in range(3)] == ["", *["buried"] * 2]


@pytest.mark.parametrize("again", [0, 1])
def test_who_is_buried_twice_is_remembered_by_the_last(again):
    door = entry()
    door.bury(member_from(alive()))
    door.bury(member_from(alive(incarnation=5)))
    assert refusal(door, alive(incarnation=5 + again)) == ("" if again else "buried")
