"""Bases of structs in modules that can be compiled.

mypyc passes no keywords of a class on to its metaclass, so that what `msgspec.Struct` is told there
would hold in the pure build alone. Their bases carry it: options are inherited. The keywords stand
at the classes all the same, for the type checker.
"""

import msgspec


class Frozen(msgspec.Struct, frozen=True):
    """A value that never changes, compared by what it holds."""


class FrozenOne(msgspec.Struct, frozen=True, eq=False):
    """Something that never changes, and is equal to nothing but itself."""


class One(msgspec.Struct, eq=False):
    """Something that changes, and is equal to nothing but itself."""


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What comes from outside, and may have no members but its own."""
