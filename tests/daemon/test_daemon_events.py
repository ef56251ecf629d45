"""Events and queries on real sockets: three nodes in this process, and programs at them."""

import asyncio

import pytest
from small_mesh import start_node

from meshd.control import ControlClient
from meshd.errors import NoCandidateError, PeerError, UsageError
from meshd.happening import Event, Kind
from meshd.mesh import Mesh
from meshd.model import MemberState
from meshd.rpc.client import connect_channel
from meshd.rpc.methods import CallContext, Registry

pytestmark = [pytest.mark.net, pytest.mark.timeout(60)]


@pytest.fixture
async def three(tmp_path, monkeypatch):
    """Three nodes that know each other; the first has a control socket."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = await start_node(tmp_path, "a", control_path=str(tmp_path / "a.sock"))
    nodes = [first, *[await start_node(tmp_path, name, join=[first]) for name in ("b", "c")]]
    for node in nodes:
        await node.wait_view(_full, 10)
    yield nodes
    await asyncio.gather(*(node.stop(0) for node in nodes))


def _full(view):
    return {"a", "b", "c"} <= {p.name for p in view.in_state(MemberState.ALIVE)}


async def ask(node, method, /, **params):
    return await node.registry.call(method, params, CallContext(remote="x", local=True))


async def news(node, wanted, /, **params):
    """The first page of events that holds one that is wanted, as a follower sees it."""
    after, run, found = 0, None, []
    async with asyncio.timeout(15):
        while not any(map(wanted, found)):
            page = await ask(node, "events", after=after, run=run, wait_s=5, **params)
            after, run = page["next"], page["run"]
            found += page["events"]
    return found


async def test_an_event_is_in_the_log_of_each_node_once(three):
    done = await ask(three[1], "event", name="deploy", payload="v2 ü")
    assert done == {"told": True, "name": "deploy", "bytes": 5}
    for node in three:
        (one,) = await news(node, bool, types=("event",))
        assert (one["event"], one["payload"], one["name"]) == ("deploy", "v2 ü", "b")
        assert one["node"] == three[1].node_id.hex()
        assert one["age_s"] < 5
    again = await ask(three[0], "events", types=("event",))
    assert len(again["events"]) == 1


async def test_binary_payloads_go_as_base64(three):
    await ask(three[0], "event", name="raw", payload_base64="/w==")
    (one,) = await news(three[2], bool, types=("event",))
    assert one["payload_base64"] == "/w=="
    assert "payload" not in one
    for wrong in ({"payload": "x", "payload_base64": "/w=="}, {"payload_base64": "!"}):
        with pytest.raises(UsageError, match="payload_base64"):
            await ask(three[0], "event", name="raw", **wrong)


async def test_a_node_that_comes_and_goes_is_told_in_order(three):
    a, _, c = three
    id_of_c = c.node_id.hex()
    await c.stop(0)
    found = await news(a, lambda e: e["type"] == "left")
    about = [e for e in found if e["node"] == id_of_c]
    assert [e["type"] for e in about if e["type"] != "updated"] == ["joined", "left"]
    assert about[-1]["name"] == "c"
    assert about[-1]["reason"] == "said goodbye"
    numbers = [e["seq"] for e in found]
    assert numbers == sorted(numbers)


async def test_what_happened_can_be_read_by_number_time_count_type_and_node(three):
    a = three[0]
    for name in ("one", "two", "three"):
        await ask(a, "event", name=name)
    await news(a, lambda e: e.get("event") == "three")

    async def names(**params):
        page = await ask(a, "events", types=("event",), **params)
        return [each["event"] for each in page["events"]]

    assert await names() == ["one", "two", "three"]
    assert await names(last=1) == ["three"]
    assert await names(last=0) == []
    assert await names(limit=2) == ["one", "two"]
    assert await names(node="a") == ["one", "two", "three"]
    assert await names(node="b") == []
    assert await names(since_s=600) == ["one", "two", "three"]
    assert await names(since_s=-1) == []
    told = (await ask(a, "events", types=("event",)))["events"]
    assert await names(from_ms=told[0]["wall_ms"]) == ["one", "two", "three"]
    assert await names(from_ms=told[-1]["wall_ms"] + 1) == []
    all_of_it = await ask(a, "events")
    last = told[-1]["seq"]
    assert await names(after=last - 1) == ["three"]
    assert await names(after=last, run=1) == ["one", "two", "three"]
    assert all_of_it["lost"] == 0


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"types": ("nonsense",)}, "no such type"),
        ({"limit": 0}, "limit"),
        ({"wait_s": 61}, "wait_s"),
    ],
)
async def test_wrong_questions_for_events_are_refused(three, params, text):
    with pytest.raises(UsageError, match=text):
        await ask(three[0], "events", **params)


async def test_changed_offers_and_conflicts_are_told(three):
    a, b, _ = three
    mesh = Mesh("late", embed=True, bind="127.0.0.1:0", mdns=False, profile="local",
                state_dir=str(b.state.path.parent / "late"), join=[str(a.address)])  # fmt: skip
    async with mesh:
        await news(a, lambda e: e["name"] == "late")

        @mesh.agent()
        def shout(text: str) -> str:
            return text.upper()

        found = await news(a, lambda e: e["type"] == "updated" and e["name"] == "late")
        assert found[-1]["reason"] == "offers shout 1.0.0"


async def test_a_restart_goes_on_after_what_it_heard(three, tmp_path):
    a, b, c = three
    await ask(a, "event", name="before")
    await news(c, lambda e: e.get("event") == "before")
    await c.stop(0)
    again = await start_node(tmp_path, "c", join=[a])
    three[2] = again
    await again.wait_view(_full, 10)
    await ask(b, "event", name="after")
    found = await news(again, lambda e: e.get("event") == "after", types=("event",))
    assert [e["event"] for e in found] == ["after"]


# Queries


async def replies(node, name, /, **params):
    asked = await ask(node, "query", name=name, **params)
    after, found, has_ended = 0, [], False
    while not has_ended:
        page = await ask(node, "answers", query=asked["query"], after=after, wait_s=5)
        after, has_ended = page["next"], page["ended"]
        found += page["replies"]
    return found


async def test_a_query_is_answered_by_programs_and_nodes_and_got_by_all(three, tmp_path):
    a, b, _ = three

    async def uptime(asked):
        assert (asked.name, asked.payload) == ("uptime", b"?")
        return b"b " + bytes.fromhex(asked.node)

    b.happenings.answer_with(("uptime",), uptime, b)
    attached = Mesh("program", control=a.control_path)

    @attached.on_query("uptime")
    def answer(query):
        return {"asked": query.text}

    async with attached:
        found = await replies(a, "uptime", payload="?")
    assert sorted(r["name"] for r in found if r["kind"] == "ack") == ["a", "b", "c"]
    answers = {r["name"]: r for r in found if r["kind"] == "answer"}
    assert answers["a"]["payload"] == '{"asked":"?"}'
    assert answers.keys() == {"a", "b"}
    assert len(found) == 5


async def test_a_query_to_named_nodes_ends_with_their_answers(three):
    a, b, c = three
    for node in (b, c):
        node.happenings.answer_with(("who",), _name_of(node), node)
    found = await replies(a, "who", nodes=("b", c.node_id.hex()), timeout_s=60)
    assert sorted(r["payload"] for r in found if r["kind"] == "answer") == ["b", "c"]
    with pytest.raises(NoCandidateError, match="no living node 'nobody'"):
        await ask(a, "query", name="who", nodes=("nobody",))


def _name_of(node):
    async def answer(_asked):
        return node.name.encode()

    return answer


async def test_errors_of_who_answers_reach_the_asker_in_words(three):
    a, b, c = three

    async def refuses(_asked):
        raise UsageError("not today")

    async def fails(_asked):
        raise ZeroDivisionError

    b.happenings.answer_with(("x",), refuses, b)
    c.happenings.answer_with(("x",), fails, c)
    found = await replies(a, "x", nodes=("b", "c"), timeout_s=10)
    errors = {r["name"]: r["error"] for r in found if r["kind"] == "error"}
    assert errors == {"b": "not today", "c": "the node's handler failed"}


async def test_a_name_of_queries_belongs_to_who_took_it_first(three):
    a = three[0]
    one, other = Mesh("one", control=a.control_path), Mesh("other", control=a.control_path)
    one.on_query("who")(lambda _query: "one")
    other.on_query("who")(lambda _query: "other")
    async with one:
        with pytest.raises(UsageError, match="another program answers who"):
            await other.start()
        await other.stop()
        assert [r.text for r in await one.query("who", to=["a"])] == ["one"]


@pytest.mark.parametrize(
    ("params", "text"),
    [({"query": 1}, "no query 1"), ({"query": 1, "wait_s": 61}, "wait_s")],
)
async def test_answers_to_what_was_not_asked_are_refused(three, params, text):
    with pytest.raises(UsageError, match=text):
        await ask(three[0], "answers", **params)


# Programs


@pytest.mark.parametrize("how", ["attached", "embedded"])
async def test_a_program_hears_tells_asks_and_answers(three, tmp_path, how):
    a, b, _ = three
    if how == "attached":
        mesh = Mesh("program", control=a.control_path)
    else:
        mesh = Mesh("program", embed=True, bind="127.0.0.1:0", mdns=False, profile="local",
                    state_dir=str(tmp_path / "program"), join=[str(b.address)])  # fmt: skip
    heard: asyncio.Queue[Event] = asyncio.Queue()
    everything: list[str] = []

    @mesh.on_event("greet")
    async def greeted(event):
        await heard.put(event)
        raise ValueError("a handler's fault is logged, and the next event comes all the same")

    @mesh.on_event()
    def any_event(event):
        everything.append(event.event)

    @mesh.on_query("size")
    async def size(query):
        return len(query.payload)

    async with mesh:
        node = a if how == "attached" else mesh._link.node
        stream = mesh.events("event")
        if how == "embedded":
            await node.wait_view(lambda v: sum(1 for p in v.peers if p.name) == 4, 10)
        await ask(b, "event", name="other")
        await ask(b, "event", name="greet", payload="hello")
        first = await asyncio.wait_for(heard.get(), 10)
        assert first.data == b"hello"
        assert [(await anext(stream)).event for _ in range(2)] == ["other", "greet"]
        await mesh.emit("greet", {"n": 1})
        assert (await asyncio.wait_for(heard.get(), 10)).payload == '{"n":1}'
        assert everything[:2] == ["other", "greet"]
        found = [reply async for reply in mesh.query("size", b"12345", timeout_s=1)]
        assert [(r.name, r.value, r.error) for r in found] == [(node.name, 5, "")]
        late: asyncio.Queue[str] = asyncio.Queue()
        mesh.on_query("late")(lambda query: query.name)

        @mesh.on_event("greet")
        async def also(event):
            await late.put(event.event)

        assert [r.text for r in await mesh.query("late", to=[node.name])] == ["late"]
        await mesh.emit("greet")
        assert await asyncio.wait_for(late.get(), 10) == "greet"


async def test_a_script_without_await_follows_tells_and_asks(three):
    a = three[0]

    def script():
        with Mesh("script", control=a.control_path) as mesh:
            mesh.on_query("ready")(lambda _query: "yes")
            events = mesh.events_sync("event", since_s=60)
            mesh.emit_sync("tick", "1")
            return next(events).event, [r.text for r in mesh.query_sync("ready", to=["a"])]

    assert await asyncio.to_thread(script) == ("tick", ["yes"])


async def test_a_reader_that_is_too_slow_is_told_how_many_it_lost(three):
    a = three[0]
    async with Mesh("reader", control=a.control_path) as mesh:
        stream = mesh.events("health", since_s=600)
        a.happenings.note(Kind.HEALTH, a.node_id, reason="first")
        assert (await anext(stream)).reason == "first"
        unread = a.happenings.log.last - stream._next
        for number in range(5_000):
            a.happenings.log.add(Kind.HEALTH, a.node_id.hex(), 1, reason=str(number))
        lost = await anext(stream)
        assert (lost.type, lost.lost) == ("lost", 5_000 - 4_096 + unread)
        assert (await anext(stream)).reason == str(5_000 - 4_096)


async def test_the_control_socket_serves_it_all_and_the_port_does_not(three):
    a = three[0]
    client = ControlClient(a.control_path)
    told = await asyncio.to_thread(client.call, "event", {"name": "x"})
    assert told["told"] is True
    with pytest.raises(Exception, match="no method"):
        await a.client.invoke(a.address, "event", {"name": "x"}, timeout_s=5)


async def test_whoever_waits_for_news_does_not_hold_up_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    node = await start_node(tmp_path, "alone", control_path=str(tmp_path / "x.sock"))
    waiting = asyncio.create_task(ask(node, "events", types=("dead",), wait_s=60))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await node.stop(0)
        with pytest.raises(PeerError, match="is stopping"):
            await waiting


async def test_a_stream_of_an_embedded_node_ends_with_the_node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    mesh = Mesh("alone", embed=True, bind="127.0.0.1:0", mdns=False, profile="local",
                state_dir=str(tmp_path / "alone"))  # fmt: skip
    await mesh.start()
    mesh.on_event("x")(print)
    waiting = asyncio.create_task(anext(mesh.events("dead")))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await mesh.stop()
        with pytest.raises(UsageError, match="not started"):
            await waiting


async def test_a_late_handler_of_a_name_that_is_taken_is_told_of_in_the_log(three, caplog):
    a = three[0]
    a.happenings.answer_with(("who",), _name_of(a), a)
    async with Mesh("late", control=a.control_path) as mesh:
        mesh.on_query("who")(lambda _query: "me")
        await mesh._late
        assert [r.text for r in await mesh.query("who", to=["a"])] == ["a"]
    assert "query_refused" in caplog.text


async def test_a_program_that_answers_nonsense_or_knows_no_such_query_is_an_error(three):
    a = three[0]

    async def answer(_params, _context):
        return "nonsense"

    registry = Registry()
    registry.add("query", None, answer)
    channel = await connect_channel(a.control_path, methods=registry)
    try:
        await channel.call("answer_queries", {"names": ["odd"]})
        (reply,) = [r for r in await replies(a, "odd", nodes=("a",)) if r["kind"] != "ack"]
        assert reply["error"] == "the program's answer is no object"
        with pytest.raises(UsageError, match="64 kinds"):
            await channel.call("answer_queries", {"names": [f"q{n}" for n in range(65)]})
    finally:
        await channel.close()
    assert [r["kind"] for r in await replies(a, "odd", timeout_s=0.3)] == ["ack"] * 3
