"""The parts of the keeper: lanes and their windows, what is kept of the ended, who looks on."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.tasks import ended as ended_module
from meshd.tasks import watcher as watcher_module
from meshd.tasks.ended import Ended
from meshd.tasks.lanes import GONE_MAX, NEWS_PAUSE_S, PAUSE_MAX_S, PAUSE_MIN_S, Lanes
from meshd.tasks.watcher import Watcher


def turn(number, priority=3):
    return (-priority, number, f"t{number}")


def taken(lanes):
    found = []
    while (one := lanes.take()) is not None:
        found.append(one[0])
    return found


def test_the_most_urgent_of_all_lanes_goes_first():
    lanes = Lanes()
    lanes.put(b"a", turn(1))
    lanes.put(b"b", turn(2, priority=5))
    lanes.put(b"a", turn(3, priority=4))
    assert taken(lanes) == ["t2", "t3", "t1"]


def test_a_refusal_pauses_its_lane_alone_and_longer_each_time():
    lanes = Lanes()
    lanes.put(b"a", turn(1))
    lanes.put(b"b", turn(2))
    assert lanes.take() == ("t1", b"a")
    lanes.refused(b"a", turn(1), 1.0, 10.0)
    assert taken(lanes) == ["t2"]
    assert lanes.next_at == 10.0 + PAUSE_MIN_S
    now = 10.0
    pauses = []
    for _ in range(9):
        now = lanes.next_at
        lanes.on_time(now)
        assert taken(lanes) == ["t1"]
        lanes.refused(b"a", turn(1), 1.0, now)
        pauses.append(lanes.next_at - now)
    assert pauses[:2] == pytest.approx([2 * PAUSE_MIN_S, 4 * PAUSE_MIN_S])
    assert pauses[-1] == pytest.approx(PAUSE_MAX_S)


def test_a_lane_lets_out_as_many_as_are_taken_and_tries_one_more_now_and_then():
    lanes = Lanes()
    for number in range(20):
        lanes.put(b"a", turn(number))
    out = taken(lanes)
    assert len(out) == 20
    for number in range(19, 3, -1):
        lanes.refused(b"a", turn(number), 1.0, 1.0)
    assert taken(lanes) == [], "four are out, and there is room for no more"
    lanes.back(b"a", is_done=True)
    assert taken(lanes) == ["t4"], "one has ended: the next has its place"
    lanes.on_time(lanes.next_at)
    assert taken(lanes) == ["t5", "t6"]
    for _ in range(9):
        if lanes.next_at is not None:
            lanes.on_time(lanes.next_at)
    assert len(taken(lanes)) == 13, "where nothing is refused all go out soon"


def test_news_end_a_pause_but_not_at_once():
    lanes = Lanes()
    lanes.put(b"a", turn(1))
    for at in (1.0, 2.0, 3.0, 4.0):
        lanes.on_time(at)
        assert taken(lanes) == ["t1"]
        lanes.refused(b"a", turn(1), 1.0, at)
        lanes.hurry(at)
        assert lanes.next_at == at + NEWS_PAUSE_S
    lanes.hurry(50.0)
    lanes.on_time(50.0)
    assert taken(lanes) == ["t1"]
    lanes.back(b"a")
    assert lanes.next_at is None


def test_news_that_come_during_a_try_count_for_the_pause_after_it():
    lanes = Lanes()
    lanes.put(b"a", turn(1))
    pauses = []
    for at in (10.0, 20.0, 30.0, 40.0):
        lanes.on_time(at)
        assert taken(lanes) == ["t1"]
        if at > 20.0:
            lanes.hurry(at)
        lanes.refused(b"a", turn(1), 1.0, at)
        pauses.append(lanes.next_at - at)
    assert pauses == pytest.approx([PAUSE_MIN_S, 2 * PAUSE_MIN_S, NEWS_PAUSE_S, NEWS_PAUSE_S])


def test_a_lane_in_which_nobody_waits_any_more_ends_its_pause_and_begins_no_other():
    lanes = Lanes()
    lanes.put(b"a", turn(1))
    lanes.put(b"a", turn(2))
    assert taken(lanes) == ["t1", "t2"]
    lanes.refused(b"a", turn(2), 1.0, 1.0)
    lanes.drop(b"a", "t2")
    lanes.on_time(lanes.next_at)
    assert lanes.next_at is None


def test_many_lanes_that_pause_do_so_longer():
    lanes = Lanes()
    for number in range(1_000):
        lanes.put(b"%d" % number, turn(number))
    while (one := lanes.take()) is not None:
        lanes.refused(one[1], turn(int(one[0][1:])), 1.0, 0.0)
    assert lanes.next_at == pytest.approx(10.0)


def test_who_wants_no_turn_any_more_gets_none_and_takes_no_room():
    lanes = Lanes()
    count = 4 * GONE_MAX
    for number in range(count):
        lanes.put(b"a", turn(number))
    for number in range(1, count - 1):
        lanes.drop(b"a", f"t{number}")
    assert len(lanes._lanes[b"a"].ready) <= GONE_MAX + 2
    assert taken(lanes) == ["t0", f"t{count - 1}"]
    lanes.put(b"b", turn(0))
    lanes.drop(b"b", "t0")
    assert b"b" not in lanes._lanes


@given(st.lists(st.tuples(st.sampled_from("pdbrtn"), st.integers(0, 3)), max_size=80))
def test_every_entry_is_in_its_lane_or_out_and_none_is_lost(steps):
    lanes, ready, out, now, numbers = Lanes(), {}, {}, 0.0, iter(range(1_000))
    for what, choice in steps:
        key = b"%d" % choice
        if what == "p":
            number = next(numbers)
            lanes.put(key, turn(number))
            ready[f"t{number}"] = key
        elif what == "t" and (one := lanes.take()) is not None:
            assert ready.pop(one[0]) == one[1]
            out[one[0]] = one[1]
        elif what == "d" and ready:
            gone = sorted(ready)[choice % len(ready)]
            lanes.drop(ready.pop(gone), gone)
        elif what in "br" and out:
            back = sorted(out)[choice % len(out)]
            if what == "b":
                lanes.back(out.pop(back), is_done=bool(choice % 2))
            else:
                ready[back] = out.pop(back)
                lanes.refused(ready[back], turn(int(back[1:])), 1.0, now)
        elif what == "n":
            now += choice
            lanes.on_time(now)
            lanes.hurry(now)
    for back in list(out):
        lanes.back(out.pop(back), is_done=True)
    found = set()
    for _ in range(100):
        found |= set(taken(lanes))
        now += PAUSE_MAX_S
        lanes.on_time(now)
    assert found == set(ready)


def test_what_has_ended_goes_by_age_and_where_room_is_scarce_what_was_fetched_first(monkeypatch):
    monkeypatch.setattr(ended_module, "ENDED_S", 10.0)
    monkeypatch.setattr(ended_module, "ENDED_BYTES_MAX", 100)
    ended = Ended()
    assert (ended.next_ms, ended.overdue(0)) == (None, [])
    for number in range(3):
        ended.add(f"t{number}", 40, 1_000 * number)
    ended.fetched("t2")
    ended.fetched("unknown")
    assert ended.overdue(3_000) == ["t2"]
    ended.add("t3", 40, 3_000)
    assert ended.overdue(3_000) == ["t0"], "the oldest, where nobody has fetched any"
    assert (ended.next_ms, ended.bytes, len(ended)) == (11_000, 80, 2)
    assert ended.overdue(11_000) == ["t1"]
    ended.remove("t3")
    ended.remove("t3")
    assert (len(ended), ended.bytes) == (0, 0)


async def test_an_end_is_told_however_much_waits_already(monkeypatch):
    monkeypatch.setattr(watcher_module, "EVENTS_MAX", 3)
    watcher = Watcher()
    for number in range(5):
        watcher.tell({"number": number}, 10)
    watcher.end({"end": True}, 10)
    seen = []
    async with asyncio.timeout(5):
        while (event := await watcher.next()) is not None:
            seen.append(event)
    assert seen == [{"number": 1}, {"number": 2}, {"end": True, "missed": 3}]


async def test_what_waits_for_an_onlooker_is_bounded_in_bytes_but_one_always_fits(monkeypatch):
    monkeypatch.setattr(watcher_module, "EVENTS_BYTES_MAX", 100)
    watcher = Watcher()
    watcher.tell({"number": 0}, 1_000)
    watcher.tell({"number": 1}, 1)
    assert watcher.missed == 1
    assert await watcher.next() == {"number": 0}
    watcher.tell({"number": 2}, 60)
    watcher.tell({"number": 3}, 60)
    assert await watcher.next() == {"number": 2, "missed": 1}
    watcher.close()
    assert await asyncio.wait_for(watcher.next(), 5) is None
