"""The JSON of `explain`, from made up beliefs."""

from meshd.clock import Instant
from meshd.daemon.explaining import explain_shape
from meshd.gossip.explanation import FAILED, Explanation, PastEvent, Probed
from meshd.gossip.history import TOLD
from meshd.model import Address, MemberState, NodeId
from meshd.view import ClusterView, Doubt, Peer

ME, NAMED, NAMELESS, UNKNOWN = (NodeId(bytes([n]) * 8) for n in range(1, 5))
NOW = Instant(100.0)


def _peer(node, name):
    return Peer(node, name, Address("10.0.0.1", node[0]), MemberState.ALIVE, 1, 0)


VIEW = ClusterView(
    version=1, me=ME, stale_after_s=9.0,
    by_node={n: _peer(n, t) for n, t in ((ME, "me"), (NAMED, "nuc"), (NAMELESS, NAMELESS.hex()))},
)  # fmt: skip


def _explained(**more):
    values = {
        "node": NAMED, "state": MemberState.SUSPECT, "epoch": 7, "incarnation": 4, "events": (),
        "doubt": None, "heard_at": None, "probed": None, "is_reachable": True, "lag_s": 0.0,
        "gone_at": None, "forgotten_at": None, "sponsor": None, "health": 2, "health_max": 8,
        "own_lag_s": 0.25,
    }  # fmt: skip
    return explain_shape(Explanation(**values | more), VIEW, NOW, 1_000_000)


def test_ids_come_with_names_where_these_are_known():
    event = PastEvent(Instant(90.0), MemberState.SUSPECT, 4, TOLD, NAMELESS, UNKNOWN)
    told = _explained(events=(event,))
    assert (told["schema"], told["name"]) == ("meshd.explain/2", "nuc")
    assert told["history"] == [
        {
            "ago_s": 10.0, "wall_ms": 990_000, "state": "suspect", "incarnation": 4,
            "reason": TOLD, "sponsor": None, "accuser": {"id": NAMELESS.hex(), "name": None},
            "teller": {"id": UNKNOWN.hex(), "name": None},
        }
    ]  # fmt: skip
    assert told["observer"] == {
        "id": ME.hex(), "name": "me", "health_score": 2, "health_max": 8, "lag_s": 0.25,
    }  # fmt: skip


def test_whoever_is_named_with_somebody_alive_vouches_for_it():
    event = PastEvent(Instant(90.0), MemberState.ALIVE, 4, TOLD, ME, NAMED)
    (told,) = _explained(events=(event,))["history"]
    assert (told["accuser"], told["sponsor"]) == (None, {"id": ME.hex(), "name": "me"})


def test_what_is_unknown_is_null():
    told = _explained()
    assert told["doubt"] is None
    assert told["evidence"] == {
        "heard_s": None, "probe": None, "reachable": True, "lag_s": 0.0, "sponsor": None,
        "gone_s": None, "forgotten_in_s": None,
    }  # fmt: skip


def test_times_are_told_as_ages_and_a_doubt_says_whose_it_is():
    doubt = Doubt((ME, NAMED), (NAMED,), 0, 3, Instant(98.0), Instant(99.0), 3.0, 18.0)
    told = _explained(
        doubt=doubt, heard_at=Instant(96.0), probed=Probed(Instant(97.0), FAILED),
        gone_at=Instant(95.0), forgotten_at=Instant(195.0), sponsor=ME,
    )  # fmt: skip
    assert told["doubt"] == {
        "confirmations": 0, "needed": 3, "since_s": 2.0, "dead_in_s": 0.0,
        "accusers": [{"id": ME.hex(), "name": "me"}, {"id": NAMED.hex(), "name": "nuc"}],
        "retracted": [{"id": NAMED.hex(), "name": "nuc"}], "t_min_s": 3.0, "t_max_s": 18.0,
        "lag_s": 0.0, "crowd": False, "last_call": False,
    }  # fmt: skip
    assert told["evidence"] == {
        "heard_s": 4.0, "probe": {"ago_s": 3.0, "result": FAILED, "rtt_ms": None},
        "reachable": True, "lag_s": 0.0, "sponsor": {"id": ME.hex(), "name": "me"}, "gone_s": 5.0,
        "forgotten_in_s": 95.0,
    }  # fmt: skip
    answered = _explained(probed=Probed(Instant(97.0), "answered", 0.0012))
    assert answered["evidence"]["probe"]["rtt_ms"] == 1.2
