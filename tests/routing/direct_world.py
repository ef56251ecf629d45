"""A dispatcher whose short way leads over wires under the test's control."""

import asyncio
import random

from msgspec.structs import astuple
from routing_world import NOW, FakeClock, done, peer, view

from meshd.clock import Instant
from meshd.model import Load
from meshd.routing.direct import Direct
from meshd.routing.dispatcher import Dispatcher
from meshd.routing.request import DelegateRequest
from meshd.routing.spend import spend_shape

CALLER = "somebody"
QUICK = Load(slots=8, service_s=0.0005)


def quick(n, **more):
    """A peer that does much in little time, by a report that leaves room for many."""
    return peer(n, **{"load": QUICK, "load_at": Instant(NOW - 0.1), **more})


class Steady(random.Random):
    """Chance that is the same however often it is asked: two ways may ask it differently often."""

    def random(self):
        return 0.4


class Sent:
    """One `work` on its way to a peer: by a wire, or by an invoker (then `future` waits for it)."""

    def __init__(self, n, params, on_answer=None, timeout_s=None):
        self.n, self.params, self.timeout_s = n, params, timeout_s
        self.value, self.on_answer = params["input"], on_answer
        self.future = None if on_answer else asyncio.get_running_loop().create_future()
        self.is_off = False

    @property
    def is_open(self):
        return not self.is_off and (self.future is None or not self.future.done())

    def answer(self, reply=None, error=None):
        """It is answered, unless it is over."""
        if not self.is_open:
            return
        if self.future is None:
            self.is_off = True
            self.on_answer(reply, error)
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(reply)


class FakeWire:
    """To one peer. What `refusal` says is raised; without `has_room` nothing is sent."""

    def __init__(self, world, n):
        self.world, self.n = world, n

    def begin(self, method, params, on_answer):
        assert method == "work"
        if self.world.refusal is not None:
            raise self.world.refusal
        if not self.world.has_room:
            return None
        self.world.sent.append(Sent(self.n, params, on_answer))
        return len(self.world.sent) - 1

    def call_off(self, request_id):
        sent = self.world.sent[request_id]
        assert sent.is_open, "only what is under way is called off"
        sent.is_off = True
        self.world.called_off.append(request_id)


class DirectWorld:
    """A dispatcher on node 1, and all that it sends, by either way, in `sent`."""

    def __init__(self, *peers, settings=None, policies=None, seed=None):
        self.clock = FakeClock()
        self.view = view(*(peers or (peer(1, capabilities=()), quick(2))))
        self.sent, self.called_off, self.linked = [], [], True
        self.refusal, self.has_room = None, True
        self.here = 0
        self.dispatcher = Dispatcher(
            clock=self.clock, view=lambda: self.view, invoker=self, local=self.local,
            local_offer=self.local_offer, wires=self.wire, policies=policies, settings=settings,
            random=Steady() if seed is None else random.Random(seed),
            sleep=self.sleep,
        )  # fmt: skip
        self.answers, self.sleepers = [], []

    async def sleep(self, seconds):
        """Until `settle` lets it go on."""
        woken = asyncio.get_running_loop().create_future()
        self.sleepers.append((seconds, woken))
        await woken

    async def settle(self):
        """Until nothing moves: who pauses is woken, the first first, and the clock goes on."""
        for _ in range(100):
            for _ in range(8):
                await asyncio.sleep(0)
            waking = [(s, woken) for s, woken in self.sleepers if not woken.done()]
            if not waking:
                return
            seconds, woken = waking[0]
            self.sleepers = waking[1:]
            self.clock.pass_s(seconds)
            woken.set_result(None)
        raise AssertionError("it never comes to rest")

    @property
    def open(self):
        """What is under way, in the order in which it was sent."""
        return [sent for sent in self.sent if sent.is_open]

    def time_out(self, sent):
        """The time of this try is over."""
        tries = self.dispatcher._tries.running.values()
        (running,) = [r for at in tries for r in at if r.call.request.input is sent.value]
        (running if isinstance(running, Direct) else running.scope)._end()

    def wire(self, target):
        return FakeWire(self, target.port - 1000) if self.linked else None

    async def invoke(self, target, method, params, *, timeout_s, sink=None):
        if self.refusal is not None:
            raise self.refusal
        sent = Sent(target.port - 1000, params, timeout_s=timeout_s)
        self.sent.append(sent)
        return await sent.future

    async def local(self, params, *, timeout_s, sink=None):
        self.here += 1
        return done(1)

    async def local_offer(self, params):
        raise AssertionError("nobody asks for offers")

    def begin(self, *, deadline_s=10.0, capability="echo", value=None, caller=CALLER, **more):
        """The short way; its end is added to `answers`."""
        return self.dispatcher.begin(
            capability, value, self.answers.append, deadline_s=deadline_s, caller=caller, **more
        )

    async def delegate(self, *, deadline_s=10.0, capability="echo", value=None, **more):
        request = DelegateRequest(
            capability=capability, input=value, deadline_s=deadline_s, caller=CALLER, **more
        )
        return await self.dispatcher.delegate(request)

    def change(self, *peers):
        self.view = view(*peers)
        self.dispatcher.on_view_change(self.view)

    def books(self):
        """All that calls leave behind, with nothing of how they were made.

        What ends in one turn of the loop, as all that is lost with a peer, ends in any order.
        """
        dispatcher = self.dispatcher
        tries, signals = dispatcher._tries, dispatcher.outstanding
        return {
            "counters": dict(dispatcher.counters),
            "running": {node.hex(): len(kept) for node, kept in tries.running.items()},
            "turns": dict(tries.turns),
            "rate": dispatcher.dispatch_per_s,
            "reports": dict(signals.reports),
            "records": {
                node: (
                    record.mine, record.samples, record.service_s, record.failure_s,
                    record.failure_at, sorted(map(astuple, record.events)),
                )
                for node, record in signals._records.items()
            },
            "history": {
                node: (kept.good, kept.seen, kept.at)
                for node, kept in signals.history._results.items()
            },
            "breakers": breakers_of(dispatcher.breakers),
            "spent": spend_shape(dispatcher.ledger, self.clock.time),
            "decisions": sorted(map(told, dispatcher.decisions.last(64))),
            "hedges": dispatcher.resilience.hedge_after_s("echo"),
            "tokens": vars_of(dispatcher.resilience),
        }  # fmt: skip


def told(decision):
    row = decision.told()
    return repr({key: row[key] for key in row if key not in {"explain", "number"}})


def vars_of(thing):
    """The plain figures that it keeps."""
    return {
        name: value
        for name, value in attributes_of(thing).items()
        if isinstance(value, int | float | str | tuple)
    }


def slots_of(thing):
    found = attributes_of(thing).items()
    return {name: repr(value) for name, value in found if not callable(value)}


def attributes_of(thing):
    """All that it keeps, be it in a dictionary, in slots, or compiled."""
    kinds = type(thing).__mro__
    slots = [name for kind in kinds for name in getattr(kind, "__slots__", ())]
    names = slots or getattr(type(thing), "__mypyc_attrs__", ())
    return {name: getattr(thing, name) for name in names} or vars(thing)


def breakers_of(breakers):
    return {
        "opened": (breakers.opened_at_nodes, breakers.opened_whole),
        "own": {key: slots_of(kept.breaker) for key, kept in breakers._own.rows.items()},
        "whole": {
            key: (slots_of(kept.breaker), sorted(kept.failed_at), dict(kept.under_way))
            for key, kept in breakers._whole.rows.items()
        },
        "tripped": {node: sorted(kept) for node, kept in breakers._tripped.items()},
    }
