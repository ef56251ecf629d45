"""Bases of the structs in modules that may be compiled.

mypyc makes a class without the keywords that its source gives, and keeps of each annotation the
outermost type alone (of a union, nothing). What a base says is inherited; the keywords are there
all the same, for who reads and for the type checker. What msgspec reads messages into needs its
annotations: that is in modules which are not compiled.
"""

import msgspec


class Frozen(msgspec.Struct, frozen=True):
    """Never changes; equal to what has the same type and values."""


class Flat(msgspec.Struct, frozen=True, gc=False):
    """The same, of values that can be part of no circle: the garbage collector need not look."""


class Token(msgspec.Struct, frozen=True, eq=False):
    """Never changes; equal to itself alone."""
