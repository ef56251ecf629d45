"""What a call asks of whoever does it, what that costs, and how `meshd info` tells of both."""

from stand_in import CAPABILITIES, PEERS


def test_info_tells_region_labels_and_prices(meshd, fake):
    row = {**PEERS["nodes"][1], "region": "eu-west", "labels": {"gpu": "a100"}}
    fake.results["peers"] = {**PEERS, "nodes": [row]}
    priced = {**CAPABILITIES[0], "cost_usd_per_call": 0.01, "cost_usd_per_unit": 0.002,
              "unit": "token"}  # fmt: skip
    fake.results["capabilities"] = {"capabilities": [priced]}
    fake.results["explain"] = {"state": "alive", "history": []}
    told = meshd("info", "lab-b").out
    for words in ("eu-west", "gpu=a100", "$0.01 a call + $0.002 a token"):
        assert words in told


SPENT = {
    "schema": "meshd.spend/1", "calls": 3, "cost_usd": 1.5,
    "spent": [{"caller": "agent buyer", "capability": "scan", "calls": 3, "units": 6.0,
               "cost_usd": 1.5}],
    "caps": [{"caller": None, "cap": "node_usd_per_day", "cap_usd": 2.0, "spent_usd": 1.5,
              "resets_in_s": 7_200.0}],
}  # fmt: skip


def test_info_shows_what_callers_have_spent(meshd, fake):
    fake.results["spend"] = SPENT
    told = meshd("info", "--spend").out
    for words in ("agent buyer", "1.5000", "this node: $1.5000 of $2", "3 calls for $1.5000"):
        assert words in told
    assert meshd("info", "--spend", "--json").json == SPENT
    fake.results["spend"] = {**SPENT, "calls": 0, "cost_usd": 0.0, "spent": [], "caps": []}
    assert meshd("info", "--spend").out == "0 calls for $0.0000\n"
    assert meshd("info", "lab-b", "--spend").exit == 2


def test_what_is_asked_of_whoever_does_it_reaches_the_daemon(meshd, fake):
    fake.results["delegate"] = {
        "delegated_to": {"node": "lab-b"}, "peer_result": {"result": 1}, "cost_usd": 0.25,
    }  # fmt: skip
    done = meshd(
        "call", "scan", "--version", "^1.2", "--where", "warehouse in {A, B}", "--where", "gpu",
        "--region", "eu", "--label", "disk=ssd", "--difficulty", "0", "--budget", "0.5",
        "--affinity", "user-7",
    )  # fmt: skip
    asked = {
        "version": "^1.2", "where": ["warehouse in {A, B}", "gpu"], "region": "eu",
        "labels": {"disk": "ssd"}, "difficulty": 0.0, "cost_usd_max": 0.5, "affinity": "user-7",
    }  # fmt: skip
    assert asked.items() <= fake.params("delegate").items()
    assert "$0.25" in done.err
    assert meshd("call", "scan", "--label", "disk").exit == 2
    assert meshd("call", "scan", "--difficulty", "2").exit == 2
