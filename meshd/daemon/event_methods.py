"""The control socket's methods for events and queries: following, telling, asking, answering."""

from typing import TYPE_CHECKING, Any

import msgspec

from meshd.clock import Seconds
from meshd.daemon.event_log import READ_MAX
from meshd.daemon.happenings import Asked, Gathering
from meshd.errors import NoCandidateError, UsageError
from meshd.gossip.effects import QueryAnswered
from meshd.gossip.queries import query_timeout_s
from meshd.happening import Event, Kind, payload_from, payload_shape
from meshd.model import MemberState, NodeId, check_name
from meshd.rpc.channel import Channel
from meshd.rpc.methods import CallContext, Registry
from meshd.view import Peer

if TYPE_CHECKING:
    from meshd.daemon.node import Node

WAIT_S_MAX = 60.0
QUERIES_PER_PROGRAM_MAX = 64
GRACE_S: Seconds = 0.5
PROGRAM_METHODS = frozenset({"events", "event", "query", "answers"})
"""Control methods that a program's own node serves it, too."""


class EventsParams(msgspec.Struct, forbid_unknown_fields=True):
    """`events`: what happened after number `after` of run `run`, or in the last `since_s` seconds.

    Or from `from_ms` on, in milliseconds since 1970; or the `last` so many. Where nothing has
    happened yet, wait `wait_s` for it.
    """

    after: int | None = None
    run: int | None = None
    since_s: float | None = None
    from_ms: int = 0
    last: int | None = None
    types: tuple[str, ...] = ()
    node: str = ""
    limit: int = READ_MAX
    wait_s: float = 0.0


class EventParams(msgspec.Struct, forbid_unknown_fields=True):
    """`event`: tell all nodes."""

    name: str
    payload: str | None = None
    payload_base64: str | None = None
    coalesce: bool = False


class QueryParams(msgspec.Struct, forbid_unknown_fields=True):
    """`query`: ask all nodes, or `nodes` (names or ids), or those that offer `capability`."""

    name: str
    payload: str | None = None
    payload_base64: str | None = None
    timeout_s: float | None = None
    nodes: tuple[str, ...] = ()
    capability: str = ""


class AnswersParams(msgspec.Struct, forbid_unknown_fields=True):
    """`answers`: what came to a query after reply number `after`; waits for more."""

    query: int
    after: int = 0
    wait_s: float = 0.0


class AnswerQueriesParams(msgspec.Struct, forbid_unknown_fields=True):
    """`answer_queries`: an attached program answers queries of these names, and no others."""

    names: tuple[str, ...]


class EventMethods:
    """What a node does with events for people and programs of its own machine."""

    def __init__(self, node: "Node", registry: Registry) -> None:
        """Serve all of them, on the control socket alone."""
        self._node = node
        registry.add("events", EventsParams, self._events, control=True)
        registry.add("event", EventParams, self._event, control=True)
        registry.add("query", QueryParams, self._query, control=True)
        registry.add("answers", AnswersParams, self._answers, control=True)

    def attach(self, channel: Channel) -> None:
        """Let a program of this link answer queries."""

        async def answer(asked: Asked) -> bytes:
            params = {"name": asked.name, "node": asked.node, "timeout_s": asked.timeout_s}
            given = await channel.call(
                "query", params | payload_shape(asked.payload), asked.timeout_s + GRACE_S
            )
            if not isinstance(given, dict):
                raise UsageError("the program's answer is no object")
            return payload_from(given.get("payload"), given.get("payload_base64"))

        async def register(params: AnswerQueriesParams, context: CallContext) -> dict[str, Any]:
            del context
            if len(params.names) > QUERIES_PER_PROGRAM_MAX:
                raise UsageError(f"a program may answer {QUERIES_PER_PROGRAM_MAX} kinds of queries")
            names = tuple(check_name(name, "query") for name in params.names)
            self._node.happenings.answer_with(names, answer, channel)
            return {"answering": list(names)}

        channel.methods.add("answer_queries", AnswerQueriesParams, register)
        channel.on_closed(self._node.happenings.forget_owner)

    # Following

    async def _events(self, params: EventsParams, context: CallContext) -> dict[str, Any]:
        del context
        unknown = sorted(set(params.types) - set(Kind))
        if unknown:
            known = ", ".join(Kind)
            raise UsageError(f"no such type of event: {', '.join(unknown)}", hint=f"types: {known}")
        if not 1 <= params.limit <= READ_MAX or not 0 <= params.wait_s <= WAIT_S_MAX:
            raise UsageError(f"events: limit is 1 .. {READ_MAX}, wait_s 0 .. {WAIT_S_MAX:g}")
        happenings = self._node.happenings
        log, oldest_ms = happenings.log, params.from_ms
        if params.since_s is not None:
            oldest_ms = self._node.clock.wall_ms() - int(params.since_s * 1_000)

        def wanted(each: Event) -> bool:
            return (
                each.wall_ms >= oldest_ms
                and (not params.types or each.type in params.types)
                and (not params.node or self._is_about(each, params.node))
            )

        run = happenings.run
        after = params.after or 0
        if params.last is not None and params.after is None:
            after = log.after_last(max(0, params.last), wanted)
        if params.run is not None and params.run != run:
            after = 0
        page = log.read(after, wanted, params.limit)
        if not page.events and params.wait_s:
            seen = page.next
            await happenings.wait_until(
                lambda: bool(log.read(seen, wanted, 1).events), params.wait_s
            )
            page = log.read(after, wanted, params.limit)
        return {
            "schema": "meshd.events/1",
            "run": run,
            "next": page.next,
            # Whoever asks for a time, or for the last few, has not been reading: nothing is lost.
            "lost": page.lost if params.after is not None else 0,
            "events": [self._shape(each) for each in page.events],
        }

    def _shape(self, each: Event) -> dict[str, Any]:
        shape: dict[str, Any] = msgspec.to_builtins(each)
        names = {key: self._name(shape.get(key, "")) for key in ("node", "accuser")}
        shape["name"] = each.name or names["node"]
        if each.accuser:
            shape["accuser_name"] = names["accuser"]
        return shape

    def _name(self, node: str) -> str:
        return self._node.happenings.name_of(NodeId(bytes.fromhex(node))) if node else ""

    def _is_about(self, each: Event, wanted: str) -> bool:
        return wanted in {each.node, each.name or self._name(each.node)}

    # Telling and asking

    async def _event(self, params: EventParams, context: CallContext) -> dict[str, Any]:
        del context
        payload = payload_from(params.payload, params.payload_base64)
        await self._node.happenings.emit(params.name, payload, coalesce=params.coalesce)
        return {"told": True, "name": params.name, "bytes": len(payload)}

    async def _query(self, params: QueryParams, context: CallContext) -> dict[str, Any]:
        del context
        node = self._node
        asked = tuple(self._member(text) for text in params.nodes)
        live = sum(1 for p in node.view().peers if p.state <= MemberState.SUSPECT)
        usual_s = query_timeout_s(node.gossip_config, live)
        timeout_s = usual_s if params.timeout_s is None else params.timeout_s
        query = await node.happenings.ask(
            params.name,
            payload_from(params.payload, params.payload_base64),
            timeout_s=timeout_s,
            nodes=tuple(peer.node for peer in asked),
            capability=params.capability,
        )
        return {
            "query": query, "timeout_s": round(timeout_s, 3), "members": live,
            "nodes": [peer.name for peer in asked],
        }  # fmt: skip

    def _member(self, text: str) -> Peer:
        found = [p for p in self._node.view().named(text) if p.state <= MemberState.SUSPECT]
        if not found:
            raise NoCandidateError(f"no living node {text!r} is known", hint="see meshd peers")
        if len(found) > 1:
            ids = ", ".join(peer.node.hex() for peer in found)
            raise UsageError(f"{len(found)} nodes are named {text!r}", hint=f"use an id: {ids}")
        return found[0]

    async def _answers(self, params: AnswersParams, context: CallContext) -> dict[str, Any]:
        del context
        if not 0 <= params.wait_s <= WAIT_S_MAX or params.after < 0:
            raise UsageError(f"answers: after is 0 or more, wait_s 0 .. {WAIT_S_MAX:g}")
        gathering = self._node.happenings.gathering(params.query)
        await self._node.happenings.wait_until(
            lambda: gathering.has_ended or len(gathering.replies) > params.after, params.wait_s
        )
        return {"query": params.query, **self._replies(gathering, params.after)}

    def _replies(self, gathering: Gathering, after: int) -> dict[str, Any]:
        has_ended = gathering.has_ended
        replies = gathering.replies[after:]
        return {
            "next": after + len(replies),
            "ended": has_ended,
            "replies": [self._reply(each) for each in replies],
        }

    def _reply(self, each: QueryAnswered) -> dict[str, Any]:
        who = {"node": each.node.hex(), "name": self._name(each.node.hex())}
        if each.payload is None:
            return {"kind": "ack", **who}
        if each.is_error:
            return {"kind": "error", **who, "error": each.payload.decode("utf-8", "replace")}
        return {"kind": "answer", **who, **payload_shape(each.payload)}
