"""Lets this package be called as the decorator `capability`, whose public name it shares."""

from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package that stands for `meshd.capability.definition.capability` when it is called.

    Importing any module of a package binds the package's name in its parent, over whatever
    `meshd.__getattr__` would give. Hence `from meshd import Mesh, capability` yields the package.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Decorate, as `capability` does."""
        from meshd.capability.definition import capability

        return capability(*arguments, **options)
