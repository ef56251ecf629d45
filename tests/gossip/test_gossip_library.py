"""Documents come together from chunks in any order, are held once, and take bounded room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip import library as rooms
from meshd.gossip.library import Added, Library, chunks_of, digest_of, documents_of
from meshd.gossip.messages import CHUNK_BYTES, StateEntry
from meshd.model import NodeId

ME, ONE, TWO = NodeId(b"me______"), NodeId(b"one_____"), NodeId(b"two_____")


def missing_in(library: Library, *bodies: bytes, owner: NodeId = ONE) -> list[bytes]:
    """Make documents known to a library that has none of them; returns their digests."""
    found = {digest_of(body): len(body) for body in bodies}
    assert library.refer(owner, {}, found, None)
    return list(found)


def whole(library: Library, body: bytes) -> Added:
    """Give all chunks of a document, one by one."""
    added = Added.NOTHING
    for number in range(chunks_of(len(body))):
        at = number * CHUNK_BYTES
        added = library.add(digest_of(body), number, body[at : at + CHUNK_BYTES])
    return added


@given(st.binary(min_size=1, max_size=6_000), st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_more_than_once_make_the_document(body, rng):
    library = Library()
    (digest,) = missing_in(library, body)
    count = chunks_of(len(body))
    pieces = [(first, rng.randint(1, 3)) for first in range(count) for _ in range(2)]
    rng.shuffle(pieces)
    added = [
        library.add(digest, first, body[first * CHUNK_BYTES : (first + run) * CHUNK_BYTES])
        for first, run in pieces
    ]
    assert added.count(Added.WHOLE) == 1
    assert set(added[added.index(Added.WHOLE) + 1 :]) <= {Added.NOTHING}
    assert library.get(digest) == body
    assert library.missing(digest) is None
    assert len(library) == 0


def test_a_chunk_of_the_wrong_length_or_number_is_none():
    library = Library()
    body = bytes(CHUNK_BYTES + 100)
    (digest,) = missing_in(library, body)
    for first, data in ((0, b"x" * 511), (1, b"x" * 101), (1, b""), (2, b"x"), (9, bytes(512))):
        assert library.add(digest, first, data) is Added.NOTHING
    assert library.missing(digest).lacking() == [0, 1]
    assert library.add(digest, 1, bytes(100)) is Added.SOME
    assert library.missing(digest).lacking() == [0]
    assert library.add(digest_of(b"never heard of"), 0, b"x") is Added.NOTHING


def test_what_its_digest_does_not_stand_for_is_dropped_and_begun_anew():
    library = Library()
    body = bytes(CHUNK_BYTES + 1)
    (digest,) = missing_in(library, body)
    library.add(digest, 0, b"x" * CHUNK_BYTES)
    assert library.add(digest, 1, b"\0") is Added.WRONG
    missing = library.missing(digest)
    assert missing.doubts == 1
    assert missing.lacking() == [0, 1]
    assert whole(library, body) is Added.WHOLE


def test_only_so_many_documents_are_begun_at_a_time():
    library = Library()
    bodies = [bytes([n]) * 600 for n in range(rooms.ASSEMBLIES_MAX + 1)]
    digests = missing_in(library, *bodies)
    for digest, body in zip(digests, bodies, strict=True):
        library.add(digest, 1, body[CHUNK_BYTES:])
    last = library.missing(digests[-1])
    assert last.parts == {}
    assert not library.may_begin(last)
    first = library.missing(digests[0])
    assert library.may_begin(first)
    library.start_over(first)
    library.start_over(first)
    assert library.may_begin(last)


def test_a_full_library_leaves_the_rest_missing_until_there_is_room(monkeypatch):
    monkeypatch.setattr(rooms, "LIBRARY_BYTES_MAX", 1_000)
    library = Library()
    here, there = b"a" * 600, b"b" * 600
    missing_in(library, here)
    missing_in(library, there, owner=TWO)
    assert whole(library, here) is Added.WHOLE
    assert not library.may_begin(library.missing(digest_of(there)))
    assert whole(library, there) is Added.NOTHING
    library.refer(ONE, {digest_of(here): 600}, {}, None)
    assert whole(library, there) is Added.WHOLE


def test_only_so_many_missing_ones_are_remembered(monkeypatch):
    monkeypatch.setattr(rooms, "MISSING_MAX", 2)
    library = Library()
    missing_in(library, b"1" * 20, b"2" * 20, b"3" * 20)
    assert len(library) == len(list(library.all_missing())) == 2


def test_one_document_of_two_nodes_is_held_once_and_as_long_as_either_has_it():
    library = Library()
    body = b"same" * 100
    (digest,) = missing_in(library, body)
    missing_in(library, body, owner=TWO)
    assert list(library.users(digest)) == [ONE, TWO]
    assert library.owners() == [ONE]
    library.refer(ONE, {digest: 400}, {}, None)
    assert library.owners() == [TWO]
    assert whole(library, body) is Added.WHOLE
    assert not library.refer(ONE, {}, {digest: 400}, None)
    library.refer(ONE, {digest: 400}, {}, None)
    assert library.get(digest) == body
    library.refer(TWO, {digest: 400}, {}, None)
    assert library.get(digest) is None
    assert list(library.users(digest)) == []


def test_a_reference_that_moves_from_one_user_to_another_keeps_the_owner_where_it_may():
    library = Library()
    (digest,) = missing_in(library, b"x" * 50)
    missing_in(library, b"x" * 50, owner=TWO)
    library.refer(TWO, {digest: 50}, {}, None)
    assert library.owners() == [ONE]
    library.refer(ONE, {digest: 50}, {}, None)
    assert len(library) == 0
    assert library.owners() == []


def test_an_own_document_needs_not_be_fetched():
    library = Library()
    body = b"own" * 100
    (digest,) = missing_in(library, body)
    assert library.put(body) == digest
    library.put(body)
    assert len(library) == 0
    assert library.get(digest) == body


def test_owners_take_turns_and_each_owners_smallest_come_first():
    library = Library()
    entries = [
        StateEntry(f"k{n}", n + 1, digest_of(bytes(size)), size)
        for n, size in enumerate((900, 20, 300))
    ]
    library.refer(ONE, {}, documents_of(entries), None)
    missing_in(library, b"other" * 10, owner=TWO)
    assert [missing.size for missing in library.of(ONE)] == [20, 300, 900]
    assert library.owners() == [ONE, TWO]
    library.served(ONE)
    assert library.owners() == [TWO, ONE]


@pytest.mark.parametrize(("sizes", "taken"), [((65_536,), 1), ((40_000, 30_000, 100), 2)])
def test_of_a_node_that_offers_too_much_the_smallest_are_taken(sizes, taken):
    entries = [StateEntry(f"k{n}", n + 1, bytes([n]) * 16, size) for n, size in enumerate(sizes)]
    entries.append(StateEntry("inline", 9, b"value"))
    assert len(documents_of(entries)) == taken


def test_who_no_longer_refers_to_what_it_never_did_changes_nothing():
    library = Library()
    (digest,) = missing_in(library, b"x" * 50)
    library.refer(TWO, {digest: 50, b"never heard of__": 9}, {}, None)
    assert list(library.users(digest)) == [ONE]
    assert len(library) == 1
