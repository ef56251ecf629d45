"""What holds for the calls of each capability: the default, with the capability's own laid over it.

The key of a capability's table is its name, or the beginning of several and `*`. An exact name goes
before all that end in `*`, of these the longest holds, alone: tables are not laid over one another.
Weights, shares and fallbacks are taken as a whole; tiers and numbers of circuits that a table
leaves out are as by default.
"""

from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args, get_type_hints

import msgspec

from meshd.errors import UsageError
from meshd.faults import converted, meant
from meshd.model import NAME_CHARS_MAX, is_name
from meshd.routing.installed import policy_faults
from meshd.routing.request import DelegateRequest
from meshd.routing.settings import (
    SHARES,
    BreakerSettings,
    Overrides,
    RoutingSettings,
    breaker_faults,
    fallback_faults,
    tier_faults,
    weight_faults,
)

TABLES_MAX = 1_024
"""Capabilities and beginnings of names that may have settings of their own."""
NAMES_KEPT = 1_024
"""Capabilities whose table is remembered; beyond that all are looked up anew."""

KINDS: Mapping[str, Any] = {
    name: get_args(hint)[0] for name, hint in get_type_hints(Overrides, include_extras=True).items()
}
"""What may stand in the table of a capability, by its key, and its annotated type."""

_BREAKER_KINDS = get_type_hints(BreakerSettings, include_extras=True)
_FIELDS = {"hedge": "is_hedging"}
"""Keys that are called otherwise in `RoutingSettings`."""


def key_for(keys: Container[str], capability: str) -> str:
    """Which of the keys is that of the capability's table; empty if none is."""
    if capability in keys:
        return capability
    ends = range(len(capability), -1, -1)
    return next((key for end in ends if (key := f"{capability[:end]}*") in keys), "")


def laid_over(settings: RoutingSettings, key: str) -> RoutingSettings:
    """The default with the table of this key laid over it.

    Raises:
        UsageError: that is out of range.
    """
    given = {
        _FIELDS.get(name, name): value
        for name, value in msgspec.structs.asdict(settings.by_capability[key]).items()
        if value is not None
    }
    if "tiers" in given:
        given["tiers"] = {**settings.tiers, **given["tiers"]}
    try:
        if "breaker" in given:
            given["breaker"] = BreakerSettings(**_breaker(settings, given["breaker"]))
        return replace(settings, **given, by_capability={}, source=f"capability {key}")
    except UsageError as error:
        raise UsageError(f"{key}: {error.message}", hint=error.hint) from error


def _breaker(settings: RoutingSettings, given: Mapping[str, float]) -> dict[str, Any]:
    return {**msgspec.structs.asdict(settings.breaker), **given}


def joined(table: Overrides, given: Mapping[str, Any]) -> Overrides:
    """The table of one file with what a stronger one says of the same, key by key."""
    more = dict(given)
    if "breaker" in more:
        more["breaker"] = {**(table.breaker or {}), **more["breaker"]}
    return msgspec.structs.replace(table, **more)


class Rules:
    """The settings of one node by capability, each made once."""

    def __init__(self, settings: RoutingSettings) -> None:
        """Make them all.

        Raises:
            UsageError: those of a capability are out of range; the message names it.
        """
        self.default = settings
        self._made = {key: laid_over(settings, key) for key in settings.by_capability}
        self._found: dict[str, RoutingSettings] = {}

    def of(self, capability: str) -> RoutingSettings:
        """What holds for calls of this capability, for the price of a look."""
        if not self._made:
            return self.default
        found = self._found.get(capability)
        return self._find(capability) if found is None else found

    def _find(self, capability: str) -> RoutingSettings:
        key = key_for(self._made, capability)
        if len(self._found) >= NAMES_KEPT:
            self._found.clear()
        found = self._found[capability] = self._made[key] if key else self.default
        return found


def completed(request: DelegateRequest, settings: RoutingSettings) -> DelegateRequest:
    """The request with the fallbacks of its capability, where it names none.

    Who insists on a node wants what it asks for, there, and nothing else.
    """
    if request.fallback or request.to or not settings.fallback:
        return request
    others = tuple(name for name in settings.fallback if name != request.capability)
    return msgspec.structs.replace(request, fallback=others)


# Reading tables that people write

Fault = tuple[str, str]
"""A key path within what was read, and a sentence."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a configuration says about capabilities: checked values by table and key, and faults."""

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def read_tables(given: Any) -> Tables:
    """Check the tables of capabilities, key by key, so that every fault is found."""
    if not isinstance(given, Mapping):
        return Tables(faults=(("", "must be tables, one for each capability"),))
    values: dict[str, Mapping[str, Any]] = {}
    faults: list[Fault] = []
    if len(given) > TABLES_MAX:
        faults.append(("", f"at most {TABLES_MAX} capabilities may have a table"))
    for key, table in given.items():
        if isinstance(table, Overrides):
            table = msgspec.to_builtins(table)  # noqa: PLW2901 - a program may give either
        if not _is_key(key):
            faults.append((str(key)[:80], _RULE))
        elif not isinstance(table, Mapping):
            faults.append((key, "must be a table"))
        else:
            values[key], wrong = read_table(table, name=key)
            faults += [(f"{key}.{path}", fault) for path, fault in wrong]
    return Tables(values, tuple(faults))


_RULE = (
    "is neither a name nor the beginning of one and *; names have"
    f" 1 to {NAME_CHARS_MAX} letters, digits, dots, hyphens or underscores"
)


def read_table(
    table: Mapping[Any, Any], kinds: Mapping[str, Any] = KINDS, *, name: str = ""
) -> tuple[dict[str, Any], list[Fault]]:
    """The checked values of one table, and what is wrong with the others."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, given in table.items():
        if key == "breaker" in kinds and isinstance(given, Mapping):
            values[key], wrong = read_table(given, _BREAKER_KINDS)
            faults += [(f"{key}.{path}", fault) for path, fault in wrong]
            continue
        if key not in kinds:
            faults.append((str(key)[:80], _unknown(key, given, kinds, name)))
            continue
        try:
            value = converted(given, kinds[key])
        except ValueError as error:
            faults.append((key, str(error)))
            continue
        wrong = [(key, fault) for fault in value_faults(key, value)]
        faults += wrong
        if not wrong:
            values[key] = value
    return values, faults


def value_faults(key: str, value: Any) -> Iterator[str]:
    """What no type shows about the value of one key, in sentences.

    Of tiers and circuits that is known only over the default, and of policies only with those of
    the program; see `tables_faults`.
    """
    if key == "weights":
        yield from weight_faults(value)
    elif key == "shares":
        yield from weight_faults(value, tuple(SHARES))
    elif key == "fallback":
        yield from fallback_faults(value)


def tables_faults(
    tables: Mapping[str, Overrides], default: RoutingSettings, own: Collection[str] = ()
) -> Iterator[Fault]:
    """What is wrong with tables over this default, in a program with policies of its `own`."""
    for key, table in tables.items():
        if table.policy is not None:
            yield from ((f"{key}.policy", fault) for fault in policy_faults(table.policy, own))
        if table.tiers:
            found = tier_faults({**default.tiers, **table.tiers})
            yield from ((f"{key}.tiers", fault) for fault in found)
        if table.breaker:
            wrong = breaker_faults(_breaker(default, table.breaker))
            yield from ((f"{key}.breaker", f"{name} {fault}") for name, fault in wrong)


def _is_key(key: object) -> bool:
    if not isinstance(key, str):
        return False
    return key == "*" or is_name(key.removesuffix("*"))


def _unknown(key: object, given: Any, kinds: Mapping[str, Any], name: str) -> str:
    if isinstance(given, Mapping) and name:
        return f'unknown key; a name that has dots is quoted: "{name}.{key}"'
    return f"unknown key{meant(str(key), list(kinds))}"
