"""Invariants of dissemination: how fast news, and loads, reach how many."""

from collections.abc import Callable
from dataclasses import dataclass, field

from meshd.gossip.broadcast import CROWD
from meshd.gossip.codec import is_newer_load
from meshd.gossip.members import precedence
from meshd.model import Load, Member, MemberState, NodeId
from sim.invariants.bounds import everybody_bound_s, load_period_s, spread_bound_s
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.network import LOSS_CALM
from sim.world import Host, World

OPEN_NEWS_MAX = 64
"""News followed at a time; what comes meanwhile is not looked at."""
SETTLED_S = 5.0
"""Who started later than this before the news may itself not be known to all."""
EARLY_S = 1e-6
Rank = tuple[tuple[int, int, int], int]


def rank(member: Member) -> Rank:
    """What makes a record news: its precedence, then its state's version."""
    return precedence(member), member.state_version


@dataclass(slots=True)
class News:
    """A record that nobody held before, and when each node came to hold it."""

    member: Member
    rank: Rank
    at_s: float
    heard: dict[int, float] = field(default_factory=dict)
    in_crowd: bool = False


class NewsSpreads(Checker):
    """L5: 99 % hear news within 1.3 times Serf's formula, all by the next sync.

    The formula is of one rumour. Where more wait than a datagram holds, it waits its turn.
    """

    invariant = "L5"
    SAMPLES_MIN = 60
    LATE_SHARE_MAX = 0.05

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self.heard = 0
        self.late = 0
        self._top: dict[NodeId, Rank] = {}
        self._open: dict[NodeId, News] = {}
        self._news_at = 0.0

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """See whether it is news, or news that arrives."""
        node = after.node
        top = self._top.get(node)
        new = rank(after)
        if top is None or new > top:
            if host.id == node and before is None:
                # A process has started: it is news once somebody else has met it.
                self._top[node] = (new[0], new[1] - 1)
                return
            self._top[node] = new
            self._begin(host, News(after, new, self.world.now))
            return
        news = self._open.get(node)
        if news is not None and new >= news.rank and (before is None or rank(before) < news.rank):
            news.heard.setdefault(host.index, self.world.now - news.at_s)

    def _begin(self, host: Host, news: News) -> None:
        """Follow it, in place of older news of the same node."""
        world = self.world
        node = news.member.node
        self._news_at = world.now
        self._open.pop(node, None)
        if len(self._open) >= OPEN_NEWS_MAX or world.network.shape.loss > LOSS_CALM:
            return
        if node in world.unruly:
            return
        news.heard[host.index] = 0.0
        news.in_crowd = self._is_crowded()
        self._open[node] = news
        bound_s = spread_bound_s(world)
        world.call_at(world.now + bound_s, lambda: self._count(news, bound_s))
        world.call_at(world.now + everybody_bound_s(world), lambda: self._end(news))

    def _audience(self, news: News) -> list[Host]:
        """Who should hear it: nobody if it was disturbed, or if there is newer news."""
        world = self.world
        subject = world.host_of(news.member.node)
        if subject is None or world.calm_since > news.at_s - 1:
            return []
        if self._open.get(news.member.node) is not news:
            return []
        return [
            host
            for host in world.members()
            if host is not subject
            and host.mesh == subject.mesh
            and host.started_at < news.at_s - SETTLED_S
        ]

    def _count(self, news: News, bound_s: float) -> None:
        """See who has not heard in time."""
        audience = self._audience(news)
        if not audience or news.in_crowd or self._is_crowded():
            return
        self.heard += len(audience)
        self.late += sum(host.index not in news.heard for host in audience)
        if self.heard >= self.SAMPLES_MIN and self.late > self.LATE_SHARE_MAX * self.heard:
            text = f"{self.late} of {self.heard} heard news later than {bound_s:.2f} s"
            self.fail(NOBODY, NOBODY, text)

    def _is_crowded(self) -> bool:
        """Whether more rumours wait somewhere than leave at once, or a link is a round behind."""
        world = self.world
        if world.network.backlog_s(world.now) > world.config.gossip_interval_s:
            return True
        return any(host.swim.pending()["rumours"] > CROWD for host in world.up() if host.swim)

    def _end(self, news: News) -> None:
        """Everybody must have it by now, if it is something that views agree on."""
        audience = self._audience(news)
        if self._open.get(news.member.node) is news:
            del self._open[news.member.node]
        alone = self._news_at == news.at_s
        if not alone or news.member.state is MemberState.SUSPECT:
            return
        for host in audience:
            if host.index not in news.heard:
                text = f"has not heard {news.member.state.name} @{news.member.incarnation}"
                text += f" in {self.world.now - news.at_s:.1f} s"
                self.fail(host.index, self.index_of(news.member.node), text)
                return


class LoadsSpread(Checker):
    """L7, of loads: they are lossy on purpose, but most nodes hold what was told, in time.

    Not every sample is told: only one that could move work, and no more than the budget has room
    for. Whether it was told when it had to be, and not too often, is looked at as well.
    """

    invariant = "L7"
    SAMPLES_MIN = 200
    SHARE_MIN = 0.8
    PLAIN_STEP = 0.5
    """Of the slots: twice what the protocol takes for a change that matters."""

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self.asked = 0
        self.held = 0
        self._told: dict[tuple[int, int], tuple[Load, float]] = {}
        """For each host and run, what it told last, and when."""

    def on_load(self, host: Host) -> None:
        """See whether it had to be told; if it was, ask the others when it should have come."""
        world = self.world
        own = host.swim.load_of(host.id) if host.swim is not None else None
        told = host.swim.load_told if host.swim is not None else None
        if own is None or told is None:
            self.fail(host.index, host.index, "it took a sample of its load and never told one")
            return
        is_told = told[1] == own[1]
        self._judge(host, own[0], is_told=is_told)
        if not is_told or world.network.shape.loss > LOSS_CALM or not host.is_member:
            return
        run, since, sequence = host.runs, world.now, own[0].sequence
        after_s = spread_bound_s(world) + world.config.load_interval_s
        world.call_at(since + after_s, lambda: self._look(host, run, since, sequence))

    def _judge(self, host: Host, own: Load, *, is_told: bool) -> None:
        """Compare with what it told before, and with the budget."""
        now = self.world.now
        last = self._told.get((host.index, host.runs))
        if is_told:
            self._told[host.index, host.runs] = own, now
        if last is None or host.swim is None:
            return
        before, at = last
        period_s = load_period_s(self.world.config, host.swim.members.live)
        if _flags(before) != _flags(own):
            period_s = self.world.config.load_interval_s
        rest_s = at + period_s - now
        if is_told and rest_s > EARLY_S:
            self.fail(host.index, host.index, f"told its load {rest_s:.2f} s too early")
        elif not is_told and rest_s < -EARLY_S and self._matters(before, own):
            self.fail(host.index, host.index, f"its load changed; told {now - at:.1f} s ago")

    def _matters(self, before: Load, own: Load) -> bool:
        """Whether work would plainly go elsewhere."""
        if _flags(before) != _flags(own):
            return True
        more = (own.in_flight + own.queue) - (before.in_flight + before.queue)
        return abs(more) >= self.PLAIN_STEP * max(1, own.slots)

    def _look(self, host: Host, run: int, since: float, sequence: int) -> None:
        world = self.world
        if host.runs != run or not host.is_member or world.calm_since > since - 1:
            return
        for other in world.members():
            if other.swim is None or other is host or other.started_at > since - SETTLED_S:
                continue
            held = other.swim.load_of(host.id)
            self.asked += 1
            if held is not None and not is_newer_load(sequence, held[0].sequence):
                self.held += 1
        if self.asked >= self.SAMPLES_MIN and self.held < self.SHARE_MIN * self.asked:
            self.fail(
                NOBODY, host.index, f"{self.held} of {self.asked} held the load that it told of"
            )


def _flags(load: Load) -> tuple[bool, bool, bool]:
    """Whether it takes work at all: that is told within any budget."""
    return load.ready, load.full, load.draining


def spreading(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants of dissemination."""
    return [NewsSpreads(world, found), LoadsSpread(world, found)]
