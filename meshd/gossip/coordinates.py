"""Network coordinates: where a node lies, so that distances are known without being measured.

Vivaldi (Dabek et al., SIGCOMM 2004): each node is a point in a space of eight dimensions, held to
the others by springs as long as the round trips between them; a height stands for its own link.
The distance of two points is the round trip to expect. Numbers are those of Serf's `coordinate`
package, which has run for years in large meshes; all lengths are seconds.
"""

import math
import random
import struct
from collections import deque
from functools import lru_cache

import msgspec

from meshd.clock import Seconds
from meshd.errors import DecodeError
from meshd.model import NodeId

DIMENSIONS = 8
"""Of the space. Source: Serf; the paper finds little gain above five, less than these cost."""
ERROR_MAX = 1.5
"""The relative error of a node that knows nothing, and the most that one may have. Source: Serf."""
ERROR_WEIGHT = 0.25
"""c_e: how much one sample moves the error (paper, figure 3; both papers take 0.25)."""
STEP_WEIGHT = 0.25
"""c_c: which share of a spring's tension one sample takes away, at least (paper, section 3)."""
STEP_BY_ERROR = 2.0
"""As shipped, c_c is this much of the own error, within 0.25 .. 1: who knows little takes larger
steps. docs/RESULTS.md has what that gains, and what it costs."""
HEIGHT_MIN_S: Seconds = 10e-6
"""A height never falls to 0, or it could not grow again. Source: Serf."""
ADJUSTMENT_SAMPLES = 20
"""Residues averaged into the adjustment, which no point in space accounts for (Lee, Zhang, Sahu
and Saha, "On suitability of Euclidean embedding of Internet hosts", SIGMETRICS 2006). Serf."""
FILTER_SAMPLES = 3
"""The median of so many round trips to a peer counts (Ledlie, Gardner, Seltzer, NSDI 2007)."""
FILTER_PEERS_MAX = 1_024
"""Peers whose round trips are kept; beyond it the one longest not measured is forgotten."""
GRAVITY_S: Seconds = 150.0
"""rho: the pull to the origin is (distance / rho)^2, against drift of the whole (Ledlie). Serf."""
RTT_MAX_S: Seconds = 10.0
"""A longer round trip is a fault, not a distance; no point lies further out. Serf."""
_TINY_S = 1e-6

_PACKED = struct.Struct(">8eeeB")
COORDINATE_BYTES = _PACKED.size
"""Ten half floats (rounded by at most one part in 2^11, below 61 us by 30 ns) and a byte of error:
a distance is off by at most 1/2000 of what lies between both points and the origin."""
ERROR_BYTE_MAX = 255
"""What an error of ERROR_MAX is packed as; its last byte."""

Point = tuple[float, ...]


class Coordinate(msgspec.Struct, frozen=True, gc=False):
    """A node's place. All in seconds but `error`: how far off its predictions are, 0 .. 1.5."""

    point: Point = (0.0,) * DIMENSIONS
    height_s: Seconds = HEIGHT_MIN_S
    adjustment_s: Seconds = 0.0
    error: float = ERROR_MAX

    def moved_s(self, since: "Coordinate") -> Seconds:
        """By how much distances from here may differ from those from `since`."""
        return (
            math.dist(self.point, since.point)
            + abs(self.height_s - since.height_s)
            + abs(self.adjustment_s - since.adjustment_s)
        )

    @property
    def is_valid(self) -> bool:
        """Whether each number is one, and within its bounds."""
        # No comparison with NaN holds, and no infinity is within a bound.
        return (
            len(self.point) == DIMENSIONS
            and math.hypot(*self.point) <= RTT_MAX_S
            and 0.0 <= self.height_s <= RTT_MAX_S
            and -RTT_MAX_S <= self.adjustment_s <= RTT_MAX_S
            and 0.0 <= self.error <= ERROR_MAX
        )

    def spring_s(self, other: "Coordinate") -> Seconds:
        """The distance by point and heights alone, before the adjustments."""
        return math.dist(self.point, other.point) + self.height_s + other.height_s

    def distance_s(self, other: "Coordinate") -> Seconds:
        """The round trip to expect between the two nodes."""
        spring_s = self.spring_s(other)
        adjusted_s = spring_s + self.adjustment_s + other.adjustment_s
        return adjusted_s if adjusted_s > 0.0 else spring_s


ORIGIN = Coordinate()
"""Where every node begins."""


def packed_error(packed: bytes) -> float:
    """The error in a packed coordinate, without unpacking the rest: 0 .. ERROR_MAX."""
    return packed[-1] * ERROR_MAX / ERROR_BYTE_MAX


def pack_coordinate(coordinate: Coordinate) -> bytes:
    """21 bytes. The coordinate must be valid."""
    error = min(ERROR_BYTE_MAX, math.ceil(coordinate.error / ERROR_MAX * ERROR_BYTE_MAX))
    return _PACKED.pack(*coordinate.point, coordinate.height_s, coordinate.adjustment_s, error)


def unpack_coordinate(packed: bytes) -> Coordinate:
    """Read what `pack_coordinate` wrote.

    Raises:
        DecodeError: it is no coordinate: of another size, not finite, or beyond all bounds.
    """
    if not is_coordinate(packed):
        raise DecodeError("bad_coordinate")
    return unpack_checked(packed)


def unpack_checked(packed: bytes) -> Coordinate:
    """Read what `is_coordinate` found to be one."""
    numbers = _PACKED.unpack(packed)
    return Coordinate(numbers[:DIMENSIONS], numbers[-3], numbers[-2], packed_error(packed))


@lru_cache(maxsize=4_096)
def is_coordinate(packed: bytes) -> bool:
    """Whether a packed coordinate is valid. Many tell of the same ones."""
    if len(packed) != COORDINATE_BYTES:
        return False
    *point, height_s, adjustment_s, _ = _PACKED.unpack(packed)
    # Each byte of error stands for one that may be; as to the rest see Coordinate.is_valid.
    return (
        math.hypot(*point) <= RTT_MAX_S
        and 0.0 <= height_s <= RTT_MAX_S
        and -RTT_MAX_S <= adjustment_s <= RTT_MAX_S
    )


class Springs(msgspec.Struct, frozen=True):
    """How the own place follows the round trips.

    Attributes:
        step_by_error: see STEP_BY_ERROR; 0 leaves c_c constant.
        adjusted: whether springs are let off what the adjustments account for. In meshes whose
            round trips fit no space the two then may push each other ever further.
    """

    step_by_error: float = STEP_BY_ERROR
    adjusted: bool = False


SHIPPED = Springs()
SERF = Springs(step_by_error=0.0, adjusted=True)
"""As Serf does it: exact after hundreds of round trips, slower at first."""


class Locator:
    """Finds the own place from round trips to peers and their places.

    Args:
        rng: which way to go from a peer at the very same point.
        springs: how to go.
    """

    def __init__(self, rng: random.Random, springs: Springs = SHIPPED) -> None:
        self.here = ORIGIN
        """The own coordinate."""
        self._rng = rng
        self._springs = springs
        self._samples: dict[NodeId, tuple[Seconds, ...]] = {}
        self._residues: deque[Seconds] = deque(maxlen=ADJUSTMENT_SAMPLES)

    def update(self, peer: NodeId, there: Coordinate, rtt_s: Seconds) -> bool:
        """Take in one measured round trip to a peer at `there`.

        Returns:
            Whether it counted: a round trip or a place that cannot be is ignored.
        """
        if not (0.0 < rtt_s <= RTT_MAX_S and there.is_valid):
            return False
        moved = self._step(there, max(self._median_s(peer, rtt_s), _TINY_S))
        if moved.is_valid:
            self.here = moved
        else:
            # Pulled out of all bounds: better lost than wrong.
            self.here = ORIGIN
            self._residues.clear()
        return True

    def _median_s(self, peer: NodeId, rtt_s: Seconds) -> Seconds:
        """The median of the peer's last samples, the higher one of two."""
        samples = (*self._samples.pop(peer, ()), rtt_s)[-FILTER_SAMPLES:]
        if len(self._samples) >= FILTER_PEERS_MAX:
            del self._samples[next(iter(self._samples))]
        self._samples[peer] = samples
        return sorted(samples)[len(samples) // 2]

    def _step(self, there: Coordinate, rtt_s: Seconds) -> Coordinate:
        """Vivaldi: tension in a spring moves the less certain of its two ends more.

        A sample's error is its share of the longer of prediction and truth, so 1 at most. (By the
        truth alone, as published, it may be 10, and the few neighbours in its own rack keep a node
        unsure for 100 s that has known its way to all other sites after 15.)
        What the adjustments account for pulls at nothing; without that a mesh of two sites never
        comes to rest (4 % off on average instead of 0.006 %).
        """
        here = self.here
        apart_s = math.dist(here.point, there.point)
        spring_s = apart_s + here.height_s + there.height_s
        told_s = spring_s + here.adjustment_s + there.adjustment_s
        if told_s <= 0.0:
            told_s = spring_s
        weight = here.error / max(here.error + there.error, _TINY_S)
        share = ERROR_WEIGHT * weight
        error = here.error * (1.0 - share) + abs(rtt_s - told_s) / max(rtt_s, told_s) * share
        step = min(1.0, max(STEP_WEIGHT, self._springs.step_by_error * here.error))
        length_s = told_s if self._springs.adjusted else spring_s
        point, height_s = self._pushed(there, apart_s, step * weight * (rtt_s - length_s))
        self._residues.append(rtt_s - math.dist(point, there.point) - height_s - there.height_s)
        # The peer holds the other half of what the springs leave over.
        adjustment_s = sum(self._residues) / (2 * ADJUSTMENT_SAMPLES)
        # Gravity, so that the whole mesh stays about the origin.
        radius_s = math.hypot(*point)
        if radius_s > _TINY_S:
            away_s = radius_s + height_s + HEIGHT_MIN_S + adjustment_s
            scale = -((away_s / GRAVITY_S) ** 2) / radius_s
            point = tuple([a + a * scale for a in point])
            height_s = max(HEIGHT_MIN_S, height_s + (height_s + HEIGHT_MIN_S) * scale)
        return Coordinate(point, height_s, adjustment_s, min(error, ERROR_MAX))

    def _pushed(self, there: Coordinate, apart_s: Seconds, by_s: Seconds) -> tuple[Point, Seconds]:
        """Pushed away from `there`, or towards it if negative: the new point and height."""
        here = self.here
        if apart_s > _TINY_S:
            scale = by_s / apart_s
            pairs = zip(here.point, there.point, strict=True)
            height_s = here.height_s + (here.height_s + there.height_s) * scale
            return tuple([a + (a - b) * scale for a, b in pairs]), max(HEIGHT_MIN_S, height_s)
        pairs = zip(here.point, self._any_direction(), strict=True)
        return tuple([a + b * by_s for a, b in pairs]), max(HEIGHT_MIN_S, here.height_s)

    def _any_direction(self) -> Point:
        parts = [self._rng.gauss(0.0, 1.0) for _ in range(DIMENSIONS)]
        length = math.hypot(*parts)
        return tuple([part / length for part in parts])
