"""Why a node is believed to be what it is: the screen of `meshd info`, word for word."""

import pytest
from stand_in import B_ID, NUC_ID, PEERS, SELF_ID

from meshd.cli import belief
from meshd.cli.belief import Names
from meshd.gossip import history as core

A = {"id": SELF_ID, "name": "lab-a"}
B = {"id": B_ID, "name": "lab-b"}
NUC = {"id": NUC_ID, "name": "nuc"}
STRANGER = {"id": "00112233aabbccdd", "name": None}
DOUBTED = (
    "since 2.1s: no answer to lab-a's and lab-b's probes; 1 of 3 confirmations; dead in 3.2s"
    " unless it refutes"
)
NAMES = Names(PEERS["nodes"])
REASONS = (
    core.HEARD_OF, core.TOLD, core.UNANSWERED, core.RAN_OUT, core.RESTARTED, core.GOODBYE,
    core.REFUTED, core.MOVED, core.RETURNED, core.CONFIRMED, core.RETRACTED,
)  # fmt: skip


def event(ago_s, state, incarnation, reason, accuser=None, teller=None):
    return {
        "ago_s": ago_s, "wall_ms": 1, "state": state, "incarnation": incarnation,
        "reason": reason, "accuser": accuser, "sponsor": None, "teller": teller,
    }  # fmt: skip


def doubt(**more):
    return {
        "accusers": [A, B], "retracted": [], "confirmations": 1, "needed": 3, "since_s": 2.1,
        "dead_in_s": 3.2, "t_min_s": 3.0, "t_max_s": 18.0, "lag_s": 0.0, "crowd": False,
        "last_call": False, **more,
    }  # fmt: skip


def explained(state="suspect", history=(), **more):
    return {
        "schema": "meshd.explain/2", "node": NUC_ID, "name": "nuc", "state": state, "epoch": 1,
        "incarnation": 4, "history": list(history), "doubt": None,
        "evidence": {
            "heard_s": 4.1, "reachable": True, "lag_s": 0.0, "gone_s": None, "forgotten_in_s": None,
            "sponsor": None,
            "probe": {"ago_s": 2.1, "result": "no answer", "rtt_ms": None},
        },
        "observer": {**A, "health_score": 0, "health_max": 8, "lag_s": 0.0},
        **more,
    }  # fmt: skip


def test_info_explains_a_doubt(meshd, fake):
    fake.results["explain"] = explained(
        history=[
            event(3_600, "alive", 3, core.HEARD_OF, None, B),
            event(2.1, "suspect", 4, core.TOLD, A, B),
            event(1.5, "suspect", 4, core.CONFIRMED, B, B),
        ],
        doubt=doubt(),
        evidence={**explained()["evidence"], "reachable": False},
    )
    done = meshd("info", "nuc")
    assert done.exit == 0
    assert done.out.splitlines()[:3] == [
        f"node         nuc  ({NUC_ID})",
        (
            "state        suspect for 2.1s: no answer to lab-a's and lab-b's probes;"
            " 1 of 3 confirmations; dead in 3.2s unless it refutes  (unreachable from here)"
        ),
        "doubt        3.0s if 3 confirm it, 18s if nobody does",
    ]
    assert done.out.splitlines()[-3:] == [
        "history        1h ago  alive @3    first heard of, told by lab-b",
        "             2.1s ago  suspect @4  told by lab-b: no answer to lab-a's probe",
        "             1.5s ago  suspect @4  no answer to lab-b's probe either",
    ]
    assert "seen         no answer to the own probe that ended 2.1s ago\n" in done.out
    assert "             no work is sent there until it is heard again\n" in done.out
    assert "observer     lab-a, health 0 of 8 (0 is well)\n" in done.out


def test_peers_counts_down_to_a_death(meshd, fake):
    (line,) = [line for line in meshd("peers").out.splitlines() if line.startswith("nuc")]
    assert line.endswith("(2 of 3 confirmations, dead in 3.2s, unreachable from here)")
    assert meshd("peers", "nuc", "--json").json["nodes"][0]["doubt"]["needed"] == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "no answer to lab-a's and lab-b's probes; 1 of 3 confirmations; dead in 3.2s"),
        ({"accusers": [NUC]}, "no answer to nuc's probe; 1 of 3 confirmations; dead in 3.2s"),
        ({"accusers": []}, "by hearsay alone; 1 of 3 confirmations; dead in 3.2s"),
        ({"retracted": [A], "needed": 0},
         "no answer to lab-b's probe; taken back by lab-a; dead in 3.2s"),
        ({"accusers": [B, NUC, A], "needed": 0},
         "no answer to lab-b's, nuc's and lab-a's probes; dead in 3.2s"),
    ],
)  # fmt: skip
def test_a_doubt_says_whose_opinions_stand(changes, text):
    told = belief.standing(explained(doubt=doubt(**changes)), NAMES)
    assert told == f"for 2.1s: {text} unless it refutes"


def test_a_doubt_that_lasts_longer_says_why():
    assert belief.duration(explained()) == ""
    alone = belief.duration(explained(doubt=doubt(needed=0)))
    assert alone == "3.0s: there is nobody else to confirm it"
    told = belief.duration(explained(doubt=doubt(lag_s=0.4, crowd=True, last_call=True)))
    assert told.splitlines()[1:] == [
        "longer by 0.8s, for it said that it reads its mail late",
        "longer, for many are suspected at once",
        "two others were asked once more whether it refuted",
    ]


def test_the_dead_say_for_how_long_and_why_and_for_how_long_they_are_remembered():
    past = [event(9.0, "suspect", 4, core.UNANSWERED, A), event(4.2, "dead", 4, core.RAN_OUT, A)]
    evidence = {**explained()["evidence"], "forgotten_in_s": 80_000.0}
    told = belief.standing(explained("dead", past, evidence=evidence), NAMES)
    assert told == "for 4.2s: not refuted in time; forgotten in 22h"


def test_nothing_is_made_up_about_a_state_whose_change_was_not_seen():
    assert belief.standing(explained("alive"), NAMES) == ""
    assert belief.standing(explained("alive", [event(9, "dead", 1, core.TOLD)]), NAMES) == ""
    assert belief.standing({"node": NUC_ID}, NAMES) == ""


@pytest.mark.parametrize(
    ("reason", "accuser", "teller", "text"),
    [
        (core.HEARD_OF, None, NUC, "first heard of, told by itself"),
        (core.HEARD_OF, A, B, "first heard of, told by lab-b: no answer to lab-a's probe"),
        (core.TOLD, None, None, "told by a peer"),
        (core.TOLD, None, STRANGER, "told by 00112233aabbccdd"),
        (core.UNANSWERED, A, None, "no answer to lab-a's probe"),
        (core.UNANSWERED, None, None, "no answer to a probe"),
        (core.RESTARTED, None, B, "restarted, told by lab-b"),
        (core.GOODBYE, None, NUC, "said goodbye, told by itself"),
        (core.REFUTED, None, B, "refuted, told by lab-b"),
        (core.MOVED, None, NUC, "moved to another address, told by itself"),
        (core.RETURNED, None, NUC, "came back, told by itself"),
        (core.CONFIRMED, A, B, "no answer to lab-a's probe either, told by lab-b"),
        (core.RETRACTED, B, B, "lab-b took its doubt back, an answer came late"),
        ("of a later version \x1b", None, None, "of a later version \\x1b"),
    ],
)
def test_each_event_is_told_in_words(reason, accuser, teller, text):
    told = event(1, "suspect", 1, reason, accuser, teller)
    assert belief.happened(told, explained(), NAMES) == text


def test_a_newcomer_says_who_vouched_for_it():
    for teller, text in ((B, "told by lab-b, vouched for by lab-a"), (A, "told by lab-a")):
        told = {**event(1, "alive", 1, core.HEARD_OF, None, teller), "sponsor": A}
        assert belief.happened(told, explained(), NAMES) == f"first heard of, {text}"
    itself = {**event(1, "alive", 1, core.RESTARTED), "sponsor": A}
    assert belief.happened(itself, explained(), NAMES) == "restarted, vouched for by lab-a"
    known = {**event(1, "alive", 1, core.REFUTED), "sponsor": A}
    assert belief.happened(known, explained(), NAMES) == "refuted"


def test_every_reason_of_the_core_has_its_words():
    assert set(belief.REASONS) == set(REASONS) == set(core._REASONS)


def test_two_nodes_of_one_name_are_told_apart_by_their_ids():
    names = Names([*PEERS["nodes"], {"id": "ff" * 8, "name": "nuc"}])
    assert names.of(NUC) == f"nuc ({NUC_ID[:4]})"
    assert names.of(B) == "lab-b"


def test_what_was_seen_first_hand_is_told_as_far_as_it_is_known():
    probe = {"ago_s": 0.5, "result": "answered", "rtt_ms": 0.8}
    seen = {"probe": probe, "reachable": True, "lag_s": 0.4, "sponsor": B}
    told = belief.evidence({"evidence": seen}, NAMES)
    assert told.splitlines() == [
        "answered in 0.8 ms to the own probe that ended 0.5s ago",
        "reads its mail up to 400 ms late, as it says",
        "met and vouched for by lab-b",
    ]
    assert belief.evidence({}, NAMES) == ""


@pytest.mark.parametrize(
    ("health", "lag_s", "text"),
    [
        (3, 0.0, "health 3 of 8 (0 is well)"),
        (0, 0.5, "health 0 of 8 (0 is well), reads its mail up to 500 ms late"),
    ],
)
def test_who_is_ill_itself_says_so(health, lag_s, text):
    who = {**A, "health_score": health, "health_max": 8, "lag_s": lag_s}
    told = belief.observer({"observer": who}, NAMES)
    assert told == f"lab-a, {text}: maybe it is this node that is slow"
    assert belief.observer({}, NAMES) == ""


def test_a_little_lateness_is_told_without_a_doubt_about_oneself():
    who = {**A, "health_score": 0, "health_max": 8, "lag_s": 0.02}
    told = belief.observer({"observer": who}, NAMES)
    assert told == "lab-a, health 0 of 8 (0 is well), reads its mail up to 20.0 ms late"


def test_a_long_history_is_cut_at_the_old_end():
    past = [event(i, "alive", i, core.TOLD, None, B) for i in range(30, 0, -1)]
    told = belief.history(explained("alive", past), NAMES).splitlines()
    assert told[0] == "… 10 earlier events: --json"
    assert told[-1] == "1.0s ago  alive @1   told by lab-b"
    assert belief.history({}, NAMES) == "nothing recorded"


def test_what_peers_call_themselves_cannot_move_the_cursor_here_either(meshd, fake):
    evil = {"id": B_ID, "name": "x\x1b[2J"}
    fake.results["explain"] = explained(
        history=[event(1, "suspect", 1, core.TOLD, evil, evil)], doubt=doubt(accusers=[evil])
    )
    assert "\x1b" not in meshd("info", "nuc").out
