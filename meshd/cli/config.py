"""`meshd config`: show, locate and check the configuration that `meshd start` would use."""

import math
import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import Cell, Column, Palette, escape, json_text, plural, table
from meshd.cli.session import Session, current, emit, emit_json

RULES = "routing.capability"
SIZE_MAX = 100_000
SIZE_DEFAULT = 10
"""Nodes of a mesh for which numbers are told where no daemon runs that could count them."""


@click.group(
    "config",
    short_help="Show and check the configuration.",
    epilog=examples(
        "meshd config show --origin", "meshd config check ./meshd.toml", "meshd config profile wan"
    ),
)
@connection_options(hidden=True)
def command() -> None:
    """Show and check the configuration that `meshd start` would use; no daemon is needed.

    Flags win over MESHD_* variables, these over the user's TOML file, this over the system's.
    """


@command.command("show", epilog=examples("meshd config show --origin", "meshd config show --json"))
@click.option("--config", "file", metavar="FILE", help="Read this TOML file alone.")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
@current
def show(session: Session, *, file: str | None, origin: bool, as_json: bool) -> None:
    """Show every setting, as TOML; what the policy file says is among [routing]."""
    from meshd.config import load_config

    loaded = load_config({"config": file})
    for warning in loaded.warnings:
        session.warn(warning)
    values = _values(loaded.config)
    if as_json:
        files = [str(path) for path in loaded.files]
        values = _finite(values)
        document = {"schema": "meshd.config/1", "settings": values, "files": files}
        emit_json({**document, "origins": loaded.origins, "warnings": list(loaded.warnings)})
        return
    palette = session.palette()
    tables = values.pop(RULES)
    lines = toml_lines(values, loaded.origins if origin else {}, palette)
    emit([*lines, *rule_lines(tables, loaded.origins if origin else {}, palette)])


def _values(config: Any) -> dict[str, Any]:
    import msgspec

    from meshd.config import options

    found = {}
    for option in options():
        found[option.path] = msgspec.to_builtins(attrgetter(option.path)(config))
    return found


def toml_lines(values: dict[str, Any], origins: dict[str, str], palette: Palette) -> list[str]:
    """Settings (key path to value) as TOML; where an origin is known, it stands as a comment."""
    lines: list[str] = []
    last = ""
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        if section != last:
            lines += [""] * bool(lines) + [palette.paint(f"[{section}]", "bold")]
            last = section
        comment = palette.paint(f"  # {escape(origins[path])}", "dim") if path in origins else ""
        lines.append(f"{key} = {_toml(value)}{comment}")
    return lines


def _finite(value: Any) -> Any:
    """The value with null for what is not bounded: JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if value == math.inf else value


def rule_lines(
    tables: dict[str, dict[str, Any]], origins: dict[str, str], palette: Palette
) -> list[str]:
    """The tables of capabilities, as `toml_lines` writes the others; last, as they are in one."""
    lines: list[str] = []
    for name, rules in tables.items():
        lines += ["", palette.paint(f"[{RULES}.{json_text(name)}]", "bold")]
        for key, value in rules.items():
            origin = origins.get(f"{RULES}.{name}.{key}")
            comment = palette.paint(f"  # {escape(origin)}", "dim") if origin else ""
            lines.append(f"{key} = {_toml(value)}{comment}")
    return lines


def _toml(value: Any) -> str:
    if value == math.inf:
        return "inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json_text(value)


@command.command("path", epilog=examples("meshd config path"))
@json_option
@current
def path(session: Session, *, as_json: bool) -> None:
    """Show which TOML files are read, the weakest first."""
    from meshd.paths import search_paths

    explicit = os.environ.get("MESHD_CONFIG")
    paths = [Path(explicit).expanduser()] if explicit else list(search_paths(os.environ))
    if as_json:
        files = [{"path": str(p), "exists": p.is_file()} for p in paths]
        emit_json({"schema": "meshd.config_path/1", "files": files})
        return
    emit(f"{escape(p)}{'' if p.is_file() else '  (not there)'}" for p in paths)
    if not any(p.is_file() for p in paths):
        session.note("none is needed: without one the defaults hold")


@command.command("check", epilog=examples("meshd config check ./meshd.toml"))
@click.argument("file")
@json_option
def check(*, file: str, as_json: bool) -> None:
    """Check one TOML file, a configuration or a policy file. Every fault is listed."""
    from meshd.config import load_config
    from meshd.routing.policy_file import is_policy_file

    environment = {k: v for k, v in os.environ.items() if not k.startswith("MESHD_")}
    is_policy = is_policy_file(Path(file).expanduser())
    if is_policy:
        loaded = load_config({"routing_policy_file": file}, environment, ())
    else:
        loaded = load_config({"config": file}, environment)
    if as_json:
        emit_json({"schema": "meshd.config_check/1", "file": file, "ok": True})
    elif is_policy:
        found = plural(len(loaded.config.routing.capability), "capability", "capabilities")
        emit([f"{escape(file)}: ok, has policies of {found} beside the default"])
    else:
        found = plural(len(loaded.config.capability), "capability", "capabilities")
        handlers = plural(len(loaded.config.handler), "handler", "handlers")
        emit([f"{escape(file)}: ok, declares {found} and {handlers}"])


@command.command(
    "profile",
    epilog=examples("meshd config profile", "meshd config profile wan --size 100"),
)
@click.argument("name", required=False, metavar="[local|lan|wan]")
@click.option(
    "--size",
    type=click.IntRange(1, SIZE_MAX),
    metavar="N",
    help="Nodes of the mesh; default: as many as there are.",
)
@json_option
@current
def profile(session: Session, *, name: str | None, size: int | None, as_json: bool) -> None:
    """Show every number of the failure detector with its formula, and what follows from them.

    Without a name, the profile of the running daemon, or the one that `meshd start` would use. The
    second part is for a mesh of as many nodes as the daemon sees alive or suspect.
    """
    from meshd.gossip.config import profile as profile_of
    from meshd.gossip.numbers import consequences, numbers

    running = _running(session) if name is None or size is None else None
    name = name or (running or {}).get("profile") or _configured()
    if size is None:
        members = (running or {}).get("members") or {}
        size = members.get("alive", 0) + members.get("suspect", 0) or SIZE_DEFAULT
        if running is None:
            session.note(f"no daemon runs here: for a mesh of {size}; choose with --size")
    config = profile_of(name)
    own, following = numbers(config), consequences(config, size)
    if as_json:
        parts = {"numbers": [_number(n) for n in own], "follows": [_number(n) for n in following]}
        emit_json({"schema": "meshd.profile/1", "profile": name, "members": size, **parts})
        return
    heading = f"in a mesh of {plural(size, 'node')}"
    palette = session.palette()
    emit([*_sheet(f"profile {name}", own, palette), "", *_sheet(heading, following, palette)])


def _running(session: Session) -> dict[str, Any] | None:
    """What the chosen daemon says of itself; None if none runs."""
    from meshd.errors import NoDaemonError

    try:
        status: dict[str, Any] = session.call("status")
    except NoDaemonError:
        return None
    return status


def _configured() -> str:
    from meshd.config import load_config

    return load_config({}).config.node.profile


def _number(number: Any) -> dict[str, Any]:
    return {
        "name": number.name, "value": number.value, "unit": number.unit, "meaning": number.meaning,
    }  # fmt: skip


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{round(value, 3):.10g}"


def _sheet(heading: str, rows: Sequence[Any], palette: Palette) -> list[str]:
    """A table under a heading: name, value and unit, meaning."""
    columns = [Column(heading), Column("VALUE", right=True), Column("UNIT"), Column("MEANING")]
    cells = [[Cell(n.name), Cell(_value(n.value)), Cell(n.unit), Cell(n.meaning)] for n in rows]
    return table(columns, cells, palette)
