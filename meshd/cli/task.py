"""`meshd task`: look after work that was handed in with `meshd call --detach`."""

import time
from typing import Any

import click

from meshd.cli.call import result_text
from meshd.cli.handover import progress_text
from meshd.cli.options import connection_options, duration, examples, json_option
from meshd.cli.output import Cell, Column, age, escape, table
from meshd.cli.session import Session, current, emit, emit_json
from meshd.errors import DeadlineError, MeshError, error_from_wire

WAIT_S = 86_400.0
GRACE_S = 12.0
"""What the keeper may take to answer, on top of a wait."""
STATES = ("accepted", "working", "completed", "failed", "cancelled", "rejected", "expired")
_STYLES = {"completed": "green", "failed": "red", "expired": "red", "working": "yellow"}

Record = dict[str, Any]


@click.group(
    "task",
    short_help="Look after work that was handed in.",
    epilog=examples(
        "ID=$(meshd call --detach render scene=7)", 'meshd task wait "$ID"', "meshd task list",
    ),
)  # fmt: skip
@connection_options(hidden=True)
def command() -> None:
    """Look after work that was handed in with `meshd call --detach`.

    The node that accepted a task keeps it; any node of the mesh finds it by its ID.
    """


@command.command("list", epilog=examples("meshd task list --state working --state accepted"))
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, help="At most so many.")
@json_option
@current
def list_(session: Session, *, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List the tasks that this node keeps, the newest first."""
    document = session.call("task.list", {"state": list(states), "limit": limit})
    if as_json:
        emit_json(document)
        return
    columns = [Column(title) for title in ("ID", "STATE", "CAPABILITY", "AGE", "NOTE")]
    rows = [_row(record) for record in document["tasks"]]
    emit(table(columns, rows, session.palette()) if rows else [])
    if not rows:
        session.note("no tasks; hand one in: meshd call --detach CAPABILITY ...")


def _row(record: Record) -> list[Cell]:
    age_s = max(0.0, time.time() - record["submitted_ms"] / 1_000)
    return [
        Cell(escape(record["id"])),
        Cell(escape(record["state"]), _STYLES.get(record["state"], "")),
        Cell(escape(record["capability"])),
        Cell(age(age_s)),
        Cell(_note(record)),
    ]


def _note(record: Record) -> str:
    if record.get("error"):
        return escape(record["error"]["message"])
    told = record.get("fraction") is not None or record.get("message")
    return progress_text(record) if told else ""


@command.command("show", epilog=examples('meshd task show "$ID" --json'))
@click.argument("task_id", metavar="ID")
@json_option
@current
def show(session: Session, *, task_id: str, as_json: bool) -> None:
    """Show how a task stands, and its result once there is one."""
    _print(session, session.call("task.get", {"id": task_id}), as_json=as_json)


@command.command("wait", epilog=examples('meshd task wait "$ID" --timeout 10m'))
@click.argument("task_id", metavar="ID")
@click.option("--timeout", "timeout_s", type=duration, default="24h", metavar="TIME",
              help="Give up after this long; the task goes on.")  # fmt: skip
@json_option
@current
def wait(session: Session, *, task_id: str, timeout_s: float, as_json: bool) -> None:
    """Wait until a task has ended, and print its result as `meshd call` does."""
    params = {"id": task_id, "timeout_s": min(timeout_s, WAIT_S)}
    record = session.call("task.wait", params, timeout_s=timeout_s + GRACE_S)
    error = _error_of(record)
    if as_json:
        emit_json(record)
    if error is not None:
        raise error
    if record["state"] != "completed":
        raise DeadlineError(
            f"the task is {record['state']} after {timeout_s:g} s", hint="it goes on; wait again"
        )
    if not as_json:
        emit([result_text(record.get("result"))])


@command.command("cancel", epilog=examples('meshd task cancel "$ID"'))
@click.argument("task_id", metavar="ID")
@json_option
@current
def cancel(session: Session, *, task_id: str, as_json: bool) -> None:
    """End a task, wherever it stands; one that has ended stays as it is."""
    record = session.call("task.cancel", {"id": task_id}, timeout_s=GRACE_S)
    if as_json:
        emit_json(record)
    else:
        emit([escape(record["state"])])


@command.command("watch", epilog=examples('meshd task watch "$ID"'))
@click.argument("task_id", metavar="ID")
@click.option("--timeout", "timeout_s", type=duration, default="24h", metavar="TIME",
              help="Look on for this long.")  # fmt: skip
@json_option
@current
def watch(session: Session, *, task_id: str, timeout_s: float, as_json: bool) -> None:
    """Print what happens to a task as it happens, until it ends."""
    record: Record = {}
    for what, value in session.client.stream("task.subscribe", {"id": task_id}, timeout_s):
        if what == "result":
            record = value
        elif what == "part" and as_json:
            emit_json(value)
        elif what == "part":
            emit([_event_line(value)])
    error = _error_of(record)
    if error is not None:
        raise error


def _event_line(event: Record) -> str:
    if "part" in event:
        return result_text(event["part"], indent=None)
    note = _note(event)
    return f"{escape(event['state'])}: {note}" if note else escape(event["state"])


def _print(session: Session, record: Record, *, as_json: bool) -> None:
    if as_json:
        emit_json(record)
        return
    note = _note(record)
    session.note(f"{escape(record['capability'])} is {escape(record['state'])}")
    if note:
        session.note(note)
    if record["state"] == "completed":
        emit([result_text(record.get("result"))])


def _error_of(record: Record) -> MeshError | None:
    error = record.get("error")
    if not error:
        return None
    return error_from_wire(error["code"], error["message"], error.get("data"))
