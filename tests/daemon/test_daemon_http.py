"""The network port of a real daemon: the shapes that docs/PROTOCOL.md promises, no more."""

import http.client
import json
import re
import threading

import pytest
from processes import Site
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TEXT, NUMBER, COUNT, YES_NO = str, (int, float), int, bool
NODE_ID = re.compile(r"[0-9a-f]{16}")
URL = re.compile(r"http://127\.0\.0\.1:\d+")


class Fraction:
    """A number 0..1."""


class Percent:
    """A number 0..100."""


class Maybe:
    """A shape, or null."""

    def __init__(self, shape):
        self.shape = shape


LOAD = {
    "cpu": Fraction, "mem": Fraction, "in_flight": COUNT, "queue": COUNT, "slots": COUNT,
    "service_s": NUMBER, "error": Fraction, "lag_s": NUMBER, "ready": YES_NO, "full": YES_NO,
    "draining": YES_NO,
}  # fmt: skip
SUMMARY = {
    "name": TEXT, "version": TEXT, "idempotent": YES_NO, "agent": TEXT, "description": TEXT,
    "cost_usd_per_call": NUMBER, "cost_usd_per_unit": NUMBER, "proficiency": Fraction,
    "attributes": dict,
    "tags": [TEXT],
}  # fmt: skip
MANIFEST = SUMMARY | {
    "examples": [TEXT], "input_schema": dict, "output_schema": dict, "timeout_s": NUMBER,
    "concurrency": COUNT, "rate_per_s": NUMBER, "streaming": YES_NO,
    "unit": TEXT,
}  # fmt: skip
HOLDER = {"node": NODE_ID, "name": TEXT, "state": TEXT, "local": YES_NO}
DOUBT = {"confirmations": COUNT, "needed": COUNT, "since_s": NUMBER, "dead_in_s": NUMBER}
ROW = {
    "id": NODE_ID, "name": TEXT, "name_shared": YES_NO, "state": TEXT, "self": YES_NO,
    "address": TEXT, "port": COUNT,
    "url": URL, "epoch": COUNT, "incarnation": COUNT, "version": TEXT, "load": LOAD,
    "region": TEXT, "labels": dict,
    "rtt_ms": Maybe(NUMBER), "rtt_estimate_ms": Maybe(NUMBER),
    "rtt_estimate_error": Maybe(NUMBER), "age_s": Maybe(NUMBER), "stale": YES_NO,
    "reachable": YES_NO, "doubt": Maybe(DOUBT),
    "capabilities": [SUMMARY],
}  # fmt: skip
DELEGATED_TO = {
    "agent": TEXT, "node": TEXT, "cpu": Maybe(Percent), "mem": Maybe(Percent),
    "latency_ms": Maybe(NUMBER), "url": URL,
}  # fmt: skip
ATTEMPT = {"node": NODE_ID, "name": TEXT, "outcome": TEXT, "latency_ms": NUMBER}


def check(value, shape, where="result"):
    """Fail unless `value` has exactly this shape: all keys, no others, the right types."""
    match shape:
        case Maybe():
            if value is not None:
                check(value, shape.shape, where)
        case dict():
            assert set(value) == set(shape), where
            for key, part in shape.items():
                check(value[key], part, f"{where}.{key}")
        case [part]:
            assert isinstance(value, list), where
            for number, each in enumerate(value):
                check(each, part, f"{where}[{number}]")
        case re.Pattern():
            assert isinstance(value, str), where
            assert shape.fullmatch(value), f"{where}: {value}"
        case _ if shape in {Fraction, Percent}:
            check(value, NUMBER, where)
            assert 0 <= value <= (1 if shape is Fraction else 100), f"{where}: {value}"
        case _:
            assert isinstance(value, shape), f"{where}: {value!r}"
            assert shape is YES_NO or not isinstance(value, bool), f"{where}: {value!r}"


@pytest.fixture(scope="module")
def mesh():
    """Two daemons, the second of which has something that the first lacks."""
    site = Site()
    a, b = site.start_mesh("a", "b", flags=("--capability", "served"))
    program = site.program(str(site.write("own.py", _PROGRAM)), b.control.path)
    program.line("serving")
    a.offers("only_b")
    yield a, b
    site.close()


_PROGRAM = """
import asyncio, sys
from meshd import Mesh

mesh = Mesh("b-program", control=sys.argv[1])


@mesh.agent(tags=["rare"], examples=["do it"], idempotent=True, timeout_s=7)
def only_b(text: str) -> str:
    "Something that no other node has."
    return text[::-1]


async def main():
    async with mesh:
        print("serving", file=sys.stderr)
        await mesh.serve()


asyncio.run(main())
"""


def get(daemon, path):
    """An HTTP GET at the network port: status, content type, body."""
    link = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
    try:
        link.request("GET", path)
        response = link.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        link.close()


def post(daemon, message):
    """The JSON body that a POST to /rpc at the network port is answered with."""
    link = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    try:
        link.request("POST", "/rpc", json.dumps(message), {"Content-Type": "application/json"})
        return json.loads(link.getresponse().read())
    finally:
        link.close()


def rpc(daemon, method, **params):
    answer = post(daemon, {"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    assert answer["id"] == 7
    assert "error" not in answer, answer
    return answer["result"]


def refused(daemon, method, **params):
    answer = post(daemon, {"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    assert "result" not in answer, answer
    check(answer["error"]["message"], TEXT)
    return answer["error"]


def test_info(mesh):
    a, _ = mesh
    info = rpc(a, "info")
    check(info, {
        "schema": TEXT, "agent": TEXT, "node": NODE_ID, "name": TEXT, "mesh": TEXT,
        "version": TEXT, "address": TEXT, "url": URL, "uptime_s": NUMBER, "incarnation": COUNT,
        "region": TEXT, "labels": dict,
        "epoch": COUNT, "cpu": Percent, "mem": Percent, "load": LOAD, "capabilities": [TEXT],
    })  # fmt: skip
    assert (info["schema"], info["agent"], info["node"]) == ("meshd.info/1", "a", a.id)
    assert info["address"] == a.address
    assert "shout" in info["capabilities"]
    # A machine that runs tests uses some per cent of its memory: a fraction would be below 1.
    assert info["mem"] == pytest.approx(100 * info["load"]["mem"], abs=0.2)


def test_peers(mesh):
    a, b = mesh
    peers = rpc(a, "peers")
    check(peers, {
        "schema": TEXT, "mesh": TEXT, "self": NODE_ID, "view_hash": TEXT, "version": COUNT,
        "nodes": [ROW],
    })  # fmt: skip
    assert (peers["schema"], peers["mesh"], peers["self"]) == ("meshd.peers/1", "default", a.id)
    assert [(row["name"], row["self"]) for row in peers["nodes"]] == [("a", True), ("b", False)]
    assert peers["nodes"][1]["url"] == f"http://{b.address}"
    assert rpc(a, "peers", state=["dead"])["nodes"] == []
    assert refused(a, "peers", state=["gone"])["code"] == -32602


def test_capabilities(mesh):
    a, b = mesh
    listed = rpc(a, "capabilities")
    check(listed, {"schema": TEXT, "capabilities": list})
    by_name = {each["name"]: each for each in listed["capabilities"]}
    check(by_name["shout"], MANIFEST | {"nodes": [HOLDER]})
    assert [holder["name"] for holder in by_name["shout"]["nodes"]] == ["a", "b"]
    # What is not offered here is known in short until gossip has brought it; by name it waits.
    (whole,) = rpc(a, "capabilities", name="only_b")["capabilities"]
    check(whole, MANIFEST | {"nodes": [HOLDER]})
    listed = rpc(a, "capabilities")["capabilities"]
    assert whole in listed
    assert (whole["timeout_s"], whole["agent"], whole["examples"]) == (7, "b-program", ["do it"])
    assert whole["input_schema"]["required"] == ["text"]
    assert "only_b" not in {c["name"] for c in rpc(a, "capabilities", node="self")["capabilities"]}
    assert "only_b" in {c["name"] for c in rpc(a, "capabilities", node=b.id)["capabilities"]}
    assert refused(a, "capabilities", name="absent")["code"] == -32010


def test_discover(mesh):
    a, _ = mesh
    found = rpc(a, "discover", query="say a text loudly")
    check(found, {"schema": TEXT, "query": TEXT, "matches": [{
        "capability": TEXT, "score": Fraction, "why": TEXT, "description": TEXT, "tags": [TEXT],
        "nodes": [HOLDER],
    }]})  # fmt: skip
    assert found["matches"][0]["capability"] == "shout"
    rare = rpc(a, "discover", query="something", tags=["rare"])["matches"]
    assert [match["capability"] for match in rare] == ["only_b"]
    assert refused(a, "discover", query="")["code"] == -32602


def test_work(mesh):
    a, _ = mesh
    shape = {"agent": TEXT, "node": TEXT, "result": TEXT, "rpc_latency_ms": NUMBER, "load": dict}
    for params in (
        {"capability": "shout", "input": {"text": "hi"}},
        {"capability": "shout", "input": "hi"},
        {"capability": "shout", "text": "hi"},
    ):
        done = rpc(a, "work", **params)
        check(done, shape)
        assert (done["agent"], done["node"], done["result"]) == ("a", "a", "HI")
    assert rpc(a, "work", text="say this text loudly")["result"] == "SAY THIS TEXT LOUDLY"
    error = refused(a, "work", capability="only_b", input="x")
    assert (error["code"], error["data"]["definite"]) == (-32010, True)
    error = refused(a, "work", capability="fail", input="oops")
    assert (error["code"], error["data"]["definite"]) == (-32018, False)
    assert "oops" in error["message"]
    error = refused(a, "work", capability="doze", input={"seconds": 30}, deadline_ms=200)
    assert error["code"] == -32012


def test_delegate(mesh):
    a, b = mesh
    shape = {
        "delegated_to": DELEGATED_TO, "rpc_latency_ms": NUMBER, "attempts": [ATTEMPT],
        "peer_result": {"agent": TEXT, "node": TEXT, "result": TEXT, "rpc_latency_ms": NUMBER},
    }  # fmt: skip
    done = rpc(a, "delegate", capability="only_b", input={"text": "abc"})
    check(done, shape)
    assert done["delegated_to"]["agent"] == "b-program"
    assert done["delegated_to"]["node"] == "b"
    assert done["delegated_to"]["url"] == f"http://{b.address}"
    assert done["peer_result"]["result"] == "cba"
    assert [attempt["outcome"] for attempt in done["attempts"]] == ["ok"]
    done = rpc(a, "delegate", text="say this text loudly", explain=True)
    check(done, shape | {"explain": dict})
    assert done["peer_result"]["result"] == "SAY THIS TEXT LOUDLY"
    assert rpc(a, "delegate", need="say a text loudly", input="x")["peer_result"]["result"] == "X"
    assert rpc(a, "delegate", capability="shout", input="x", to="b")["delegated_to"]["node"] == "b"
    assert refused(a, "delegate", capability="absent", input="x")["code"] == -32010
    assert refused(a, "delegate", capability="shout", input={"txt": "x"})["code"] == -32602
    assert refused(a, "delegate", capability="shout", hops=["zz"])["code"] == -32602


def test_ping(mesh):
    a, _ = mesh
    check(rpc(a, "ping"), {"node": NODE_ID, "name": TEXT, "wall_ms": COUNT})


def test_the_network_port_knows_no_control_method(mesh):
    a, _ = mesh
    status = a.call("status")
    check(status, {
        "schema": TEXT, "healthy": YES_NO, "name": TEXT, "id": NODE_ID, "mesh": TEXT,
        "version": TEXT, "pid": COUNT, "address": TEXT, "socket": TEXT, "state_dir": TEXT,
        "uptime_s": NUMBER, "profile": TEXT, "drain_s": NUMBER, "loop_lag_s": NUMBER,
        "gossip": dict, "circuits": {
            "open": COUNT, "half_open": COUNT, "opened": COUNT, "rows": [{"capability": TEXT}]
        },
        "members": dict.fromkeys(("alive", "suspect", "dead", "left"), COUNT),
        "tasks": dict.fromkeys(("in_flight", "queue", "done", "failed", "refused"), COUNT),
        "discovery": [{"source": TEXT, "state": TEXT, "detail": TEXT}], "problems": [TEXT],
    })  # fmt: skip
    for method in ("status", "explain", "join", "leave", "stop", "reload", "doctor", "probe"):
        assert refused(a, method)["code"] == -32601, method
    for method in ("register", "cancel", "__init__", "_info", ""):
        assert refused(a, method)["code"] in {-32601, -32600}, method
    assert get(a, "/attach")[0] == 404
    assert a.is_running


def test_batches_and_notifications(mesh):
    a, _ = mesh
    answers = post(a, [
        {"jsonrpc": "2.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "method": "ping"},
        {"jsonrpc": "2.0", "id": "x", "method": "absent"},
        5,
    ])  # fmt: skip
    assert {json.dumps(answer["id"]) for answer in answers} == {"1", '"x"', "null"}


def test_health_readiness_and_metrics(mesh):
    a, _ = mesh
    assert get(a, "/healthz")[0] == 200
    assert get(a, "/readyz")[0] == 200
    status, kind, text = get(a, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    alive = {s.labels["state"]: s.value for s in families["meshd_members"].samples}
    assert alive == {"alive": 2, "suspect": 0, "dead": 0, "left": 0}
    (uptime,) = families["meshd_uptime_seconds"].samples
    assert uptime.value > 0
    outcomes = {s.labels["outcome"] for s in families["meshd_ended_tasks"].samples}
    assert outcomes == {"done", "failed", "refused", "cancelled", "expired"}
    assert all(family.documentation for family in families.values())


def test_a_draining_node_is_healthy_but_not_ready(site):
    a, b = site.start_mesh("a", "b", flags=("--capability", "served"))
    with_work = threading.Thread(
        target=lambda: rpc(b, "work", capability="nap", input={"seconds": 1.0})
    )
    with_work.start()
    a.until(lambda: a.row("b")["load"]["in_flight"] == 1, "the running task")
    leaving = threading.Thread(target=lambda: b.call("leave"))
    leaving.start()
    b.until(lambda: get(b, "/readyz")[0] == 503, "the node is not ready")
    assert get(b, "/healthz")[0] == 200
    with_work.join()
    leaving.join()
    assert json.loads(get(b, "/readyz")[2])["status"] == "draining"
    assert b.call("join", {"addresses": [a.address]})["joined"] == 1
    assert get(b, "/readyz")[0] == 200
