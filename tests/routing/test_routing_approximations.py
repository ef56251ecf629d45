"""What is not exact for speed is off by no more than it says."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW, begin, end, node_id, peer

from meshd.clock import Instant
from meshd.model import Epoch, Load
from meshd.routing import resilience, tries
from meshd.routing.breakers import Breakers
from meshd.routing.history import GRAIN_S, HALF_LIFE_S, RESULTS_WEIGHT, History
from meshd.routing.resilience import (
    HEDGE_AFTER_MIN_S,
    HEDGE_QUANTILE,
    HEDGE_SAMPLES_MIN,
    SAMPLES_KEPT,
    SAMPLES_UNREAD_MAX,
    Resilience,
)
from meshd.routing.signals import RATE_GRAIN_S, RATE_HALF_LIFE_S, Outcome, Outstanding, Rate
from meshd.routing.spend import Ledger
from meshd.routing.tries import Tries

USES = st.lists(st.integers(0, 11), max_size=60)
MOST = 6


def spared(uses, most):
    """Of the keys used, those that surely are kept: the newest half of so many."""
    newest = dict.fromkeys(reversed(uses))
    return set(list(newest)[: most // 2 + 1])


class Signals:
    """A call to each node that is used, answered at once with a report."""

    def __init__(self, monkeypatch):
        self.signals = Outstanding(peers_max=MOST)

    def use(self, key):
        to = peer(key)
        self.signals.begin(to, NOW)
        self.signals.on_reply(to.node, Load(), NOW)
        self.signals.end(to.node, Outcome.OK, NOW, took_s=0.1)

    def kept(self):
        signals = self.signals
        return [signals._records, signals.reports, signals.history._results]

    def key(self, key):
        return node_id(key)


class Circuits:
    """A call of a capability of one node, and one of the same capability at another."""

    def __init__(self, monkeypatch):
        self.breakers = Breakers(circuits_max=MOST, capabilities_max=MOST)

    def use(self, key):
        end(self.breakers, begin(self.breakers, peer(2), capability=f"c{key}"), Outcome.OK)

    def kept(self):
        own = {capability: 1 for _, capability in self.breakers._own.rows}
        return [own, self.breakers._whole.rows]

    def key(self, key):
        return f"c{key}"


class Times:
    """An answer to a capability."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(resilience, "CAPABILITIES_MAX", MOST)
        self.resilience = Resilience(None)

    def use(self, key):
        self.resilience.answered(f"c{key}", 0.1)

    def kept(self):
        return [self.resilience._latencies]

    def key(self, key):
        return f"c{key}"


class Turns:
    """A capability whose turn it was."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(tries, "TURNS_MAX", MOST)
        self.tries = Tries(
            clock=None, view=None, invoker=None, local=None, outstanding=Outstanding(),
            breakers=Breakers(), ledger=Ledger(),
        )  # fmt: skip

    def use(self, key):
        self.tries._take_turn(f"c{key}", node_id(key))

    def kept(self):
        return [self.tries.turns]

    def key(self, key):
        return f"c{key}"


@pytest.mark.parametrize("kind", [Signals, Circuits, Times, Turns])
@given(uses=USES)
def test_a_full_table_forgets_none_of_those_that_were_used_last(kind, uses):
    with pytest.MonkeyPatch.context() as monkeypatch:
        table = kind(monkeypatch)
        for count, key in enumerate(uses, 1):
            table.use(key)
            lasting = {table.key(each) for each in spared(uses[:count], MOST)}
            for kept in table.kept():
                assert lasting <= set(kept)
                assert len(kept) == min(MOST, len(set(uses[:count])))


@pytest.mark.parametrize("kind", [Signals, Circuits, Times, Turns])
@given(uses=USES)
def test_once_a_table_was_full_it_forgets_the_longest_unused(kind, uses):
    """All of them have been used since it was half full, so their order is exact."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        table = kind(monkeypatch)
        filled = [*range(MOST), *range(MOST)]
        for key in filled:
            table.use(key)
        model = dict.fromkeys(range(MOST))
        for key in uses:
            table.use(key)
            model.pop(key, None)
            model[key] = None
            if len(model) > MOST:
                del model[next(iter(model))]
            for kept in table.kept():
                assert list(kept) == [table.key(each) for each in model]


GAPS = st.lists(st.sampled_from([0.0, 1e-5, 9e-4, 0.001, 0.02, 0.3, 5.0]), max_size=300)


@given(GAPS)
def test_a_rate_is_off_by_less_than_what_fades_in_its_grain(gaps):
    rate, now, times = Rate(), NOW, []
    for gap in gaps:
        now = Instant(now + gap)
        rate.count(now)
        times.append(now)
        exact = sum(0.5 ** ((now - t) / RATE_HALF_LIFE_S) for t in times)
        exact *= math.log(2) / RATE_HALF_LIFE_S
        slack = 0.5 ** (RATE_GRAIN_S / RATE_HALF_LIFE_S)
        assert slack * exact * (1 - 1e-9) <= rate.per_s(now) <= exact / slack * (1 + 1e-9)


def test_a_steady_rate_is_told_however_fast():
    for each_s in (0.5, 0.01, 0.0001):
        rate, now = Rate(), NOW
        for _ in range(int(60 / each_s) if each_s > 0.001 else 300_000):
            now = Instant(now + each_s)
            rate.count(now)
        long_s = now - NOW
        reached = 1 - 0.5 ** (long_s / RATE_HALF_LIFE_S)
        assert rate.per_s(now) == pytest.approx(reached / each_s, rel=0.08)


def test_a_rate_begins_at_any_time():
    for at in (0.0, 0.0005, 1e9):
        rate = Rate()
        rate.count(Instant(at))
        assert rate.per_s(Instant(at)) == pytest.approx(math.log(2) / RATE_HALF_LIFE_S, rel=2e-4)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.09, 0.1, 1.0, 90.0]), st.booleans())))
def test_a_history_is_off_by_less_than_what_fades_in_its_grain(results):
    history, now = History(nodes_max=4), NOW
    good = seen = 0.0
    before = NOW
    for gap, is_good in results:
        now = Instant(now + gap)
        history.note(node_id(2), Epoch(1), now, is_good=is_good)
        share = 0.5 ** ((now - before) / HALF_LIFE_S)
        share *= min(1.0, (RESULTS_WEIGHT - 1.0) / max(1.0, seen))
        good, seen, before = good * share + is_good, seen * share + 1.0, now
        kept = history._results[node_id(2)]
        # What came within a grain fades from its beginning on, or not yet: each but a little.
        slack = 2 * (1 - 0.5 ** (GRAIN_S / HALF_LIFE_S))
        assert kept.seen == pytest.approx(seen, rel=slack, abs=1e-9)
        assert kept.good == pytest.approx(good, rel=slack, abs=1e-9)


def test_a_new_run_of_a_node_begins_its_history_anew():
    history = History(nodes_max=4)
    for epoch in (1, 1, 2):
        history.note(node_id(2), Epoch(epoch), NOW, is_good=False)
    assert history._results[node_id(2)].seen == 1.0


@given(st.lists(st.floats(0.0, 10.0), min_size=HEDGE_SAMPLES_MIN, max_size=3 * SAMPLES_KEPT))
def test_the_percentile_is_that_of_a_few_answers_ago_at_most(times):
    kept = Resilience(None)
    exact = []
    for count, took_s in enumerate(times, 1):
        kept.answered("echo", took_s)
        newest = sorted(times[max(0, count - SAMPLES_KEPT) : count])
        exact.append(newest[min(len(newest) - 1, int(HEDGE_QUANTILE * len(newest)))])
        told = kept.hedge_after_s("echo")
        assert (told is None) == (count < HEDGE_SAMPLES_MIN)
        if told is not None:
            recent = exact[HEDGE_SAMPLES_MIN - 1 :][-SAMPLES_UNREAD_MAX:]
            assert told in {max(HEDGE_AFTER_MIN_S, each) for each in recent}


def test_the_first_percentile_asked_for_is_exact_and_none_is_older_than_it_may_be():
    kept = Resilience(None)
    for count in range(1, 500):
        kept.answered("echo", float(count))
    last = [kept.hedge_after_s("echo")]
    for count in range(500, 600):
        kept.answered("echo", float(count))
        last.append(kept.hedge_after_s("echo"))
    assert last[0] == 495.0
    changes = [at for at, (a, b) in enumerate(pairwise(last)) if a != b]
    assert {b - a for a, b in pairwise(changes)} == {SAMPLES_UNREAD_MAX}
