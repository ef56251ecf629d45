"""Inputs posted to real URLs on the loopback interface."""

import asyncio

import pytest
from aiohttp import web

from meshd.errors import DeadlineError, PeerError
from meshd.work.executors import HttpReply
from meshd.work.forward import HttpForward

pytestmark = pytest.mark.net


@pytest.fixture
async def forward():
    forward = HttpForward()
    yield forward
    await forward.close()
    await forward.close()


@pytest.fixture
async def site():
    """A web server with one handler for each way to answer; gives its URL and what it saw."""
    seen: list[str] = []
    never = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        body = await request.read()
        match request.path:
            case "/echo":
                return web.Response(body=body, headers={"X-Type": request.content_type})
            case "/moved":
                raise web.HTTPFound("/echo")
            case "/large":
                return web.Response(body=b"x" * 2_000)
            case "/lost":
                assert request.transport is not None
                request.transport.abort()
            case "/silent":
                await never.wait()
        return web.Response(status=500, text="went wrong")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    never.set()
    await runner.cleanup()


async def post(forward, url: str, timeout_s: float = 10.0) -> HttpReply:
    return await forward(url, b'{"a": 1}', timeout_s=timeout_s, bytes_max=1_000)


async def test_a_body_is_posted_and_the_answer_read(forward, site):
    url, _ = site
    assert await post(forward, url + "/echo") == HttpReply(200, b'{"a": 1}')
    assert await post(forward, url + "/other") == HttpReply(500, b"went wrong")


async def test_redirects_are_not_followed(forward, site):
    url, seen = site
    assert (await post(forward, url + "/moved")).status == 302
    assert seen == ["/moved"]


async def test_long_answers_are_refused(forward, site):
    with pytest.raises(PeerError, match="longer than 1000 bytes") as caught:
        await post(forward, site[0] + "/large")
    assert not caught.value.definite


async def test_a_lost_connection_is_indefinite(forward, site):
    with pytest.raises(PeerError, match="was lost") as caught:
        await post(forward, site[0] + "/lost")
    assert not caught.value.definite


async def test_silence_ends_with_the_time(forward, site):
    with pytest.raises(DeadlineError, match="no answer within") as caught:
        await post(forward, site[0] + "/silent", timeout_s=0.05)
    assert not caught.value.definite


async def test_nobody_there_is_definite(forward, unused_tcp_port_factory):
    with pytest.raises(PeerError, match="cannot be reached") as caught:
        await post(forward, f"http://127.0.0.1:{unused_tcp_port_factory()}/")
    assert caught.value.definite
    assert "running" in caught.value.hint


async def test_a_url_that_is_none_is_definite(forward):
    with pytest.raises(PeerError, match="not valid") as caught:
        await post(forward, "http://")
    assert caught.value.definite
