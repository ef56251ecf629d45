"""`meshd config`: show, locate and check the configuration that `meshd start` would use."""

import os
from pathlib import Path
from typing import Any

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import Cell, Column, Palette, escape, json_text, plural, table
from meshd.cli.session import Session, current, emit, emit_json

MEMBERS = 50
MEMBERS_MAX = 100_000


@click.group(
    "config",
    short_help="Show and check the configuration.",
    epilog=examples("meshd config show --origin", "meshd config check ./meshd.toml"),
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
    """Show every setting, as TOML."""
    from meshd.config import load_config

    loaded = load_config({"config": file})
    for warning in loaded.warnings:
        session.warn(warning)
    values = _values(loaded.config)
    if as_json:
        files = [str(path) for path in loaded.files]
        document = {"schema": "meshd.config/1", "settings": values, "files": files}
        emit_json({**document, "origins": loaded.origins, "warnings": list(loaded.warnings)})
        return
    emit(toml_lines(values, loaded.origins if origin else {}, session.palette()))


def _values(config: Any) -> dict[str, Any]:
    from meshd.config import options

    found = {}
    for option in options():
        section, _, key = option.path.partition(".")
        found[option.path] = getattr(getattr(config, section), key)
    return found


def toml_lines(values: dict[str, Any], origins: dict[str, str], palette: Palette) -> list[str]:
    """Settings (key path to value) as TOML; where an origin is known, it stands as a comment."""
    lines: list[str] = []
    last = ""
    for path, value in values.items():
        section, _, key = path.partition(".")
        if section != last:
            lines += [""] * bool(lines) + [palette.paint(f"[{section}]", "bold")]
            last = section
        comment = palette.paint(f"  # {escape(origins[path])}", "dim") if path in origins else ""
        lines.append(f"{key} = {_toml(value)}{comment}")
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json_text(value)


@command.command("path", epilog=examples("meshd config path"))
@json_option
@current
def path(session: Session, *, as_json: bool) -> None:
    """Show which TOML files are read, the weakest first."""
    from meshd.config import search_paths

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
    """Check one TOML file. Every fault is listed; nothing is started."""
    from meshd.config import load_config

    environment = {k: v for k, v in os.environ.items() if not k.startswith("MESHD_")}
    loaded = load_config({"config": file}, environment)
    if as_json:
        emit_json({"schema": "meshd.config_check/1", "file": file, "ok": True})
    else:
        found = plural(len(loaded.config.capability), "capability", "capabilities")
        emit([f"{escape(file)}: ok, declares {found}"])


@command.command(
    "profile", epilog=examples("meshd config profile", "meshd config profile wan --nodes 500")
)
@click.argument("name", default="lan")
@click.option(
    "--nodes", "members", type=click.IntRange(2, MEMBERS_MAX), default=MEMBERS, metavar="N",
    help=f"In a mesh of so many nodes ({MEMBERS}).",
)  # fmt: skip
@json_option
@current
def profile_numbers(session: Session, *, name: str, members: int, as_json: bool) -> None:
    """Show what a profile (local, lan or wan) comes to, with the formula of each number."""
    from meshd.gossip.config import profile
    from meshd.gossip.figures import figures

    found = figures(profile(name), members)
    if as_json:
        numbers = [figure._asdict() for figure in found]
        head = {"schema": "meshd.config_profile/1", "profile": name, "nodes": members}
        emit_json({**head, "numbers": numbers})
        return
    columns = [
        Column("NUMBER"),
        Column("VALUE", right=True),
        Column(""),
        Column("FORMULA"),
    ]
    rows = [[Cell(f.name), Cell(f"{f.value:.3g}"), Cell(f.unit), Cell(f.formula)] for f in found]
    emit(table(columns, rows, session.palette()))
    session.note(f"profile {name} at n = {plural(members, 'node')}")
