"""The RPC server on real sockets, under attack too."""

import asyncio
import json
import logging
import resource
import socket

import pytest
import uvloop
from aiohttp import web
from rpc_bench import LOOPBACK, Bench, Wire, http, rpc

from meshd.errors import Code
from meshd.model import Address
from meshd.rpc.limits import ServerLimits
from meshd.rpc.methods import Registry
from meshd.rpc.server import Probes, RpcServer

pytestmark = pytest.mark.net


async def ask(wire, request):
    wire.send(request)
    status, headers, body = await wire.answer()
    return status, json.loads(body) if body else None, headers


async def test_a_call_is_answered_under_its_id(serve, dial):
    _, address = await serve()
    wire = await dial(address)
    for request_id in (1, "a", None, 2.5):
        status, answer, headers = await ask(wire, http(rpc("echo", {"text": "é"}, request_id)))
        assert (status, headers["content-type"]) == (200, "application/json")
        assert answer == {"jsonrpc": "2.0", "id": request_id, "result": {"text": "é"}}


async def test_the_specifications_mixed_batch_is_answered_element_by_element(serve, dial, bench):
    _, address = await serve()
    wire = await dial(address)
    notification = {"jsonrpc": "2.0", "method": "echo", "params": ["quiet"]}
    batch = [rpc("echo", ["a"], "1"), notification, {"foo": "boo"}, rpc("nope", None, "5")]
    status, answer, _ = await ask(wire, http(batch))
    assert status == 200
    by_id = {each["id"]: each for each in answer}
    assert len(answer) == 3
    assert by_id["1"]["result"] == {"text": "a"}
    assert by_id[None]["error"]["code"] == Code.INVALID_REQUEST
    assert by_id["5"]["error"]["code"] == Code.METHOD_NOT_FOUND
    assert "quiet" in bench.seen


@pytest.mark.parametrize("method", ["echo", "fail", "nope", "refuse"])
async def test_a_notification_is_answered_by_nothing_not_even_an_error(serve, dial, method):
    _, address = await serve()
    wire = await dial(address)
    notification = {"jsonrpc": "2.0", "method": method}
    assert (await ask(wire, http(notification)))[:2] == (204, None)
    assert (await ask(wire, http([notification, notification])))[:2] == (204, None)


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b'{"a": NaN}', b""])
async def test_a_body_that_is_no_json_is_a_parse_error(serve, dial, data):
    _, address = await serve()
    status, answer, _ = await ask(await dial(address), http(data))
    assert status == 200
    assert answer["id"] is None
    assert answer["error"]["code"] == Code.PARSE


async def test_a_handlers_own_exception_stays_in_the_log(serve, dial, caplog):
    _, address = await serve()
    with caplog.at_level(logging.ERROR, "meshd.rpc"):
        status, answer, _ = await ask(await dial(address), http(rpc("fail")))
    error = answer["error"]
    assert (status, error["code"], error["message"]) == (200, Code.INTERNAL, "internal error")
    assert error["data"]["definite"] is False
    assert "secret" not in json.dumps(answer)
    assert error["data"]["error_id"] in caplog.text
    assert "/etc/secret/path" in caplog.text


async def test_a_result_that_is_no_json_is_an_internal_error(serve, dial, caplog):
    _, address = await serve()
    _, answer, _ = await ask(await dial(address), http(rpc("odd")))
    assert answer["error"]["code"] == Code.INTERNAL


async def test_a_handler_whose_own_work_was_cancelled_is_answered(serve, dial):
    _, address = await serve()
    _, answer, _ = await ask(await dial(address), http(rpc("cancelled")))
    assert answer["error"]["code"] == Code.CANCELLED
    assert answer["error"]["data"]["definite"] is False


async def test_a_client_that_asks_whether_to_continue_is_told_to(serve, dial):
    _, address = await serve()
    wire = await dial(address)
    head, _, body = http(rpc("echo"), Expect="100-continue").partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    assert (await wire.answer())[0] == 100
    assert (await ask(wire, body))[1]["result"] == {"text": ""}


async def test_further_addresses_may_be_added_for_one_side(serve, dial):
    server, address = await serve()

    async def page(request):
        return web.Response(text="[]")

    server.add_route("GET", "/ui", page, local=False)
    server.add_route("GET", "/inside", page, local=True)
    wire = await dial(address)
    assert (await ask(wire, http(method="GET", path="/ui")))[:2] == (200, [])
    assert (await ask(wire, http(method="GET", path="/inside")))[0] == 404


async def test_a_head_request_gets_no_body(serve, dial):
    _, address = await serve()
    wire = await dial(address)
    wire.send(http(method="HEAD", path="/healthz", Connection="close"))
    assert (await wire.rest()).endswith(b"\r\n\r\n")


async def test_a_refusal_carries_its_data(serve, dial):
    _, address = await serve()
    _, answer, _ = await ask(await dial(address), http(rpc("refuse")))
    assert answer["error"] == {
        "code": Code.BUSY,
        "message": "no slot",
        "data": {"eta_s": 3, "definite": True, "hint": "later"},
    }


async def test_control_methods_and_attaching_are_not_on_the_network_port(serve, dial):
    _, address = await serve()
    wire = await dial(address)
    _, answer, _ = await ask(wire, http(rpc("secret")))
    assert answer["error"]["code"] == Code.METHOD_NOT_FOUND
    assert (await ask(wire, http(method="GET", path="/attach")))[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (http(rpc("echo"), Content_Type="text/plain"), 415),
        (http(rpc("echo"), Content_Type=None), 415),
        (http(rpc("echo"), Content_Encoding="gzip"), 415),
        (http(rpc("echo"), Content_Encoding="deflate"), 415),
        (http(method="GET"), 405),
        (http(method="PUT"), 405),
        (http(method="OPTIONS"), 405),
        (http(method="POST", path="/healthz"), 405),
        (http(path="/"), 404),
        (http(path="/rpc/../../etc/passwd"), 404),
        (http(rpc("echo"), host="evil.example"), 403),
        (http(rpc("echo"), Origin="http://evil.example"), 403),
        (http(rpc("echo"), Origin="null"), 403),
        (http(method="GET", path="/metrics", host="evil.example:80"), 403),
    ],
)
async def test_a_request_of_the_wrong_kind_is_refused_in_json_and_closed(
    serve, dial, bench, request_bytes, status
):
    server, address = await serve()
    wire = await dial(address)
    found, answer, headers = await ask(wire, request_bytes)
    assert found == status
    assert answer["error"]["message"]
    assert answer["error"]["data"]["hint"]
    assert headers["connection"] == "close"
    assert await wire.rest() == b""
    assert server.counters[f"http_{status}"] == 1
    assert bench.seen == []
    if status == 405:
        assert headers["allow"]


async def test_a_content_type_may_name_its_charset(serve, dial):
    _, address = await serve()
    request = http(rpc("echo"), Content_Type="Application/JSON; charset=utf-8")
    assert (await ask(await dial(address), request))[0] == 200


async def test_a_body_larger_than_allowed_is_refused_before_and_while_it_comes(serve, dial):
    _, address = await serve(limits=ServerLimits(body_bytes_max=1_000, linger_s=0.1))
    assert (await ask(await dial(address), http(rpc("echo", {"text": "x" * 900}))))[0] == 200
    wire = await dial(address)
    announced = http(b"", Content_Length="1000000000")
    assert (await ask(wire, announced))[0] == 413
    wire = await dial(address)
    chunked = http(b"", Content_Length=None, Transfer_Encoding="chunked")
    assert (await ask(wire, chunked + b"5dc\r\n" + b"x" * 1_500 + b"\r\n"))[0] == 413


async def test_a_body_that_stalls_or_drips_is_timed_out(serve, dial):
    _, address = await serve(limits=ServerLimits(read_timeout_s=0.1, linger_s=0.1))
    stalled = await dial(address)
    status, answer, _ = await ask(stalled, http(b"", Content_Length="10"))
    assert (status, answer["error"]["code"]) == (408, Code.DEADLINE)
    assert await stalled.rest() == b""
    dripping = await dial(address)
    dripping.send(http(b"", Content_Length=None, Transfer_Encoding="chunked"))
    for _ in range(3):
        dripping.send(b"1\r\n{\r\n")
    assert (await dripping.answer())[0] == 408


async def test_who_sends_nothing_or_half_a_head_is_closed_when_idle(serve, dial):
    _, address = await serve(limits=ServerLimits(idle_timeout_s=0.1))
    silent, half = await dial(address), await dial(address)
    half.send(b"POST /rpc HTTP/1.1\r\nHost: 127")
    assert await silent.rest() == b""
    assert await half.rest() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 40_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_broken_http_is_closed_counted_and_not_logged(serve, dial, caplog, data):
    server, address = await serve()
    wire = await dial(address)
    wire.send(data)
    assert (await wire.rest())[:12] in {b"HTTP/1.0 400", b"HTTP/1.1 400", b""}
    assert server.counters["bad_http"] == 1
    assert caplog.text == ""


async def test_a_thousand_pipelined_requests_run_one_after_the_other(serve, dial, bench):
    _, address = await serve()
    wire = await dial(address)
    wire.send(http(rpc("hold")) + http(rpc("echo", ["later"])) * 1_000)
    async with asyncio.timeout(5):
        await bench.started.acquire()
    assert bench.seen == []
    bench.release.set()
    for _ in range(1_001):
        assert (await wire.answer())[0] == 200
    assert len(bench.seen) == 1_000


async def test_calls_of_one_address_are_bounded_with_429(serve, dial, bench):
    server, address = await serve(limits=ServerLimits(calls_per_remote_max=1))
    first, second = await dial(address), await dial(address)
    first.send(http(rpc("hold")))
    await bench.started.acquire()
    status, answer, headers = await ask(second, http(rpc("echo")))
    assert (status, answer["error"]["code"]) == (429, Code.BUSY)
    assert answer["error"]["data"]["definite"] is True
    assert headers["retry-after"] == "1"
    assert server.counters["busy"] == 1
    bench.release.set()
    assert (await first.answer())[0] == 200
    assert (await ask(second, http(rpc("echo"))))[0] == 200


async def test_calls_of_all_together_are_bounded_with_503(serve, dial, bench):
    _, address = await serve(limits=ServerLimits(calls_max=1))
    first, second = await dial(address), await dial(address)
    first.send(http(rpc("hold")))
    await bench.started.acquire()
    assert (await ask(second, http(rpc("echo"))))[0] == 503
    notification = {"jsonrpc": "2.0", "method": "echo"}
    assert (await ask(second, http(notification)))[:2] == (204, None)
    assert bench.seen == []


async def test_a_batch_takes_a_place_for_each_of_its_calls(serve, dial, bench):
    _, address = await serve(limits=ServerLimits(calls_per_remote_max=3))
    wire = await dial(address)
    wire.send(http([rpc("hold", None, n) for n in range(5)]))
    for _ in range(3):
        await bench.started.acquire()
    bench.release.set()
    answers = json.loads((await wire.answer())[2])
    codes = [each.get("error", {}).get("code") for each in answers]
    assert codes == [None, None, None, Code.BUSY, Code.BUSY]


async def test_an_answer_larger_than_allowed_is_replaced_by_an_error(serve, dial):
    _, address = await serve(limits=ServerLimits(response_bytes_max=1_000))
    wire = await dial(address)
    assert (await ask(wire, http(rpc("big", {"size": 900}))))[1]["result"]
    _, answer, _ = await ask(wire, http(rpc("big", {"size": 1_000})))
    assert "more than the 1000" in answer["error"]["message"]
    assert answer["error"]["data"]["definite"] is False
    _, answers, _ = await ask(wire, http([rpc("big", {"size": 600}, n) for n in (1, 2)]))
    assert ["result" in each for each in answers] == [True, False]
    assert [each["id"] for each in answers] == [1, 2]


async def test_a_client_that_does_not_read_its_answer_is_cut(serve):
    server, address = await serve(limits=ServerLimits(write_timeout_s=0.2))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (address.host, address.port))
        await loop.sock_sendall(client, http(rpc("big", {"size": 8_000_000})))
        async with asyncio.timeout(5):
            while not server.counters["slow_reader"]:
                await asyncio.sleep(0)


async def test_connections_are_bounded_for_one_address_and_for_all(serve, dial):
    for limits in (ServerLimits(connections_per_remote_max=2), ServerLimits(connections_max=2)):
        server, address = await serve(limits=limits)
        kept = [await dial(address) for _ in range(2)]
        for wire in kept:
            assert (await ask(wire, http(rpc("echo"))))[0] == 200
        assert (await (await dial(address)).rest()).startswith(b"HTTP/1.1 503 ")
        assert server.counters["connections_refused"] == 1
        assert (await ask(kept[0], http(rpc("echo"))))[0] == 200


async def test_half_of_the_file_descriptors_stay_free(serve, dial, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2, 2))
    server, address = await serve()
    kept = await dial(address)
    assert (await ask(kept, http(rpc("echo"))))[0] == 200
    assert (await (await dial(address)).rest()).startswith(b"HTTP/1.1 503 ")
    assert server.counters["connections_refused"] == 1


@pytest.mark.parametrize("soft", [resource.RLIM_INFINITY, None])
async def test_without_a_bound_on_file_descriptors_our_own_holds(serve, dial, monkeypatch, soft):
    def limit(what):
        if soft is None:
            raise OSError
        return soft, soft

    monkeypatch.setattr(resource, "getrlimit", limit)
    _, address = await serve()
    assert (await ask(await dial(address), http(rpc("echo"))))[0] == 200


async def test_a_caller_that_leaves_cancels_its_call(serve, dial, bench):
    _, address = await serve()
    wire = await dial(address)
    wire.send(http(rpc("hold")))
    await bench.started.acquire()
    await wire.close()
    async with asyncio.timeout(5):
        await bench.ended.acquire()
    assert not bench.release.is_set()


async def test_a_call_ends_with_its_callers_time(serve, dial, bench):
    _, address = await serve()
    _, answer, _ = await ask(await dial(address), http(rpc("hold"), Meshd_Timeout_Ms="50"))
    assert answer["error"]["code"] == Code.DEADLINE
    assert answer["error"]["data"]["definite"] is False
    await bench.ended.acquire()


@pytest.mark.parametrize(
    ("header", "deadline_s"),
    [("1500", 1.5), ("9" * 30, 60.0), ("-5", 60.0), ("x", 60.0), ("²", 60.0), (None, 60.0)],
)
async def test_a_method_learns_who_calls_and_how_long_they_wait(serve, dial, header, deadline_s):
    _, address = await serve(limits=ServerLimits(call_timeout_s=60.0))
    request = http(rpc("who")) if header is None else http(rpc("who"), Meshd_Timeout_Ms=header)
    _, answer, _ = await ask(await dial(address), request)
    assert answer["result"] == {"remote": "127.0.0.1", "local": False, "deadline_s": deadline_s}


async def test_health_readiness_and_metrics_are_plain_addresses(serve, dial):
    probes = Probes(
        health=lambda: (True, {"lag_s": 0.1}),
        ready=lambda: (False, {"draining": True}),
        metrics=lambda: "meshd_calls_total 1\n",
    )
    _, address = await serve(probes=probes)
    wire = await dial(address)
    assert (await ask(wire, http(method="GET", path="/healthz")))[:2] == (200, {"lag_s": 0.1})
    assert (await ask(wire, http(method="GET", path="/readyz")))[:2] == (503, {"draining": True})
    wire.send(http(method="GET", path="/metrics"))
    status, headers, body = await wire.answer()
    assert (status, body) == (200, b"meshd_calls_total 1\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_without_probes_a_node_is_well(serve, dial):
    _, address = await serve()
    wire = await dial(address)
    for path in ("/healthz", "/readyz"):
        assert (await ask(wire, http(method="GET", path=path)))[:2] == (200, {})
    assert (await ask(wire, http(method="GET", path="/metrics")))[0] == 200


async def test_a_bound_socket_or_a_free_port_may_be_given(bench):
    server = RpcServer(bench.registry)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        wanted = Address(*bound.getsockname())
        assert await server.start_tcp(bound) == wanted
        other = RpcServer(bench.registry)
        with pytest.raises(OSError, match="in use"):
            await other.start_tcp(wanted)
        await server.stop()
    await server.stop()


async def test_ipv6_is_served_too(bench, dial):
    server = RpcServer(bench.registry)
    address = await server.start_tcp(Address("::1", 0))
    wire = await dial(address)
    status, answer, _ = await ask(wire, http(rpc("who"), host=str(address)))
    assert (status, answer["result"]["remote"]) == (200, "::1")
    await wire.close()
    await server.stop()


async def test_an_ipv4_caller_of_an_ipv6_socket_is_known_by_its_ipv4_address(bench, dial):
    server = RpcServer(bench.registry)
    address = await server.start_tcp(Address("::ffff:127.0.0.1", 0))
    wire = await dial(Address("127.0.0.1", address.port))
    _, answer, _ = await ask(wire, http(rpc("who")))
    assert answer["result"]["remote"] == "127.0.0.1"
    await wire.close()
    await server.stop()


async def test_stopping_lets_a_running_call_end(serve, dial, bench):
    server, address = await serve()
    wire = await dial(address)
    wire.send(http(rpc("hold")))
    await bench.started.acquire()
    stopping = asyncio.create_task(server.stop(5.0))
    await asyncio.sleep(0)
    bench.release.set()
    assert json.loads((await wire.answer())[2])["result"] == "held"
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await dial(address)


async def test_stopping_cancels_what_does_not_end_in_time(serve, dial, bench):
    server, address = await serve()
    wire = await dial(address)
    wire.send(http(rpc("hold")))
    await bench.started.acquire()
    await server.stop(0.05)
    assert await wire.rest() == b""
    await bench.ended.acquire()


def test_the_same_bounds_hold_on_uvloop():
    async def scenario():
        bench = Bench()
        limits = ServerLimits(connections_max=1, idle_timeout_s=0.1, write_timeout_s=0.2)
        server = RpcServer(bench.registry, limits=limits)
        address = await server.start_tcp(LOOPBACK)
        first = Wire(*await asyncio.open_connection(address.host, address.port))
        assert (await ask(first, http(rpc("echo"))))[0] == 200
        second = Wire(*await asyncio.open_connection(address.host, address.port))
        assert (await second.rest()).startswith(b"HTTP/1.1 503 ")
        assert await first.rest() == b""
        await first.close()
        await second.close()
        await server.stop()

    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(scenario())


async def test_an_answer_to_a_caller_who_has_gone_is_counted_and_no_error(caplog):
    class TooLate(web.Response):
        async def prepare(self, request):
            raise ConnectionResetError("Cannot write to closing transport")

    server = RpcServer(Registry())
    await server._write(None, TooLate())
    assert server.counters["caller_gone"] == 1
    assert not caplog.records
