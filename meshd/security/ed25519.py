"""The public key of an Ed25519 seed: all of that scheme that a node of an open mesh needs.

Signing and checking are the business of `cryptography`. Importing that costs 9 MB of resident
memory and 25 ms, which no node pays that signs nothing. What stands here takes about 2 ms, once a
start, and does not hide by its timing how many bits of the scalar are set: it is for a node's own
key on its own machine, never for an answer to somebody else.

Source: RFC 8032, sections 5.1 and 5.1.5.
"""

import hashlib

SEED_BYTES = 32
"""The private key: random bytes, all values allowed."""

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y = 4 * pow(5, -1, _P) % _P

_Point = tuple[int, int, int, int]
"""Extended homogeneous coordinates X, Y, Z, T: x = X / Z, y = Y / Z, x * y = T / Z."""

_ZERO: _Point = (0, 1, 1, 0)
_BASE: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)


def public_key_of(seed: bytes) -> bytes:
    """The raw public key, 32 bytes, of a private key of 32 bytes."""
    assert len(seed) == SEED_BYTES, "an Ed25519 seed has 32 bytes"
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    scalar &= (1 << 254) - 8
    scalar |= 1 << 254
    x, y, z, _ = _multiplied(_BASE, scalar)
    inverse = pow(z, -1, _P)
    return (y * inverse % _P | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def _multiplied(point: _Point, scalar: int) -> _Point:
    total = _ZERO
    while scalar:
        if scalar & 1:
            total = _sum(total, point)
        point = _sum(point, point)
        scalar >>= 1
    return total


def _sum(one: _Point, other: _Point) -> _Point:
    """One formula for all pairs, equal ones too. Source: RFC 8032, section 5.1.4."""
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a = (y1 - x1) * (y2 - x2) % _P
    b = (y1 + x1) * (y2 + x2) % _P
    c = 2 * _D * t1 * t2 % _P
    d = 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P
