"""A bounded run of the fuzzer, and proof that it would see what it looks for."""

import random

import msgpack
import pytest

from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import decode
from meshd.gossip.outbox import Outbox
from meshd.gossip.sync import Exchange
from meshd.gossip.trust import Trust
from sim.fuzz import Fuzzed, fuzz
from sim.fuzz_values import KINDS_OF_INPUT, packed, structured
from sim.world import MESH

MESH_SEED = 3


@pytest.fixture(scope="module")
def pool():
    return Fuzzed(MESH_SEED).pool


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_datagram_breaks_a_node_or_changes_what_it_believes_if_refused():
    fed, findings, refused = fuzz(20_000, MESH_SEED)
    assert "\n".join(map(str, findings)) == ""
    assert fed == 20_000
    assert {"not_msgpack", "not_a_message", "unproven", "epoch_ahead"} <= set(refused)


def test_the_same_seed_draws_the_same_datagrams(pool):
    draws = [[make(pool, random.Random(5)) for make in KINDS_OF_INPUT.values()] for _ in range(2)]
    assert draws[0] == draws[1]


def test_most_structured_datagrams_of_each_kind_can_be_read(pool):
    rng, read = random.Random(7), {}
    for _ in range(3_000):
        data, _source = structured(pool, rng)
        try:
            message = decode(data, MESH).message
        except DecodeError:
            continue
        read[type(message).__name__] = read.get(type(message).__name__, 0) + 1
    assert len(read) >= 12
    assert sum(read.values()) > 1_000


def test_what_msgpack_cannot_say_is_sent_as_nothing():
    assert msgpack.unpackb(packed([1, 2**80])) == [1, None]


def test_a_machine_that_raises_is_found(monkeypatch):
    def broken(*_args: object, **_options: object) -> None:
        raise KeyError("no such row")

    mesh = Fuzzed(MESH_SEED)
    monkeypatch.setattr(Beliefs, "hear_all", broken)
    mesh.run(300)
    assert "KeyError" in str(mesh.findings[0])
    assert f"seed {MESH_SEED}" in str(mesh.findings[0])


def test_a_belief_changed_by_what_was_refused_is_found(monkeypatch):
    original = Outbox.reject
    mesh = Fuzzed(MESH_SEED)

    def reject(outbox, reason, source):
        original(outbox, reason, source)
        if reason == "not_msgpack":
            mesh._puts += 1

    monkeypatch.setattr(Outbox, "reject", reject)
    mesh.run(100)
    assert "refused as not_msgpack, and believed" in {each.text for each in mesh.findings}


def test_an_answer_larger_than_its_question_is_found(monkeypatch):
    original = Outbox.send_bare
    monkeypatch.setattr(
        Outbox, "send_bare", lambda *args: [original(*args) for _ in range(2)] and None
    )
    mesh = Fuzzed(MESH_SEED)
    mesh.run(400)
    assert any("replies of" in each.text for each in mesh.findings)


def test_questions_to_strangers_without_end_are_found(monkeypatch):
    def meet(self, _stranger, address, now):
        self._exchange.join(address, now, tries=1)

    monkeypatch.setattr(Trust, "meet", meet)
    monkeypatch.setattr(Exchange, "is_at", lambda *_args: False)
    mesh = Fuzzed(MESH_SEED)
    mesh.run(1_500)
    assert any("joins to strangers" in each.text for each in mesh.findings)


def test_what_waits_without_bound_is_found(monkeypatch):
    mesh = Fuzzed(MESH_SEED)
    swim = mesh.target.swim
    monkeypatch.setattr(type(swim), "pending", lambda _self: {"relays": 257})
    mesh.run(50)
    assert [each.text for each in mesh.findings] == ["257 relays wait"]
