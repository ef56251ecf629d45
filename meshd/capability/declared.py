"""Capabilities declared in the configuration file: a command to run or a URL to forward to."""

import difflib
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from meshd.capability.definition import (
    TIMEOUT_DEFAULT_S,
    CapabilityDefinition,
    CommandHandler,
    Handler,
    HttpHandler,
)
from meshd.capability.manifest import PROFICIENCY_DEFAULT, Manifest, check_manifest
from meshd.capability.validation import compile_schema
from meshd.errors import UsageError
from meshd.model import check_name

CAPABILITIES_MAX = 256
MIB = 1_048_576
MEMORY_MB_MAX = 1_048_576


class CapabilityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[capability]]` table.

    Exactly one of `command` (program and arguments, no shell) and `url` (http or https; on
    another machine only with `allow_remote`). `cwd`, `env`, `streaming` (each line of output is a
    partial result) and `memory_mb` (bound of its address space) go with `command`. The other fields
    are those of `Manifest`; `timeout_s` in seconds above 0.
    """

    name: str
    command: tuple[str, ...] | None = None
    url: str | None = None
    allow_remote: bool = False
    cwd: str | None = None
    env: dict[str, str] = {}
    version: str = "1.0.0"
    description: str = ""
    agent: str = ""
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    idempotent: bool = False
    timeout_s: float = TIMEOUT_DEFAULT_S
    concurrency: int = 0
    rate_per_s: float = 0.0
    streaming: bool = False
    memory_mb: int = 0
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    cost_usd_per_call: float = 0.0
    cost_usd_per_unit: float = 0.0
    unit: str = ""
    proficiency: float = PROFICIENCY_DEFAULT
    attributes: dict[str, str | tuple[str, ...]] = {}


def definitions_from_config(
    entries: Iterable[CapabilityConfig | Mapping[str, Any]],
) -> tuple[CapabilityDefinition, ...]:
    """The capabilities that `[[capability]]` tables declare, in their order.

    Raises:
        UsageError: one error lists every fault of every table.
    """
    found: dict[str, CapabilityDefinition] = {}
    faults: list[str] = []
    for number, entry in enumerate(entries, start=1):
        if number > CAPABILITIES_MAX:
            faults.append(f"more than {CAPABILITIES_MAX} capabilities are declared")
            break
        config, wrong = _read(entry)
        if config is None:
            faults.extend(f"capability {number}: {fault}" for fault in wrong)
            continue
        where = f"capability {number} ({config.name[:80]!r})"
        if config.name in found:
            faults.append(f"{where}: the name is declared twice")
            continue
        definition, wrong = _define(config)
        faults.extend(f"{where}: {fault}" for fault in wrong)
        if definition is not None:
            found[config.name] = definition
    if faults:
        raise UsageError("; ".join(faults), hint="correct the [[capability]] tables")
    return tuple(found.values())


def _read(entry: CapabilityConfig | Mapping[str, Any]) -> tuple[CapabilityConfig | None, list[str]]:
    """The table, field by field, so that every fault of it is told at once."""
    if isinstance(entry, CapabilityConfig):
        return entry, []
    fields = {field.name: field for field in msgspec.structs.fields(CapabilityConfig)}
    values: dict[str, Any] = {}
    faults = []
    for key, value in entry.items():
        if key not in fields:
            close = difflib.get_close_matches(key, list(fields), n=1)
            faults.append(
                f"unknown key {key!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
            )
            continue
        try:
            values[key] = msgspec.convert(value, fields[key].type)
        except msgspec.ValidationError as error:
            faults.append(f"{key}: {error}")
    if "name" not in entry:
        faults.append("name is missing")
    return (None, faults) if faults else (CapabilityConfig(**values), [])


def _define(config: CapabilityConfig) -> tuple[CapabilityDefinition | None, list[str]]:
    faults = _handler_faults(config)
    check: Callable[[Any], None] | None = None
    manifest = Manifest(
        name=config.name,
        version=config.version,
        description=config.description,
        agent=config.agent,
        tags=config.tags,
        examples=config.examples,
        input_schema=config.input_schema,
        output_schema=config.output_schema,
        idempotent=config.idempotent,
        timeout_s=config.timeout_s,
        concurrency=config.concurrency,
        rate_per_s=config.rate_per_s,
        streaming=config.streaming,
        cost_usd_per_call=config.cost_usd_per_call,
        cost_usd_per_unit=config.cost_usd_per_unit,
        unit=config.unit,
        proficiency=config.proficiency,
        attributes=config.attributes,
    )
    try:
        check_manifest(manifest)
        if config.agent:
            check_name(config.agent, "agent")
    except UsageError as error:
        faults.append(str(error))
    if config.input_schema:
        try:
            check = compile_schema(config.input_schema, config.name)
        except UsageError as error:
            faults.append(str(error))
    if faults:
        return None, faults
    return CapabilityDefinition(manifest, _handler(config), check), []


def _handler(config: CapabilityConfig) -> Handler:
    if config.command is not None:
        return CommandHandler(
            config.command, config.cwd, dict(config.env), config.streaming,
            config.memory_mb * MIB,
        )  # fmt: skip
    return HttpHandler(config.url or "")


def _handler_faults(config: CapabilityConfig) -> list[str]:
    if (config.command is None) == (config.url is None):
        return ["it needs exactly one of command = [...] and url = '...'"]
    faults = []
    if config.command is not None:
        faults.extend(command_faults(config.command, config.cwd, config.env))
        if not 0 <= config.memory_mb <= MEMORY_MB_MAX:
            faults.append(f"memory_mb must be 0 (no bound) to {MEMORY_MB_MAX}")
        if config.allow_remote:
            faults.append("allow_remote goes with url, not with command")
    else:
        faults.extend(_url_faults(config.url or "", allow_remote=config.allow_remote))
        if config.cwd is not None or config.env or config.streaming or config.memory_mb:
            faults.append("cwd, env, streaming and memory_mb go with command, not with url")
    return faults


def command_faults(command: tuple[str, ...], cwd: str | None, env: Mapping[str, str]) -> list[str]:
    """What is wrong with a declared program, whatever it is run for."""
    faults = []
    if not command or not command[0]:
        faults.append("command is empty: write the program and its arguments")
    if any("\0" in text for text in (*command, cwd or "", *env, *env.values())):
        faults.append("command, cwd and env must not hold null characters")
    return faults


def _url_faults(url: str, *, allow_remote: bool) -> list[str]:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return [f"url {url[:200]!r} is not valid: {error}"]
    if parts.scheme not in {"http", "https"} or not host:
        return [f"url {url[:200]!r} must begin with http:// or https:// and name a host"]
    if not allow_remote and not _is_loopback(host):
        return [
            f"url {url[:200]!r} is on another machine: set allow_remote = true if that is meant",
        ]
    return []


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
