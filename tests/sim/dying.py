"""Faults that end the process which simulates them, or that are wrong themselves."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndsTheProcess:
    node: int

    def apply(self, world):
        os._exit(9)


@dataclass(frozen=True, slots=True)
class CannotBeSent:
    node: int

    def __reduce__(self):
        raise TypeError("this value stays here")

    def apply(self, world):
        pass
