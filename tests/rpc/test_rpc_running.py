"""Calls that run at one end of a channel are found by their ids."""

from hypothesis import given
from hypothesis import strategies as st

from meshd.rpc.running import RunningCalls

IDS = st.sampled_from([None, 1, 2, 1.0, 2.5, "1", "a", ""])
ASKED = st.sampled_from([None, True, 1, 2, 3, 1.0, 2.5, "1", "a", "", [1], {"id": 1}])


@given(st.lists(st.tuples(IDS, st.integers(0, 9), st.booleans())), ASKED)
def test_calls_are_found_by_an_id_of_the_same_type_and_by_nothing_else(steps, asked):
    running, seen = RunningCalls(), {}
    for number, (call_id, size, ends) in enumerate(steps):
        running.add(number, call_id, size)
        seen[number] = call_id, size
        if ends:
            first = next(iter(seen))
            assert running.remove(first) == seen.pop(first)[1]
    assert list(running) == list(seen)
    assert len(running) == len(seen)
    assert all(number in running for number in seen)
    alike = [
        n for n, (call_id, _) in seen.items() if (type(call_id), call_id) == (type(asked), asked)
    ]
    assert list(running.called(asked)) == ([] if asked is None else alike)
    for number in list(running):
        running.remove(number)
    assert not running._by_id
