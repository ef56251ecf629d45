"""Feeds a node of a small simulated mesh with hostile datagrams, and looks at what each does to it.

After each: the machine raised nothing and is consistent; a refused datagram changed no belief; an
address that proved nothing got no more than it sent; and nothing that waits grows past its bound.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from meshd.clock import Instant
from meshd.gossip.config import profile
from meshd.gossip.effects import DatagramRejected, Effect, SendDatagram
from meshd.gossip.inputs import DatagramReceived, StateSet
from meshd.gossip.messages import Join, Sync, Welcome
from meshd.model import Address, Member, NodeId
from sim.fuzz_values import KINDS_OF_INPUT, Pool
from sim.versions import kind_of
from sim.world import MESH, PORT, Host, World

NODES = 6
MEMBERS_MAX = 150
WARM_UP_S = 6.0
STEP_S = 0.001
"""Time from one hostile datagram to the next."""
BREATH_EVERY = 50
"""Datagrams after which the mesh goes on for a moment, so that its own life is fuzzed as well."""
VALIDATE_EVERY = 20
ROUND_DATAGRAMS = 20_000
"""Datagrams to one mesh; then a fresh one takes its place."""
RECORDED_MAX = 4_000
JOINS_PER_S = 3
SHARES = {"noise": 0.1, "spoilt": 0.4, "structured": 0.5}
PENDING_MAX = {
    "rumours": 2 * MEMBERS_MAX, "suspicions": MEMBERS_MAX, "relays": 256, "pulls": 8,
    "gone": MEMBERS_MAX, "hearsay": 64 * 64, "timers": 3 * MEMBERS_MAX + 1_024,
}  # fmt: skip
WHOLE = frozenset({
    "too_large", "too_short", "other_version", "other_mesh", "sealed", "not_msgpack",
    "not_a_message", "unknown_kind", "own_id", "other_destination", "not_a_member", "flood",
    "short_join", "leaving", "unasked", "not_its_own_record", "unproven",
})  # fmt: skip
"""Reasons why a datagram as a whole was refused; others refuse one rumour in it."""
_JOIN, _WELCOME, _SYNC = (int(kind.__struct_config__.tag or 0) for kind in (Join, Welcome, Sync))


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong, and the datagram after which it did."""

    text: str
    seed: int
    number: int
    data: bytes
    source: Address

    def __str__(self) -> str:
        return (
            f"{self.text}\n  seed {self.seed}, datagram {self.number} of its mesh, from "
            f"{self.source}: {self.data.hex()}"
        )


class Fuzzed:
    """One mesh under fire. Everything follows from its seed."""

    def __init__(self, seed: int) -> None:
        """Let a mesh meet, write state and be calm; keep what its first node was sent."""
        self.seed = seed
        self.number = 0
        self.findings: list[Finding] = []
        self.refused: Counter[str] = Counter()
        self._rng = random.Random(f"fuzz/{seed}")
        config = msgspec.structs.replace(profile("local"), members_max=MEMBERS_MAX)
        self.world = World(NODES, seed, config=config)
        self.target = self.world.hosts[0]
        self._puts = 0
        self.world.on_change.append(self._on_change)
        recorded: list[bytes] = []
        self.world.on_send.append(lambda host, effect: self._record(recorded, host, effect))
        for host in self.world.hosts:
            self.world.start(host, (0, 1))
            self.world.step(host, StateSet({"name": b"node-%d" % host.index}))
        self.world.run(self.world.now + WARM_UP_S)
        self._is_recording = False
        self.pool = Pool(
            mesh=MESH,
            me=self.target.id,
            members=tuple((host.id, host.address) for host in self.world.hosts[1:]),
            strangers=tuple(NodeId(b"strange%d" % number) for number in range(10)),
            elsewhere=tuple(Address(f"192.0.2.{number + 1}", PORT) for number in range(8)),
            epoch=self.target.epoch,
            recorded=recorded,
        )
        self._joins: list[float] = []
        self._asked: dict[Address, None] = {}
        self.world.on_send.append(self._on_send)
        self._before = self._beliefs()

    _is_recording = True

    def _record(self, recorded: list[bytes], host: Host, effect: SendDatagram) -> None:
        to_target = effect.to == self.target.address and host is not self.target
        if self._is_recording and to_target and len(recorded) < RECORDED_MAX:
            recorded.append(effect.data)

    def _on_change(self, host: Host, before: Member | None, after: Member) -> None:
        del before, after
        self._puts += host is self.target

    def _on_send(self, host: Host, effect: SendDatagram) -> None:
        """Whoever was asked for a whole table may be sent what it lacks itself."""
        if host is self.target and kind_of(effect.data) == _SYNC:
            self._asked[effect.to] = None

    def run(self, count: int) -> None:
        """Feed so many datagrams, drawn from the seed."""
        for _ in range(count):
            (kind,) = self._rng.choices(tuple(SHARES), tuple(SHARES.values()))
            data, source = KINDS_OF_INPUT[kind](self.pool, self._rng)
            self.feed(data, source)

    def feed(self, data: bytes, source: Address) -> None:
        """Give one datagram to the target, and look at what it does."""
        self.number += 1
        swim = self.target.swim
        assert swim is not None
        known = {member.address for member in swim.members}
        known.update(swim._exchange._proven.values())  # noqa: SLF001 - it answered there
        now = self.world.now = self.world.now + STEP_S
        try:
            effects = swim.step(DatagramReceived(data, source), Instant(now))
            if self.number % VALIDATE_EVERY == 0:
                swim.validate()
        # Whatever it raises is what we are looking for: a core never does.
        except Exception as error:  # noqa: BLE001
            self._found(f"raised {type(error).__name__}: {error}", data, source)
            return
        self._look(effects, data, source, known)
        if self.number % BREATH_EVERY == 0:
            self._breathe(data, source)

    def _look(
        self, effects: list[Effect], data: bytes, source: Address, known: set[Address]
    ) -> None:
        after = self._beliefs()
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._on_send(self.target, effect)
        for effect in effects:
            if isinstance(effect, DatagramRejected):
                self.refused[effect.reason] += 1
                if effect.reason in WHOLE and after != self._before:
                    self._found(f"refused as {effect.reason}, and believed", data, source)
        self._before = after
        sent = [e for e in effects if isinstance(e, SendDatagram) and e.to not in known]
        joins = [e for e in sent if kind_of(e.data) == _JOIN]
        replies = [e for e in sent if kind_of(e.data) != _JOIN and e.to not in self._asked]
        if replies and not (len(data) > 29 and kind_of(data) == _WELCOME):
            size = sum(len(e.data) for e in replies)
            swim = self.target.swim
            assert swim is not None
            # A ping for somebody else goes to where its subject is, be that news of this moment.
            is_relay = bool(swim.members.at_address(replies[0].to))
            aside = replies[0].to != source and not is_relay
            if len(replies) > 1 or size > len(data) or aside:
                text = f"{len(replies)} replies of {size} bytes to an unproven address"
                self._found(text, data, source)
        now = self.world.now
        self._joins = [at for at in self._joins if at > now - 1] + [now] * len(joins)
        if len(self._joins) > JOINS_PER_S:
            self._found(f"{len(self._joins)} joins to strangers in a second", data, source)

    def _breathe(self, data: bytes, source: Address) -> None:
        """Let the mesh live on for a moment."""
        try:
            self.world.rearm(self.target)
            self.world.run(self.world.now + STEP_S)
        except Exception as error:  # noqa: BLE001 - as above
            self._found(f"raised later {type(error).__name__}: {error}", data, source)
        swim = self.target.swim
        assert swim is not None
        for what, count in swim.pending().items():
            if count > PENDING_MAX.get(what, 4_096):
                self._found(f"{count} {what} wait", data, source)
        if len(swim.members) > MEMBERS_MAX:
            self._found(f"{len(swim.members)} members", data, source)
        swim.take_touched()
        self._before = self._beliefs()

    def _beliefs(self) -> object:
        """All that a refused datagram must not change, cheaply."""
        swim = self.target.swim
        assert swim is not None
        # The machine's own parts: doubts and states have no door for those who only look.
        doubts = tuple(
            (node, doubt.deadline())
            for node, doubt in swim._beliefs.suspicions.items()  # noqa: SLF001
        )
        states = tuple(
            (node, state.epoch, state.version)
            for node, state in swim._states._held.items()  # noqa: SLF001
        )
        return self._puts, len(swim.members), swim.me, doubts, states

    def _found(self, text: str, data: bytes, source: Address) -> None:
        self.findings.append(Finding(text, self.seed, self.number, data, source))


OnRound = Callable[[int, Fuzzed], None]


def fuzz(
    count: int, seed: int, on_round: OnRound | None = None, *, findings_max: int = 20
) -> tuple[int, list[Finding], Counter[str]]:
    """Feed `count` datagrams to meshes of growing seeds.

    Returns how many were fed (fewer if so much was found that there is no point), what was found,
    and how often what was refused for which reason.
    """
    fed, findings = 0, list[Finding]()
    refused: Counter[str] = Counter()
    while fed < count and len(findings) < findings_max:
        mesh = Fuzzed(seed)
        some = min(ROUND_DATAGRAMS, count - fed)
        mesh.run(some)
        fed += some
        findings += mesh.findings
        refused += mesh.refused
        if on_round is not None:
            on_round(fed, mesh)
        seed += 1
    return fed, findings, refused
