"""`meshd capabilities`: what the mesh can do, and who offers it."""

from typing import Any

import click

from meshd.cli.options import (
    complete_capabilities,
    complete_nodes,
    connection_options,
    examples,
    list_options,
)
from meshd.cli.output import (
    STATE_STYLES,
    Cell,
    Column,
    Palette,
    escape,
    fields,
    json_text,
    plural,
    some_of,
    table,
)
from meshd.cli.session import Session, current, emit, emit_json
from meshd.errors import NoCandidateError

DESCRIPTION_CHARS_SHOWN = 60
NODE_COLUMNS_MAX = 32
_COLUMNS = [Column(t) for t in ("CAPABILITY", "VERSION", "REPEATABLE", "NODES", "DESCRIPTION")]
_WIDE = [Column("AGENT"), Column("TAGS")]

Capability = dict[str, Any]


@click.command(
    "capabilities",
    short_help="List what the mesh can do (alias: caps).",
    epilog=examples(
        "meshd capabilities",
        "meshd caps --own",
        "meshd caps translate --json",
    ),
)
@click.argument("name", required=False, shell_complete=complete_capabilities)
@click.option(
    "--on", "on", metavar="NODE", shell_complete=complete_nodes, help="Only of this node."
)
@click.option("--own", is_flag=True, help="Only of the local node.")
@click.option("--tag", metavar="TAG", multiple=True, help="Only those with this tag.")
@list_options("table", "wide", "json", "jsonl", "name")
@connection_options(hidden=True)
@current
def command(
    session: Session,
    *,
    name: str | None,
    on: str | None,
    own: bool,
    tag: tuple[str, ...],
    output: str | None,
) -> None:
    """List the capabilities of the mesh, or show one (NAME) with its schemas.

    REPEATABLE says that running it twice does no harm, so that meshd may retry it elsewhere.
    """
    if own and on is not None:
        raise click.UsageError("--own and --on exclude each other")
    node = "self" if own else on
    params = {key: value for key, value in (("node", node), ("name", name)) if value is not None}
    document: dict[str, Any] = session.call("capabilities", params)
    kept = [c for c in document["capabilities"] if set(tag) <= set(c.get("tags") or [])]
    document = {**document, "capabilities": kept}
    if name is not None and not kept:
        raise NoCandidateError(
            f"nobody offers {name!r}", hint=f"find one that fits: meshd discover {name!r}"
        )
    if output == "json":
        emit_json(document)
        return
    emit(lines(kept, output, session.palette(), detailed=name is not None))
    if not kept:
        session.note("offer something: meshd start --capability FILE.toml")


def lines(
    known: list[Capability], output: str | None, palette: Palette, *, detailed: bool
) -> list[str]:
    """Capabilities in one of the formats `table` (also None), `wide`, `jsonl`, `name`, `id`."""
    if output == "jsonl":
        return [json_text(capability) for capability in known]
    if output in {"name", "id"}:
        return [escape(capability.get("name", "")) for capability in known]
    if detailed and output is None:
        return [line for capability in known for line in _details(capability, palette)]
    wide = output == "wide"
    columns = _COLUMNS + _WIDE if wide else _COLUMNS
    drawn = table(columns, [_cells(c, wide=wide) for c in known], palette)
    offering = {str(n.get("node")) for c in known for n in c.get("nodes") or []}
    counts = plural(len(known), "capability", "capabilities")
    counts += f" on {plural(len(offering), 'node')}"
    return [*drawn, palette.paint(counts, "dim")]


def _cells(capability: Capability, *, wide: bool) -> list[Cell]:
    names = [_node(n) for n in capability.get("nodes") or []]
    description = escape(" ".join(str(capability.get("description") or "").split()))
    if not wide and len(description) > DESCRIPTION_CHARS_SHOWN:
        description = description[: DESCRIPTION_CHARS_SHOWN - 1] + "…"
    cells = [
        Cell(escape(capability.get("name", "?")), "bold"),
        Cell(escape(capability.get("version", ""))),
        Cell("yes" if capability.get("idempotent") else "no"),
        Cell(some_of(names, 10_000 if wide else NODE_COLUMNS_MAX)),
        Cell(description),
    ]
    if wide:
        tags = ",".join(escape(tag) for tag in capability.get("tags") or [])
        cells += [Cell(escape(capability.get("agent") or "")), Cell(tags)]
    return cells


def _node(node: dict[str, Any]) -> str:
    name = escape(node.get("name") or node.get("node") or "?")
    return f"{name} *" if node.get("local") else name


def _details(capability: Capability, palette: Palette) -> list[str]:
    bounds = [("timeout_s", "at most {:g} s a run"), ("concurrency", "{} at a time")]
    limits = [text.format(capability[key]) for key, text in bounds if capability.get(key)]
    pairs = [
        ("capability", f"{escape(capability.get('name', '?'))} {capability.get('version', '')}"),
        ("description", escape(capability.get("description") or "", keep="\n")),
        ("agent", escape(capability.get("agent") or "")),
        ("tags", ", ".join(escape(tag) for tag in capability.get("tags") or [])),
        ("examples", "\n".join(escape(e) for e in capability.get("examples") or [])),
        ("repeatable", "yes" if capability.get("idempotent") else "no"),
        ("limits", ", ".join(limits)),
        ("input", _schema(capability.get("input_schema"))),
        ("output", _schema(capability.get("output_schema"))),
        ("nodes", "\n".join(_node_line(n, palette) for n in capability.get("nodes") or [])),
    ]
    return fields(pairs, palette)


def _schema(schema: Any) -> str:
    return json_text(schema, indent=2) if schema else ""


def _node_line(node: dict[str, Any], palette: Palette) -> str:
    state = escape(node.get("state") or "")
    return f"{_node(node)}  {palette.paint(state, STATE_STYLES.get(state, ''))}".rstrip()
