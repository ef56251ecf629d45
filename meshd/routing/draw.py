"""Whom a sampling policy looks at: a few, drawn by how fast they are or by how much room they have.

Sources: the routing simulation in the design notes; for room, "Interpreting stale load information"
(Dahlin 1999): what came since the reports were made went where there was room, as water fills the
lowest parts first. So fresh reports send work to those that are free, and old ones to all.
"""

from collections.abc import Callable, Sequence
from math import log
from random import Random

from meshd.clock import Seconds
from meshd.routing.signals import Estimate
from meshd.view import Peer

WIDE = 12
"""So many of the eligible are looked at for speed and room. More find hardly better ones."""

SPEED_POWER = 2.0
"""How much likelier who does twice as much in the same time is to be drawn, as a power of two."""

OCCUPIED_MAX = 1.5
"""Requests for each slot from which on a peer is hardly drawn: half as many wait as run."""
UNLIKELY = 0.05
"""What remains of its chance then: the report may be old."""

UNWEIGHED = -1e300
"""Below all that has a weight."""

AGE_S_MAX: Seconds = 60.0
"""An older report, or none, says as little as one of this age."""


def some(
    peers: Sequence[Peer], size: int, is_wanted: Callable[[Peer], bool], random: Random
) -> list[Peer]:
    """Up to `size` wanted ones of them, at random; all, in their order, where they are no more."""
    count = len(peers)
    if count > 2 * size:
        # Mostly most are wanted: then few need a look.
        seen: dict[int, None] = {}
        found = []
        for _ in range(3 * size):
            index = int(random.random() * count)
            if index not in seen:
                seen[index] = None
                if is_wanted(peers[index]):
                    found.append(peers[index])
                    if len(found) == size:
                        return found
    found = [peer for peer in peers if is_wanted(peer)]
    return found if len(found) <= size else random.sample(found, size)


def by_speed(estimates: Sequence[Estimate], size: int, random: Random) -> list[int]:
    """Indices of `size` of them (or of all), in the order of a draw by speed and occupation.

    Occupation weighs little, for by now it is another; yet who is free for long, as after a time of
    being slow that its average still shows, is found by it.
    """
    weights = []
    for each in estimates:
        spare = OCCUPIED_MAX - each.rif / each.slots
        speed = (each.slots / each.service_s) ** SPEED_POWER
        weights.append(speed * (max(UNLIKELY, spare)))
    return _drawn(weights, size, random)


def by_room(estimates: Sequence[Estimate], size: int, random: Random) -> list[int]:
    """The same by `room`: nothing else need be asked, whoever asks at the same time."""
    return _drawn(room(estimates), size, random)


def room(estimates: Sequence[Estimate]) -> list[float]:
    """How many of the requests that came since the reports fit in at each, below a common level.

    The level is that at which all of them, and one more, have found a place. It is as if they were
    as many as could be done in that time: in a mesh that is less busy, work is spread somewhat more
    evenly than it need be.
    """
    rates, levels, came = [], [], 1.0
    for each in estimates:
        rate = each.slots / each.service_s  # tasks a second when all its slots are busy
        rates.append(rate)
        levels.append((each.rif + 1.0) / rate + each.penalty_s)
        came += rate * min(AGE_S_MAX, each.age_s)
    level = _level(levels, rates, came)
    return [max(0.0, level - low) * rate for low, rate in zip(levels, rates, strict=True)]


def _level(levels: Sequence[float], rates: Sequence[float], came: float) -> float:
    """How high `came` requests fill vessels that are `levels` high already, `rates` wide each."""
    width = held = level = 0.0
    for index in sorted(range(len(levels)), key=levels.__getitem__):
        if width and levels[index] >= level:
            break
        width += rates[index]
        held += rates[index] * levels[index]
        level = (came + held) / width
    return level


def _drawn(weights: Sequence[float], size: int, random: Random) -> list[int]:
    """Without putting back; those that weigh nothing come last, in any order.

    Source: "Weighted random sampling with a reservoir" (Efraimidis and Spirakis 2006).
    """
    draw = random.random
    keys = [
        log(1.0 - draw()) / weight if weight > 0.0 else UNWEIGHED * (1.0 + draw())
        for weight in weights
    ]
    return sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[:size]
