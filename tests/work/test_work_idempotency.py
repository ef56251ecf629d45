"""The memory of first results stays within its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.work.idempotency import Memory

NOW = Instant(0.0)


def test_the_first_result_stays():
    memory: Memory[str] = Memory()
    memory.put(("c", "k"), "first", digest=b"1", size=5, now=NOW)
    memory.put(("c", "k"), "second", digest=b"2", size=6, now=NOW)
    found = memory.get(("c", "k"), NOW)
    assert found is not None
    assert (found.value, found.digest) == ("first", b"1")
    assert memory.get(("other", "k"), NOW) is None
    assert memory.bytes == 5


def test_results_grow_too_old():
    memory: Memory[str] = Memory(kept_s=10.0)
    memory.put(("c", "a"), "x", digest=b"", size=1, now=Instant(0.0))
    memory.put(("c", "b"), "x", digest=b"", size=1, now=Instant(5.0))
    assert memory.get(("c", "a"), Instant(10.0)) is not None
    assert memory.get(("c", "a"), Instant(10.1)) is None
    assert len(memory) == 1


def test_what_is_larger_than_the_memory_is_not_kept_and_drops_nothing():
    memory: Memory[str] = Memory(bytes_max=10)
    memory.put(("c", "a"), "x", digest=b"", size=10, now=NOW)
    memory.put(("c", "b"), "x", digest=b"", size=11, now=NOW)
    assert memory.get(("c", "a"), NOW) is not None
    assert memory.get(("c", "b"), NOW) is None
    assert memory.dropped == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=40))
def test_number_and_bytes_stay_within_bounds(steps):
    memory: Memory[int] = Memory(keys_max=3, bytes_max=20)
    for at, (key, size) in enumerate(steps):
        memory.put(("c", str(key)), at, digest=b"", size=size, now=NOW)
        assert len(memory) <= 3
        assert 0 <= memory.bytes <= 20
        assert memory.get(("c", str(key)), NOW) is not None
