"""The methods that any caller may use, from `info` to `delegate`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.capability.manifest import CapabilitySummary, Manifest
from meshd.capability.match import Match, match
from meshd.clock import Seconds
from meshd.daemon.naming import refuse_ambiguous
from meshd.daemon.params import (
    CapabilitiesParams,
    DiscoverParams,
    Nothing,
    OfferParams,
    PeersParams,
    WorkParams,
)
from meshd.daemon.shapes import (
    holder,
    load_shape,
    manifest_shape,
    peer_row,
    percent,
    summary_shape,
)
from meshd.daemon.short_ways import ShortWays, work_deadline_s
from meshd.daemon.short_work import told, with_load
from meshd.deadline import Deadline
from meshd.errors import MeshError, NoCandidateError, UsageError
from meshd.model import MemberState, is_name
from meshd.routing.request import (
    DelegateRequest,
    DelegateResult,
    request_from_params,
)
from meshd.routing.rules import completed
from meshd.rpc.methods import CallContext, Params, Registry
from meshd.sink import Sink, UntilGone
from meshd.version import __version__
from meshd.view import Peer
from meshd.work.once import Once
from meshd.work.origin import ORIGIN, Origin

if TYPE_CHECKING:
    from meshd.daemon.node import Node

DISCOVER_LIMIT_MAX = 100
QUERY_CHARS_MAX = 2_000
MANIFESTS_CACHED_MAX = 512
MANIFEST_TIMEOUT_S = 3.0
ANSWER_GRACE_S: Seconds = 0.5
"""What work that runs under a key may take beyond its time to say itself that it is over."""
TEXT_MATCH_MIN = 0.2
"""How well a capability must fit a plain text to be given it."""


class RemoteMethods:
    """What a node answers to everybody."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._manifests: dict[bytes, Manifest] = {}
        self._once: Once[DelegateResult] = Once(node.clock)

    def register(self, registry: Registry) -> None:
        """Serve all of them."""
        short = ShortWays(self._node)
        registry.add("info", Nothing, self._info)
        registry.add("peers", PeersParams, self._peers)
        registry.add("capabilities", CapabilitiesParams, self._capabilities)
        registry.add("discover", DiscoverParams, self._discover)
        registry.add("work", WorkParams, self._work, beginner=short.work)
        registry.add("offer", OfferParams, self._offer)
        registry.add("delegate", None, self._delegate, beginner=short.delegate)
        registry.add("call", None, self._call, beginner=short.call)
        registry.add("ping", Nothing, self._ping)

    async def _info(self, params: Nothing, context: CallContext) -> dict[str, Any]:
        del params, context
        node = self._node
        load, me = node.own_load.now(), node.view().self_peer
        return {
            "schema": "meshd.info/1",
            "agent": node.name,
            "node": me.node.hex(),
            "name": node.name,
            "mesh": node.mesh,
            "version": __version__,
            "address": str(node.address),
            "url": f"http://{node.address}",
            "uptime_s": round(node.clock.now() - node.started_at, 3),
            "incarnation": me.incarnation,
            "epoch": me.epoch,
            "region": node.config.node.region,
            "labels": dict(node.config.node.labels),
            "cpu": percent(load.cpu_fraction),
            "mem": percent(load.mem_fraction),
            "load": load_shape(load),
            "capabilities": [manifest.name for manifest in node.worker.manifests()],
        }

    async def _ping(self, params: Nothing, context: CallContext) -> dict[str, Any]:
        del params, context
        node = self._node
        return {
            "node": node.node_id.hex(), "name": node.name, "wall_ms": node.clock.wall_ms(),
        }  # fmt: skip

    async def _peers(self, params: PeersParams, context: CallContext) -> dict[str, Any]:
        del context
        states = {state.name.lower() for state in MemberState}
        unknown = sorted(set(params.state) - states)
        if unknown:
            raise UsageError(
                f"no such state: {', '.join(unknown)}", hint=f"states: {', '.join(sorted(states))}"
            )
        node, view = self._node, self._node.view()
        now = node.clock.now()
        rows = [peer_row(peer, view, now) for peer in view.peers]
        return {
            "schema": "meshd.peers/1",
            "mesh": node.mesh,
            "self": view.me.hex(),
            "view_hash": view.view_hash,
            "version": view.version,
            "nodes": [row for row in rows if not params.state or row["state"] in params.state],
        }

    # Who offers what

    def _offers(self) -> Iterator[tuple[Peer, CapabilitySummary]]:
        view = self._node.view()
        for peer in view.peers:
            if peer.state <= MemberState.SUSPECT:
                for summary in peer.capabilities:
                    yield peer, summary

    async def _capabilities(
        self, params: CapabilitiesParams, context: CallContext
    ) -> dict[str, Any]:
        del context
        view = self._node.view()
        wanted = self._wanted_nodes(params.node)
        groups: dict[tuple[str, str, bytes], list[Peer]] = {}
        summaries: dict[tuple[str, str, bytes], CapabilitySummary] = {}
        for peer, summary in self._offers():
            if (wanted is None or peer in wanted) and params.name in {"", summary.name}:
                key = (summary.name, summary.version, summary.digest)
                groups.setdefault(key, []).append(peer)
                summaries.setdefault(key, summary)
        found = []
        for key in sorted(groups):
            summary, peers = summaries[key], groups[key]
            timeout_s = MANIFEST_TIMEOUT_S if params.name else 0.0
            manifest = await self._manifest(summary, peers, timeout_s=timeout_s)
            shape = summary_shape(summary) if manifest is None else manifest_shape(manifest)
            found.append({**shape, "nodes": [holder(peer, view) for peer in peers]})
        if params.name and not found:
            names = sorted({summary.name for _, summary in self._offers()})
            raise NoCandidateError(
                f"nobody offers {params.name!r}",
                hint=f"offered: {', '.join(names[:20]) or 'nothing yet'}",
            )
        return {"schema": "meshd.capabilities/1", "capabilities": found}

    def _wanted_nodes(self, text: str) -> tuple[Peer, ...] | None:
        if not text:
            return None
        view = self._node.view()
        found = (view.self_peer,) if text == "self" else view.named(text)
        if not found:
            raise NoCandidateError(f"no node {text!r} is known", hint="see meshd peers")
        return found

    async def _manifest(
        self, summary: CapabilitySummary, peers: list[Peer], *, timeout_s: Seconds
    ) -> Manifest | None:
        """The whole manifest, once a digest: this node's own, else what gossip brought of it.

        Args:
            summary: of which capability.
            peers: who offers it.
            timeout_s: how long to wait where gossip has not brought it yet.
        """
        me = self._node.node_id
        mine = self._node.worker.manifest(summary.name)
        if mine is not None and any(peer.node == me for peer in peers):
            return mine
        manifest = self._manifests.get(summary.digest)
        if manifest is None:
            manifest = await self._node.gossip.manifest(peers[0].node, summary, timeout_s)
            if manifest is None:
                return None
            if len(self._manifests) >= MANIFESTS_CACHED_MAX:
                del self._manifests[next(iter(self._manifests))]
            self._manifests[summary.digest] = manifest
        return manifest

    def match(
        self, query: str, *, tags: tuple[str, ...] = (), min_score: float = 0.1, limit: int = 5
    ) -> list[Match]:
        """Capabilities of the mesh that fit a text, best first."""
        known = {summary.name: summary for _, summary in self._offers()}
        return match(query, list(known.values()), tags=tags, min_score=min_score, limit=limit)

    async def _discover(self, params: DiscoverParams, context: CallContext) -> dict[str, Any]:
        del context
        if not params.query.strip() or len(params.query) > QUERY_CHARS_MAX:
            raise UsageError(f"query must be a text of 1 to {QUERY_CHARS_MAX} characters")
        if not 1 <= params.limit <= DISCOVER_LIMIT_MAX:
            raise UsageError(f"limit must be 1 .. {DISCOVER_LIMIT_MAX}")
        view = self._node.view()
        found = self.match(
            params.query, tags=params.tags, min_score=params.min_score, limit=params.limit
        )
        matches = []
        for each in found:
            offers = [(p, s) for p, s in self._offers() if s.name == each.name]
            peer, summary = offers[0]
            manifest = await self._manifest(summary, [peer], timeout_s=0.0)
            matches.append(
                {
                    "capability": each.name,
                    "score": round(each.score, 3),
                    "why": each.why,
                    "description": (manifest or summary).description,
                    "tags": list(offers[0][1].tags),
                    "nodes": [holder(peer, view) for peer, _ in offers],
                }
            )
        return {"schema": "meshd.discover/1", "query": params.query, "matches": matches}

    # Work

    async def _work(self, params: WorkParams, context: CallContext) -> dict[str, Any]:
        node = self._node
        began = node.clock.now()
        capability, value = params.capability, params.input
        if params.text is not None:
            capability = capability or self._for_text(params.text, here=True)
            value = {"text": params.text}
        if not capability:
            raise UsageError("work: say which capability", hint="see meshd capabilities")
        deadline_s = work_deadline_s(params.deadline_ms, context)
        origin = Origin(params.hops, Deadline.after(deadline_s, began))
        token = ORIGIN.set(origin)
        node.own_load.changed()
        try:
            done = await node.worker.run(
                capability,
                value,
                deadline_s=deadline_s,
                idempotency_key=params.idempotency_key or None,
                priority=params.priority,
                sink=context.sink,
                only_joins=params.only_joins,
            )
        except MeshError as error:
            with_load(node, error)
            raise
        finally:
            ORIGIN.reset(token)
            node.own_load.changed()
        return told(node, done, began)

    async def _offer(self, params: OfferParams, context: CallContext) -> dict[str, Any]:
        del context
        bid = self._node.worker.offer(
            params.capability, params.deadline_ms / 1_000, priority=params.priority
        )
        return {**bid, "load": self._node.own_load.now()}

    async def offer_here(self, params: dict[str, Any]) -> Any:
        """`offer` of this node itself, as routing asks for it."""
        return _as_received(await self._offer(msgspec.convert(params, OfferParams), CallContext()))

    async def work_here(
        self, params: dict[str, Any], *, timeout_s: Seconds, sink: Sink | None = None
    ) -> Any:
        """`work` on this node itself, as routing calls it."""
        given = msgspec.convert(params, WorkParams)
        return _as_received(await self._work(given, CallContext(deadline_s=timeout_s, sink=sink)))

    async def _delegate(self, params: Params, context: CallContext) -> dict[str, Any]:
        return dict(await self.delegate(params, context))

    async def _call(self, params: Params, context: CallContext) -> Any:
        """The result alone: what most callers want, for less."""
        return (await self.delegate(params, context))["peer_result"]["result"]

    async def delegate(self, params: Params, context: CallContext) -> DelegateResult:
        """Have work done by the best peer.

        Raises:
            MeshError: as `Dispatcher.delegate` does.
        """
        request = self.request_of(params)
        settings = self._node.dispatcher.settings_for(request.capability)
        request = completed(request, settings)
        asked_s = request.deadline_s
        if asked_s is None:
            asked_s = settings.deadline_s
        if context.deadline_s is not None:
            asked_s = min(asked_s, context.deadline_s)
        request = msgspec.structs.replace(request, deadline_s=asked_s, caller=context.who)
        if not request.idempotency_key:
            return await self._node.dispatcher.delegate(request, context.sink)
        # Each worker remembers its own runs, but a repeat may be sent to another one. Repeats may
        # wait for the work of a first caller who has left.
        sink = None if context.sink is None else UntilGone(context.sink)
        return await self._once.run(
            (request.capability, request.idempotency_key),
            request.input,
            lambda: self._node.dispatcher.delegate(request, sink),
            timeout_s=asked_s + ANSWER_GRACE_S,
            may_repeat=lambda: all(
                self.is_idempotent(name) for name in (request.capability, *request.fallback)
            ),
        )

    def request_of(self, params: Params) -> DelegateRequest:
        """The checked parameters of `delegate`.

        Raises:
            UsageError: they are wrong, or name a node that several bear.
            NoCandidateError: nothing fits a text.
        """
        if not isinstance(params, dict):
            raise UsageError(
                "delegate takes its parameters by name",
                hint='for example {"capability": "add", "input": {"a": 1, "b": 2}}',
            )
        request = request_from_params(self._expand(dict(params)))
        if request.to:
            refuse_ambiguous(self._node.view(), request.to)
        return request

    def is_idempotent(self, capability: str) -> bool:
        """Whether all who offer it say that running it twice does no harm; not if nobody does."""
        found = [s.idempotent for _, s in self._offers() if s.name == capability]
        return bool(found) and all(found)

    def _expand(self, params: dict[str, Any]) -> dict[str, Any]:
        """Turn a plain text, or a need in words, into a capability and its input."""
        text, need = params.pop("text", None), params.get("need")
        if text is not None:
            if not isinstance(text, str):
                raise UsageError("delegate: text must be a string")
            params.setdefault("input", {"text": text})
            if not params.get("capability") and not need:
                params["capability"] = self._for_text(text, here=False)
        elif isinstance(need, str) and need and not is_name(need):
            del params["need"]
            params["capability"] = _fitting(need, {s.name: s for _, s in self._offers()})
        return params

    def _for_text(self, text: str, *, here: bool) -> str:
        """The capability that a plain text is meant for: the best match, or the only one."""
        me = self._node.node_id
        offers = {s.name: s for p, s in self._offers() if p.node == me or not here}
        if len(offers) == 1:
            return next(iter(offers))
        return _fitting(text, offers)


def _fitting(text: str, offers: dict[str, CapabilitySummary]) -> str:
    """The name of what fits best.

    Raises:
        NoCandidateError: nothing fits.
    """
    found = match(text[:QUERY_CHARS_MAX], list(offers.values()), min_score=TEXT_MATCH_MIN)
    if not found:
        raise NoCandidateError(
            f"no capability fits {text[:80]!r}",
            hint=f"name one: {', '.join(sorted(offers)[:20]) or 'none is offered yet'}",
        )
    return found[0].name


def _as_received(answer: dict[str, Any]) -> dict[str, Any]:
    """What `work` and `offer` tell, as their callers on other nodes get it."""
    return {**answer, "load": msgspec.to_builtins(answer["load"])}
