"""The protocol with parts of Lifeguard left out, or as others' analyses assume it to be.

What the configuration cannot switch off is replaced in the production classes for as long as the
context lasts, as the planted faults are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import encode_update
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.doubts import Doubts
from meshd.gossip.messages import Ack, Gossip, Message, Ping
from meshd.gossip.outbox import Outbox
from meshd.gossip.prober import Prober
from meshd.gossip.verifier import Verifier
from meshd.model import Member, NodeId
from sim.build import require_pure

Make = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One variant of the protocol.

    Attributes:
        name: for tables.
        text: what differs.
        changes: fields of the configuration that differ from the lan profile.
        patches: class, method, and what makes the replacement from the original.
    """

    name: str
    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[tuple[type, str, Make], ...] = ()

    @contextmanager
    def applied(self, **changes: float) -> Iterator[GossipConfig]:
        """Replace what differs; gives the configuration to build nodes with.

        Args:
            changes: further fields that differ from the lan profile, and win over the arm's.

        Raises:
            UsageError: it replaces what is compiled in this build.
        """
        for owner, _, _ in self.patches:
            require_pure(owner)
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in self.patches]
        for (owner, name, make), (_, _, original) in zip(self.patches, originals, strict=True):
            setattr(owner, name, make(original))
        try:
            yield msgspec.structs.replace(profile("lan"), **{**self.changes, **changes})
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


# Without parts of Lifeguard


def _no_nack(_original: Any) -> Any:
    def on_nack_due(self: Prober, sequence: int) -> None:
        del self, sequence

    return on_nack_due


def _ping_without_accusation(_original: Any) -> Any:
    def ping(self: Prober, target: Member, sequence: int, wanted: int = 0) -> None:
        self._outbox.send_full(target.node, target.address, Ping, (sequence,), last=wanted)

    return ping


def _ack_without_accusation(_original: Any) -> Any:
    def on_ping(self: Prober, ping: Ping, member: Member, view_hash: int) -> None:
        leaving = self._beliefs.leaving
        first = self._beliefs.accusation(self._beliefs.me.node) if leaving else None
        fields = (ping.sequence, view_hash)
        last = self._distances.for_ack(member.node, ping.wanted)
        self._outbox.send_full(member.node, member.address, Ack, fields, first=first, last=last)

    return on_ping


def _nothing(_original: Any) -> Any:
    def nothing(self: Beliefs, *args: Any) -> None:
        del self, args

    return nothing


_LIFEGUARD_CHANGES = {"suspicion_mult": 4.0, "verifiers": 0}


def _none(_original: Any) -> Any:
    def none(self: Beliefs) -> list[bytes]:
        del self
        return []

    return none


def _without_last_call(_original: Any) -> Any:
    def on_suspicion_due(self: Verifier, node: NodeId, now: Instant) -> None:
        suspicion = self._beliefs.suspicions[node]
        if suspicion.deadline() <= now:
            self._beliefs.suspicion_ran_out(node, now)
        else:
            self._timers.set(("suspicion", node), suspicion.deadline())

    return on_suspicion_due


_LIFEGUARD_PATCHES = (
    (Beliefs, "mail_waited", _nothing),
    (Doubts, "answered_late", _nothing),
    (Beliefs, "corrections", _none),
    (Verifier, "on_suspicion_due", _without_last_call),
)
_NO_PROBE_CHANGES = {**_LIFEGUARD_CHANGES, "health_max": 0}
_NO_PROBE_PATCHES = ((Prober, "on_nack_due", _no_nack), *_LIFEGUARD_PATCHES)
_NO_SUSPICION_CHANGES = {
    **_LIFEGUARD_CHANGES,
    "suspicion_max_mult": 1.0,
    "suspicion_confirmations": 0,
}
_NO_BUDDY_PATCHES = (
    (Prober, "_ping", _ping_without_accusation),
    (Prober, "on_ping", _ack_without_accusation),
)

MESHD = Arm("meshd", "as shipped")
LIFEGUARD = Arm(
    "Lifeguard",
    "memberlist's LAN formulas: no verifiers, no taking back, lateness neither measured nor told",
    _LIFEGUARD_CHANGES,
    _LIFEGUARD_PATCHES,
)
SWIM = Arm(
    "SWIM",
    "no local health, no nacks, a suspicion of fixed length, no word to the suspect",
    {**_NO_PROBE_CHANGES, **_NO_SUSPICION_CHANGES},
    (*_NO_PROBE_PATCHES, *_NO_BUDDY_PATCHES),
)
LHA_PROBE = Arm(
    "LHA-Probe",
    "SWIM with local health and nacks",
    _NO_SUSPICION_CHANGES,
    (*_NO_BUDDY_PATCHES, *_LIFEGUARD_PATCHES),
)
LHA_SUSPICION = Arm(
    "LHA-Suspicion",
    "SWIM with a suspicion that confirmations shorten",
    _NO_PROBE_CHANGES,
    (*_NO_PROBE_PATCHES, *_NO_BUDDY_PATCHES),
)
BUDDY = Arm(
    "Buddy",
    "SWIM in which a suspect is told first",
    {**_NO_PROBE_CHANGES, **_NO_SUSPICION_CHANGES},
    _NO_PROBE_PATCHES,
)
LIFEGUARD_ARMS = (SWIM, LHA_PROBE, LHA_SUSPICION, BUDDY, LIFEGUARD)


# As analyses assume


def _ticking(_original: Any) -> Any:
    def spread(self: Beliefs, member: Member, now: Instant, **_options: Any) -> None:
        self.rumours.add(member.node, encode_update(member))
        interval_s = self._config.gossip_interval_s
        # The id is a hash: as good as chance, and the same at each call.
        phase_s = int.from_bytes(self.me.node[:4], "big") / 2**32 * interval_s
        self._timers.set_earlier("gossip", now + (phase_s - now) % interval_s)

    return spread


def _without_riders(original: Any) -> Any:
    def send_full(
        self: Outbox, to: NodeId, address: Any, kind: type[Message], fields: Any, **options: Any
    ) -> None:
        if kind is Gossip:
            original(self, to, address, kind, fields, **options)
        else:
            self.send(to, address, kind, fields)

    return send_full


def _in_step(original: Any) -> Any:
    def start(self: Prober, **parts: Any) -> None:
        original(self, **parts)
        now, interval_s = parts["now"], parts["config"].probe_interval_s
        parts["timers"].set("probe", now + interval_s - now % interval_s)

    return start


PURE_GOSSIP = Arm(
    "as the formula assumes",
    "rumours travel in gossip alone, each node at its own ticks of 0.2 s",
    {},
    ((Beliefs, "_spread", _ticking), (Outbox, "send_full", _without_riders)),
)
AS_SHIPPED = Arm("as shipped", "a fresh rumour leaves at once, and rides on probes too")
IN_STEP = Arm(
    "in step", "all nodes probe at the same moment", {}, ((Prober, "__init__", _in_step),)
)
FREE = Arm("as shipped", "each node probes at its own moment")
