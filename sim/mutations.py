"""Protocol faults planted on purpose: a simulator that misses them proves nothing.

Each replaces one method of the production code for as long as its context lasts. Used by tests and
by the published table of how many seeds it takes to catch each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec

import meshd.gossip.beliefs as beliefs_module
import meshd.gossip.codec as codec_module
import meshd.gossip.outbox as outbox_module
import meshd.gossip.suspicion as suspicion_module
import meshd.gossip.swim as swim_module
from meshd.clock import Instant
from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import encode_update
from meshd.gossip.dialects import Dialects
from meshd.gossip.documents import Documents
from meshd.gossip.doors import Doors
from meshd.gossip.doubts import Doubts
from meshd.gossip.effects import ProbeCompleted
from meshd.gossip.events import EventPlane
from meshd.gossip.loads import LoadPlane
from meshd.gossip.messages import JOIN_PADDING_BYTES, Ack, Join, Records, Update
from meshd.gossip.prober import Prober
from meshd.gossip.recent import RecentEvents
from meshd.gossip.sponsors import Sponsors
from meshd.gossip.state import StateStore
from meshd.gossip.suspicion import Suspicion
from meshd.gossip.swim import Swim
from meshd.gossip.sync import Exchange
from meshd.gossip.trust import Trust
from meshd.model import Address, Member, MemberState, MeshId, NodeId
from sim.build import require_pure

_MESH_AT, _MESH_END = 4, 12
"""Where the mesh's id stands in a datagram's header."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted fault: what it says, where it sits, and the scenario that shows it best."""

    name: str
    text: str
    owner: Any
    attribute: str
    make: Callable[[Any], Any]
    scenario: str

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Put the fault in; take it out in the end. Raises UsageError in a compiled build."""
        require_pure(self.owner)
        original = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.make(original))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, original)


def _nothing(_original: Any) -> Any:
    def nothing(*_args: Any, **_options: Any) -> None:
        return None

    return nothing


def _refuses(_original: Any) -> Any:
    def refuses(*_args: Any, **_options: Any) -> bool:
        return False

    return refuses


def _any_ack(original: Any) -> Any:
    def on_ack(self: Prober, ack: Ack, source: NodeId, now: Instant) -> None:
        current = self._round
        if current is not None and not current.acked:
            current.acked = True
            self._timers.cancel("probe_timeout")
            self._outbox.add(ProbeCompleted(current.target, succeeded=True, rtt_s=None))
        original(self, ack, source, now)

    return on_ack


def _left_is_dead(original: Any) -> Any:
    def hear(self: Beliefs, update: Update, *args: Any, **options: Any) -> None:
        if update.state == MemberState.LEFT:
            update = msgspec.structs.replace(update, state=int(MemberState.DEAD))
        original(self, update, *args, **options)

    return hear


def _state_ignored(original: Any) -> Any:
    def join(one: Member, other: Member) -> Member:
        same = (one.epoch, one.incarnation) == (other.epoch, other.incarnation)
        return other if same else original(one, other)

    return join


def _jumping(original: Any) -> Any:
    def raise_self(
        self: Beliefs, epoch: int, incarnation: int, now: Instant, **changes: object
    ) -> None:
        original(self, epoch, incarnation + 1, now, **changes)

    return raise_self


def _laundered(original: Any) -> Any:
    def hear(self: Beliefs, update: Update, *args: Any, **options: Any) -> None:
        if update.state == MemberState.SUSPECT:
            update = msgspec.structs.replace(update, incarnation=update.incarnation + 1)
        original(self, update, *args, **options)

    return hear


def _for_ever(_original: Any) -> Any:
    def transmit_limit(mult: int, members: int) -> int:
        return 1_000_000 * mult * members

    return transmit_limit


def _silent(original: Any) -> Any:
    def report(self: Beliefs, member: Member, *args: Any, **options: Any) -> None:
        if member.state is not MemberState.LEFT:
            original(self, member, *args, **options)

    return report


def _overfull(original: Any) -> Any:
    def accusation(self: Beliefs, node: NodeId) -> tuple[NodeId, bytes] | None:
        found: tuple[NodeId, bytes] | None = original(self, node)
        if found is None:
            return None
        member = self.table.get(node)
        return (node, found[1] if member is None else encode_update(member) + bytes(1_200))

    return accusation


def _unrouted(original: Any) -> Any:
    """Deaths are kept to oneself."""

    def spread(self: Beliefs, member: Member, *args: Any, **options: Any) -> None:
        if member.state is not MemberState.DEAD and member.node == self.me.node:
            original(self, member, *args, **options)

    return spread


def _no_sync(original: Any) -> Any:
    def ask(self: Exchange, node: NodeId, address: Address, cookie: bytes, now: Instant) -> None:
        if cookie:
            original(self, node, address, cookie, now)

    return ask


def _believes_it(original: Any) -> Any:
    def hear_of_self(self: Beliefs, member: Member, now: Instant) -> None:
        if member.state is MemberState.SUSPECT and member.epoch == self.me.epoch:
            self.replace_self(member, now)
        else:
            original(self, member, now)

    return hear_of_self


def _twice(original: Any) -> Any:
    def ping(self: Prober, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        original(self, *args, **options)

    return ping


def _from_anywhere(original: Any) -> Any:
    """Records are answered to wherever they came from."""

    def on_records(
        self: Exchange, records: Records, source: NodeId, address: Address, now: Instant
    ) -> None:
        asks = self._asks
        if source in asks:
            asks[source].address = address
        original(self, records, source, address, now)

    return on_records


def _strict(original: Any) -> Any:
    def decode_body(body: bytes) -> Any:
        message = original(body)
        known = len(message.__struct_fields__) + 1
        if len(msgpack.unpackb(body)) > known:
            raise DecodeError("not_a_message")
        return message

    return decode_body


def _generous(original: Any) -> Any:
    """Who joins with too short a question is answered all the same."""

    def on_join(self: Exchange, join: Join, source: NodeId, address: Address, now: Instant) -> None:
        original(self, Join(join.sequence, bytes(JOIN_PADDING_BYTES)), source, address, now)

    return on_join


def _merge_kills(original: Any) -> Any:
    """A death that a table tells of is taken for true."""

    def hear(self: Beliefs, update: Update, *args: Any, **options: Any) -> None:
        options.pop("synced", None)
        original(self, update, *args, **options)

    return hear


def _impatient(original: Any) -> Any:
    def bounds_s(*args: Any) -> tuple[float, float]:
        shortest_s, longest_s = original(*args)
        return shortest_s / 2, longest_s / 2

    return bounds_s


def _forgets_epoch(original: Any) -> Any:
    def join(one: Member, other: Member) -> Member:
        if one.epoch != other.epoch and one.node == other.node:
            return one
        return original(one, other)  # type: ignore[no-any-return]

    return join


def _any_mesh(original: Any) -> Any:
    def decode_any(data: bytes, mesh: MeshId, **options: Any) -> Any:
        its = MeshId(data[_MESH_AT:_MESH_END]) if len(data) > _MESH_END else mesh
        return original(data, its, **options)

    return decode_any


def _garbled(original: Any) -> Any:
    sent = 0

    def put(outbox: Any, to: NodeId, address: Address, body: bytes) -> None:
        nonlocal sent
        sent += 1
        original(outbox, to, address, body[:-1] if sent % 50 == 0 else body)

    return put


def _accepts(_original: Any) -> Any:
    def accepts(*_args: Any, **_options: Any) -> bool:
        return True

    return accepts


def _credulous(_original: Any) -> Any:
    """Unproven news is taken in like a member's."""

    def on_unproven_news(
        self: Trust, updates: Any, _source: NodeId, address: Address, now: Instant
    ) -> None:
        self._beliefs.hear_all(tuple(updates), address, now)

    return on_unproven_news


MUTATIONS = (
    Mutation("no_refute", "a node does not deny its own death", Beliefs, "_hear_of_self", _nothing,
             "starved"),
    Mutation("believes_it", "a node takes the doubt of others for true", Beliefs, "_hear_of_self",
             _believes_it, "starved"),
    Mutation("no_welcome", "nobody's welcome is heard", Exchange, "on_welcome", _nothing,
             "join_storm"),
    Mutation("twice", "each probe is sent twice", Prober, "_ping", _twice, "steady"),
    Mutation("any_ack", "any ack satisfies any probe", Prober, "on_ack", _any_ack, "asked"),
    Mutation("left_is_dead", "a goodbye is taken for a death", Beliefs, "hear", _left_is_dead,
             "goodbyes"),
    Mutation("no_sync", "views are compared at the door alone", Exchange, "_ask", _no_sync,
             "apart"),
    Mutation("no_reconnect", "the dead are never pinged again", Prober, "on_reconnect", _nothing,
             "split"),
    Mutation("no_confirmation", "further opinions do not shorten a doubt", Suspicion, "confirm",
             _refuses, "crash"),
    Mutation("no_verifiers", "nobody verifies a doubt at once", Doubts, "_is_verifier", _refuses,
             "crash"),
    Mutation("state_ignored", "at one incarnation the last word heard wins", beliefs_module,
             "join", _state_ignored, "swarm"),
    Mutation("jumping", "an incarnation rises by two", Beliefs, "_raise_self", _jumping, "starved"),
    Mutation("laundered", "a passed on doubt carries a number never issued", Beliefs, "hear",
             _laundered, "crash"),
    Mutation("for_ever", "rumours are passed on without end", outbox_module, "transmit_limit",
             _for_ever, "crash"),
    Mutation("silent", "the application is not told of goodbyes", Beliefs, "_report", _silent,
             "goodbyes"),
    Mutation("overfull", "a buddy's rumour is not counted against the room", Beliefs,
             "accusation", _overfull, "crash"),
    Mutation("never_dead", "doubts never run out", Beliefs, "suspicion_ran_out", _nothing, "crash"),
    Mutation("no_pass_on", "rumours about others are not passed on", Beliefs, "_spread", _unrouted,
             "crash"),
    Mutation("old_run_wins", "a newer run does not outrank an older one", beliefs_module, "join",
             _forgets_epoch, "swarm"),
    Mutation("no_pull", "a newer state is never asked for", StateStore, "note_teller", _refuses,
             "churn"),
    Mutation("no_documents", "documents are never asked for", Documents, "on_told", _nothing,
             "documents"),
    Mutation("from_anywhere", "records are answered to where they came from", Exchange,
             "on_records", _from_anywhere, "outsiders"),
    Mutation("generous", "a join too short for its answer is answered", Exchange, "on_join",
             _generous, "outsiders"),
    Mutation("strict", "fields of a later version are refused", codec_module, "_decode_body",
             _strict, "rolling_upgrade"),
    Mutation("no_outrank", "records of an earlier run of one's own are borne with", Beliefs,
             "_outrank", _nothing, "power_loss"),
    Mutation("merge_kills", "a death in another's table is taken for true", Beliefs, "hear",
             _merge_kills, "split"),
    Mutation("impatient", "a doubt lasts half as long", suspicion_module, "suspicion_bounds_s",
             _impatient, "crash"),
    Mutation("loads_stay", "load rumours are not passed on", LoadPlane, "pass_on", _nothing,
             "loads"),
    Mutation("no_gossip", "rumours ride on probes alone", Swim, "_on_gossip", _nothing,
             "goodbyes"),
    Mutation("any_mesh", "datagrams of other meshes are let in", swim_module, "decode", _any_mesh,
             "two_meshes"),
    Mutation("credulous", "news of strangers is believed", Trust, "on_unproven_news", _credulous,
             "forged_newcomers"),
    Mutation("any_address", "a member's word counts from any address", Exchange, "is_at", _accepts,
             "forged_records"),
    Mutation("no_denial", "a sponsor bears with guests that it never met", Sponsors,
             "is_false_claim", _refuses, "false_guests"),
    Mutation("open_doors", "every datagram of a flood is looked at", Doors, "lets_in", _accepts,
             "join_flood"),
    Mutation("all_welcome", "every join of a flood is welcomed", Doors, "may_join", _accepts,
             "join_flood"),
    Mutation("no_probe_limit", "every stranger is asked who it is", Doors, "may_probe", _accepts,
             "join_flood"),
    Mutation("oldest_only", "what version others speak is not noticed", Dialects, "heard",
             _nothing, "third_version"),
    Mutation("garbled", "every fiftieth datagram lacks its last byte", outbox_module.Outbox, "_put",
             _garbled, "crash"),
    Mutation("echoed", "users' events that are known are taken again", RecentEvents, "knows",
             _refuses, "told"),
    Mutation("untold", "users' events are compared and not passed on", EventPlane, "_on_round",
             _nothing, "told"),
)  # fmt: skip
"""All of them, with the scenario in which each should be caught within a few seeds."""
