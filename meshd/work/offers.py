"""The capabilities that a node offers right now, its own and those of attached programs."""

import difflib
from collections.abc import Hashable, Iterable, Mapping

from meshd.capability.definition import CapabilityDefinition, RemoteHandler
from meshd.capability.manifest import Manifest
from meshd.errors import NoCandidateError, UsageError

CAPABILITIES_MAX = 512
NAMES_LISTED_MAX = 10


class Offers:
    """Definitions by name. Every change happens as a whole or not at all."""

    def __init__(self) -> None:
        self._by_name: dict[str, CapabilityDefinition] = {}

    def manifests(self) -> tuple[Manifest, ...]:
        """All manifests, by name."""
        return tuple(self._by_name[name].manifest for name in sorted(self._by_name))

    def get(self, name: str) -> CapabilityDefinition | None:
        """The definition of this name, if offered."""
        return self._by_name.get(name)

    def find(self, name: str) -> CapabilityDefinition:
        """The definition of this name.

        Raises:
            NoCandidateError: it is not offered; the hint says what is.
        """
        found = self._by_name.get(name)
        if found is not None:
            return found
        names = sorted(self._by_name)
        close = difflib.get_close_matches(name[:200], names, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif names:
            more = ", ..." if len(names) > NAMES_LISTED_MAX else ""
            hint = "it offers " + ", ".join(names[:NAMES_LISTED_MAX]) + more
        else:
            hint = "it offers none"
        raise NoCandidateError(f"this node has no capability {name[:200]!r}", hint=hint)

    def add(self, definitions: Iterable[CapabilityDefinition]) -> tuple[str, ...]:
        """Offer more; return their names.

        Raises:
            UsageError: a name is taken, or there are too many; nothing changed.
        """
        added = self._joined(self._by_name, definitions)
        names = tuple(name for name in added if name not in self._by_name)
        self._by_name = added
        return names

    def remove(self, names: Iterable[str]) -> tuple[str, ...]:
        """Offer these no more; return those that were."""
        gone = tuple(name for name in dict.fromkeys(names) if name in self._by_name)
        self._by_name = {name: d for name, d in self._by_name.items() if name not in gone}
        return gone

    def all(self) -> Mapping[str, CapabilityDefinition]:
        """All definitions as they are now, by name."""
        return self._by_name

    def restore(self, before: Mapping[str, CapabilityDefinition]) -> None:
        """Offer again what `all` gave."""
        self._by_name = dict(before)

    def replace(self, definitions: Iterable[CapabilityDefinition]) -> tuple[str, ...]:
        """Offer exactly these beside those of attached programs; return the names that changed.

        Raises:
            UsageError: a name is taken, or there are too many; nothing changed.
        """
        old = self._by_name
        attached = {name: d for name, d in old.items() if owner_of(d) is not None}
        new = self._joined(attached, definitions)
        self._by_name = new
        names = sorted(old.keys() | new.keys())
        return tuple(name for name in names if old.get(name) != new.get(name))

    def owned_by(self, owner: Hashable) -> tuple[str, ...]:
        """Names of what an attached program offers."""
        return tuple(name for name, d in self._by_name.items() if owner_of(d) == owner)

    def _joined(
        self,
        present: dict[str, CapabilityDefinition],
        definitions: Iterable[CapabilityDefinition],
    ) -> dict[str, CapabilityDefinition]:
        joined = dict(present)
        for definition in definitions:
            name = definition.manifest.name
            if name in joined:
                raise UsageError(
                    f"capability {name!r} is offered here already",
                    hint="give one of them another name",
                )
            joined[name] = definition
        if len(joined) > CAPABILITIES_MAX:
            raise UsageError(f"a node offers at most {CAPABILITIES_MAX} capabilities")
        return joined


def owner_of(definition: CapabilityDefinition) -> Hashable | None:
    """The attachment that a definition came by; None for the node's own."""
    handler = definition.handler
    return handler.owner if isinstance(handler, RemoteHandler) else None
