"""One queue of named times, with one next deadline."""

from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.timers import Timers


def drain(timers, now):
    due = []
    while (key := timers.pop_due(now)) is not None:
        due.append(key)
    return due


def test_keys_fire_in_the_order_of_their_times_and_ties_in_the_order_of_setting():
    timers = Timers()
    timers.set("late", 3.0)
    timers.set("b", 1.0)
    timers.set("a", 1.0)
    assert timers.next_deadline() == 1.0
    assert drain(timers, 2.0) == ["b", "a"]
    assert timers.next_deadline() == 3.0


def test_setting_again_replaces_and_setting_earlier_only_ever_brings_forward():
    timers = Timers()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    timers.set_earlier("a", 7.0)
    assert timers.next_deadline() == 5.0
    timers.set_earlier("a", 4.0)
    assert (timers.next_deadline(), len(timers)) == (4.0, 1)


def test_a_cancelled_key_does_not_fire_and_may_be_cancelled_again():
    timers = Timers()
    timers.set("a", 1.0)
    assert timers.pending("a")
    timers.cancel("a")
    timers.cancel("a")
    assert not timers.pending("a")
    assert timers.next_deadline() is None
    assert timers.pop_due(9.0) is None


def test_only_wanted_keys_are_pushed_back():
    timers = Timers()
    timers.set("judge", 1.0)
    timers.set("gossip", 2.0)
    timers.shift(10.0, lambda key: key == "judge")
    assert drain(timers, 5.0) == ["gossip"]
    assert timers.next_deadline() == 11.0


def test_times_that_are_set_over_and_over_do_not_pile_up():
    timers = Timers()
    for number in range(10_000):
        timers.set(("suspicion", number % 3), 1e6 + number)
    assert len(timers._heap) < 100
    assert len(timers) == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.booleans()), max_size=300))
def test_the_queue_behaves_like_a_dict_of_times(steps):
    timers, plain = Timers(), {}
    for key, at, is_set in steps:
        if is_set:
            timers.set(key, float(at))
            plain[key] = float(at)
        else:
            timers.cancel(key)
            plain.pop(key, None)
        assert timers.next_deadline() == (min(plain.values()) if plain else None)
    assert sorted(drain(timers, 100.0)) == sorted(plain)
