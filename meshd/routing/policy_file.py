"""The policy file: what holds for calls by default, and for those of some capabilities, in TOML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshd.faults import meant
from meshd.routing.rules import Tables, read_table, read_tables
from meshd.toml_file import read_toml

SECTIONS = ("default", "capability")


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """What a file says: `default` by key path, `tables` by capability, and its faults.

    Each fault begins with what stands behind the file's path: `: capability.a.retries: ...`.
    """

    default: Mapping[str, Any] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)
    faults: tuple[str, ...] = ()


def is_policy_file(path: Path) -> bool:
    """Whether this is a policy file, and not a configuration; false where it cannot be read."""
    try:
        tables = read_toml(path)
    except (OSError, ValueError):
        return False
    is_own = "default" in tables or isinstance(tables.get("capability"), dict)
    return is_own and set(tables) <= set(SECTIONS)


def read_policy_file(path: Path) -> PolicyFile:
    """Read and check it; whatever is wrong is among the faults."""
    try:
        tables = read_toml(path)
    except FileNotFoundError:
        return PolicyFile(faults=(": there is no such file",))
    except OSError as error:
        return PolicyFile(faults=(f": cannot be read: {error.strerror}",))
    except ValueError as error:
        return PolicyFile(faults=(str(error),))
    faults = [
        f": {section}: unknown section{meant(section, SECTIONS)}"
        for section in tables
        if section not in SECTIONS
    ]
    default: dict[str, Any] = {}
    given = tables.get("default", {})
    if isinstance(given, Mapping):
        default, wrong = read_table(given)
        default |= {f"breaker.{key}": value for key, value in default.pop("breaker", {}).items()}
        faults += [f": default.{key}: {fault}" for key, fault in wrong]
    else:
        faults.append(": default: must be a table, written [default]")
    found = read_tables(tables.get("capability", {}))
    faults += [f": {f'capability.{key}'.rstrip('.')}: {f}" for key, f in found.faults]
    return PolicyFile(default, found, tuple(faults))
