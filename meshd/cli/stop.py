"""`meshd stop`: leave the mesh and stop the daemon."""

import time

import click

from meshd.cli.options import connection_options, duration_or_zero, examples, json_option
from meshd.cli.session import Session, current, emit, emit_json, with_schema
from meshd.errors import DeadlineError, MeshError, NoDaemonError

END_WITHIN_S = 10.0
POLL_S = 0.05
POLL_TIMEOUT_S = 2.0


@click.command(
    "stop",
    short_help="Leave the mesh and stop the daemon.",
    epilog=examples(
        "meshd stop",
        "meshd stop --drain 1m",
        "meshd stop --now",
    ),
)
@click.option(
    "--drain", "drain_s", type=duration_or_zero, metavar="TIME",
    help="Let running tasks finish for so long.",
)  # fmt: skip
@click.option("--now", is_flag=True, help="Do not wait for running tasks.")
@click.option("--no-wait", is_flag=True, help="Return before the daemon has ended.")
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session, *, drain_s: float | None, now: bool, no_wait: bool, as_json: bool
) -> None:
    """Leave the mesh, stop the daemon, and wait until it has ended."""
    if now and drain_s is not None:
        raise click.UsageError("--now and --drain exclude each other")
    params = {"now": True} if now else {} if drain_s is None else {"drain_s": drain_s}
    result = session.call("stop", params)
    if not no_wait:
        wait_until_gone(session, END_WITHIN_S + float(result.get("drain_s") or 0.0))
    if as_json:
        emit_json(with_schema("meshd.stop/1", {**result, "stopped": not no_wait}))
    else:
        emit(["stopping" if no_wait else "stopped"])


def wait_until_gone(session: Session, patience_s: float) -> None:
    """Return once no daemon answers any more.

    Raises:
        DeadlineError: it still does after `patience_s` seconds.
    """
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        try:
            session.call("ping", timeout_s=POLL_TIMEOUT_S)
        except NoDaemonError:
            return
        except MeshError:  # it is closing: slow, or cut off in the middle of an answer
            pass
        time.sleep(POLL_S)
    raise DeadlineError(
        f"the daemon still answers {patience_s:g} s after it was told to stop",
        hint="see what it is doing: meshd status    do not wait for tasks: meshd stop --now",
    )
