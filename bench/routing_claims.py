"""Three claims of the field about routing, each as a scenario in simulated time.

- Preferring fast workers cuts the mean time at least 3-fold where half are ten times slower:
  `fastest` against `random`.
- Preferring cheap ones cuts the spend by at least 40 % at equal success: `cheapest` against
  `adaptive`, which looks at no price.
- One failing worker of ten is isolated after as many failures as the breaker's threshold at most,
  and comes back by itself: by the production dispatcher, with `random`, which asks it whatever it
  did before, and with `adaptive`, which does not.

The first two are those of `sim.claims`. None needs a network; times are those of the simulation.
"""

import argparse
import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from statistics import median
from typing import Any

from mesh_processes import arguments, progress, report
from rivals.goals import Goal, at_most, outcome

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant
from meshd.errors import MeshError, PeerError
from meshd.model import Address, Epoch, Incarnation, Load, MemberState, NodeId
from meshd.routing.dispatcher import Dispatcher
from meshd.routing.request import DelegateRequest
from meshd.view import ClusterView, Peer
from sim.claims import claims

MEAN_RATIO_MIN = 3.0
SPEND_SAVED_MIN = 0.4
SUCCESS_DIFFERENCE_MAX = 0.02

WORKERS = 10
SLOTS, SERVICE_S, FAILS_IN_S = 4, 0.1, 0.005
CALLS_PER_S = 20.0
THRESHOLD = 3
"""Failures in a row by which a worker is isolated."""

HEALS_AT_S = 15.0
BACK_WITHIN_S = 120.0
"""How long it may take from healing on: the breaker's time twice, as one trial may have failed."""

SHARE_MISSING_MAX = 0.05
"""Of the calls at the end: it must have half of an equal share again."""

ISOLATING = ("adaptive", "random")


@dataclass
class Workers:
    """Ten workers on a clock of their own; the first fails each call until it heals.

    It is the clock, the view and the invoker of a dispatcher that is none of them. Others give them
    work, too: how busy each is changes all the time.
    """

    chance: Random
    heals_at_s: float
    time_s: float = 0.0
    tried_at_s: list[float] = field(default_factory=list)
    good_at_s: list[float] = field(default_factory=list)

    def now(self) -> Instant:
        """Its time."""
        return Instant(self.time_s)

    def wall_ms(self) -> int:
        """The same, as a date would be told."""
        return int(self.time_s * 1_000)

    async def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.time_s += seconds

    def view(self) -> ClusterView:
        """All are alive, and said just now how busy they are."""
        peers = {NodeId(n.to_bytes(8)): self._peer(n) for n in range(1, WORKERS + 1)}
        me = NodeId(bytes(8))
        return ClusterView(version=1, me=me, by_node=peers, stale_after_s=float("inf"))

    def _peer(self, n: int) -> Peer:
        now = self.now()
        load = Load(in_flight=self.chance.randrange(SLOTS), slots=SLOTS, service_s=SERVICE_S)
        offered = CapabilitySummary("work", "1.0.0", True, "agent", "", (), b"")
        return Peer(
            node=NodeId(n.to_bytes(8)), name=f"n{n}", address=Address("127.0.0.1", n),
            state=MemberState.ALIVE, epoch=Epoch(1), incarnation=Incarnation(0),
            capabilities=(offered,), load=load, load_at=now, heard_at=now, rtt_s=0.001,
        )  # fmt: skip

    async def invoke(
        self, target: Address, method: str, params: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """The work of one of them. Who fails does so at once."""
        del method, params
        is_first = target.port == 1
        if is_first and self.time_s < self.heals_at_s:
            self.tried_at_s.append(self.time_s)
            self.time_s += FAILS_IN_S
            raise PeerError("it fails", definite=False)
        self.time_s += SERVICE_S
        if is_first:
            self.good_at_s.append(self.time_s)
        return {"agent": "a", "node": f"n{target.port}", "result": "ok", "rpc_latency_ms": 1.0}


async def _here(*_: Any, **__: Any) -> Any:
    raise PeerError("the dispatcher offers nothing itself")


async def isolation(policy: str, seed: int, seconds: float) -> dict[str, float]:
    """One caller's calls, one after the other; none of them may fail: they go on elsewhere."""
    chance = Random(seed)
    workers = Workers(chance, HEALS_AT_S)
    dispatcher = Dispatcher(
        clock=workers, view=workers.view, invoker=workers, local=_here, local_offer=_here,
        random=Random(seed), sleep=workers.sleep,
    )  # fmt: skip
    began_at_s: list[float] = []
    failed = 0
    while workers.time_s < seconds:
        workers.time_s += chance.expovariate(CALLS_PER_S)
        began_at_s.append(workers.time_s)
        try:
            await dispatcher.delegate(DelegateRequest(capability="work", policy=policy))
        except MeshError:
            failed += 1
    good, half = workers.good_at_s, seconds - (seconds - HEALS_AT_S - BACK_WITHIN_S) / 2
    calls = sum(at >= half for at in began_at_s)
    return {
        "isolated_after": _run_of(workers.tried_at_s),
        "tried_while_failing": len(workers.tried_at_s),
        "calls_failed": failed,
        "back_after_s": (good[0] if good else seconds) - HEALS_AT_S,
        "share_at_end": round(sum(at >= half for at in good) / calls, 3),
    }


def _run_of(tried_at_s: list[float]) -> int:
    """How many calls it got before the first long pause."""
    pauses = (later - earlier > HEALS_AT_S / 2 for earlier, later in pairwise(tried_at_s))
    return 1 + next((k for k, is_long in enumerate(pauses) if is_long), len(tried_at_s) - 1)


def figures_of(seeds: int, calls: int, seconds: float) -> dict[str, dict[str, float]]:
    """Each scenario's figures with every seed; the median and the worst of them."""
    found: list[dict[str, float]] = []
    for seed in range(1, seeds + 1):
        found.append(claims(seed, calls))
        for policy in ISOLATING:
            isolated = asyncio.run(isolation(policy, seed, seconds))
            found[-1] |= {f"{policy}_{name}": value for name, value in isolated.items()}
        progress(f"seed {seed} of {seeds}")
    return {name: _spread([each[name] for each in found]) for name in found[0]}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 4), "min": round(min(values), 4),
        "max": round(max(values), 4),
    }  # fmt: skip


def judged(figures: dict[str, dict[str, float]]) -> list[Goal]:
    """What must hold with every seed. Of what must be large, the inverse or the rest is bounded."""

    def worst(name: str, which: str = "max") -> float:
        return figures[name][which]

    mean = round(1.0 / worst("mean_ratio", "min"), 4)
    spend = round(1.0 - worst("spend_saved", "min"), 4)
    goals = [
        at_most("mean time with fastest, of random's", mean, 1.0 / MEAN_RATIO_MIN),
        at_most("spend with cheapest, of adaptive's", spend, 1.0 - SPEND_SAVED_MIN),
        at_most("difference in success", worst("success_difference"), SUCCESS_DIFFERENCE_MAX),
    ]
    for policy in ISOLATING:
        lacks = round(1.0 / WORKERS - worst(f"{policy}_share_at_end", "min"), 4)
        goals += [
            at_most(f"{policy}: calls to a failing worker before it is isolated",
                    worst(f"{policy}_isolated_after"), THRESHOLD),
            at_most(f"{policy}: calls that failed", worst(f"{policy}_calls_failed"), 0),
            at_most(f"{policy}: s from healing to its first success",
                    worst(f"{policy}_back_after_s"), BACK_WITHIN_S),
            at_most(f"{policy}: what it lacks of a tenth of all calls, at the end", lacks,
                    SHARE_MISSING_MAX),
        ]  # fmt: skip
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=2_000, help="Of each policy and seed.")
    parser.add_argument("--seconds", type=float, default=300.0, help="Simulated, with a failure.")
    options = arguments(parser)
    if options.quick:
        options.seeds, options.calls = 1, 1_000
    figures = figures_of(options.seeds, options.calls, options.seconds)
    goals = judged(figures)
    parameters = {k: v for k, v in vars(options).items() if k != "quick"}
    rows = [goal.row() for goal in goals]
    report("routing_claims", rows, parameters=parameters, figures=figures, **outcome(goals))


if __name__ == "__main__":
    main()
