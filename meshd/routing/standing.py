"""Plans that stand for a moment: what one look at the reports is worth to more than one call.

Work that is too short to ask about is spread by the room that peers have (see
`meshd.routing.draw`). That tells not only who comes next but how many fit in where, so that the
calls right after one with a plan need none of their own: they are drawn from what is left.

Only a plan stands for which everybody who can do it was looked at. Of many, each plan looks at a
few: were that to stand, a burst would go to the same few.
"""

from random import Random

from msgspec.structs import replace

from meshd.clock import Instant, Seconds
from meshd.model import Load
from meshd.routing.draw import room
from meshd.routing.probes import TOO_SHORT, Probes
from meshd.routing.router import Candidate, Plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Estimate, Outstanding
from meshd.view import ClusterView

STANDS_S: Seconds = 0.005
"""For so long at most, and for no more calls than all of them do in that time."""

CAPABILITIES_MAX = 256
"""Capabilities with a plan that stands; beyond it all are forgotten."""

VAIN_S_MAX: Seconds = 0.25
"""For so long at most nobody tries whether a plan stands, where the last ones did not."""
VAIN_MAX = 1_024
"""Capabilities of which that is known."""

AS_BEFORE = Probes(
    why_not="the plan of a call a moment before stands, with its figures; drawn by the room left"
)


class _Standing:
    """A plan, how long it holds and for how many, and the room that is left at each candidate."""

    __slots__ = ("due", "led", "left", "made", "room", "settings", "until")

    def __init__(
        self, made: Plan, settings: RoutingSettings, until: Instant, estimates: list[Estimate]
    ) -> None:
        self.made = made
        self.due: Plan | None = None
        self.led: list[Plan | None] = [None] * len(made.attempts)
        self.settings = settings
        self.until = until
        self.left = STANDS_S * sum(each.slots / each.service_s for each in estimates)
        self.room = room(estimates)
        self.take(0)

    def take(self, index: int) -> Plan:
        """A call goes there: the plan, led by that one."""
        self.left -= 1.0
        self.room[index] = max(0.0, self.room[index] - 1.0)
        plan = self.led[index]
        if plan is None:
            attempts = self.made.attempts
            first, others = attempts[index], (*attempts[:index], *attempts[index + 1 :])
            plan = replace(self.made, attempts=(first, *others), probes=AS_BEFORE)
            self.led[index] = plan
        return plan


class Standings:
    """The plans of one view that stand, by capability: for calls that ask for nothing else."""

    def __init__(self, random: Random, outstanding: Outstanding) -> None:
        self._random = random
        self._outstanding = outstanding
        self._view: ClusterView | None = None
        self._standing: dict[str, _Standing] = {}
        self._vain: dict[str, tuple[Instant, Seconds]] = {}
        """Of capabilities whose last plan could not stand: until when the next one hardly can, and
        how long that was."""

    def may_stand(self, capability: str, now: Instant) -> bool:
        """Whether a plan is worth making only in case that it stands."""
        vain = self._vain.get(capability)
        return vain is None or now >= vain[0]

    def keep(self, made: Plan, view: ClusterView, settings: RoutingSettings, now: Instant) -> bool:
        """Let a plan stand, if it is one of short work, saw everybody, and nothing is wrong."""
        known, capability = made.scene.known, made.need.capability
        stands = (
            made.attempts
            and not (made.trials or made.spared)
            and made.is_whole
            and made.rule.is_eta
            and made.probes.why_not == TOO_SHORT
            and all(peer.node in known for peer in made.passed_over)
        )
        if not stands:
            self._note_vain(capability, now)
            return False
        self._vain.pop(capability, None)
        others = [Candidate(p, known[p.node].eta_s, known[p.node]) for p in made.passed_over]
        made = replace(made, attempts=(*made.attempts, *others), passed_over=())
        estimates = [c.made_of for c in made.attempts if isinstance(c.made_of, Estimate)]
        if view is not self._view or len(self._standing) >= CAPABILITIES_MAX:
            self._view = view
            self._standing.clear()
        standing = _Standing(made, settings, Instant(now + STANDS_S), estimates)
        self._standing[capability] = standing
        return True

    def _note_vain(self, capability: str, now: Instant) -> None:
        """A plan could not stand: each in a row makes the time until the next trial twice as long.

        Whoever makes it for that alone makes another one for its call.
        """
        _, lasted_s = self._vain.pop(capability, (now, 0.0))
        pause_s = min(VAIN_S_MAX, max(STANDS_S, 2.0 * lasted_s))
        self._vain[capability] = Instant(now + pause_s), pause_s
        if len(self._vain) > VAIN_MAX:
            del self._vain[next(iter(self._vain))]

    def drop(self, capability: str) -> None:
        """Something went wrong: the next call gets a plan of its own."""
        self._standing.pop(capability, None)

    def give_back(self, capability: str, taken: Plan) -> None:
        """Nobody was sent there after all: the next call is.

        Were another one drawn for it, those who are given back would have too few.
        """
        standing = self._standing.get(capability)
        if standing is not None:
            standing.due = taken

    def plan(
        self, capability: str, view: ClusterView, settings: RoutingSettings, now: Instant
    ) -> Plan | None:
        """The plan that stands, led by whoever has room; None where there is none, or no more."""
        standing = self._standing.get(capability)
        if standing is None:
            return None
        room_left = standing.room
        total = sum(room_left)
        holds = view is self._view and standing.settings is settings and now < standing.until
        due, standing.due = standing.due, None
        if not holds or (due is None and (total < 1.0 or standing.left < 1.0)):
            del self._standing[capability]
            return None
        if due is not None and due.chosen is not None:
            return self._checked(capability, due)
        drawn, index = self._random.random() * total, 0
        while drawn >= room_left[index] and index < len(room_left) - 1:
            drawn -= room_left[index]
            index += 1
        return self._checked(capability, standing.take(index))

    def _checked(self, capability: str, plan: Plan) -> Plan | None:
        """The plan, unless whoever leads it has said since that it takes no work."""
        load: Load | None = self._outstanding.newest(plan.attempts[0].peer)[0]
        if load is None or (load.ready and not load.full and not load.draining):
            return plan
        del self._standing[capability]
        return None
