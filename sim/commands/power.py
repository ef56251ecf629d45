"""The command that counts how many seeds each planted fault survives."""

import click

from sim.commands.options import FAILED, OK, SEED_MAX, emit, emit_json, examples, json_option, note

RUNS, SEEDS_MAX = 5, 20
BASE = 7_000_000
"""Where the seeds of the published table begin."""


@click.command(
    "mutations",
    short_help="Count the seeds until planted protocol faults are seen.",
    epilog=examples(
        "meshd sim mutations", "meshd sim mutations no_sync any_ack --runs 3 --base 123456 --json"
    ),
)
@click.argument("names", metavar="[MUTATION]...", nargs=-1)
@click.option(
    "--seeds", type=click.IntRange(1, 100_000), default=SEEDS_MAX, help="Seeds tried in each run."
)
@click.option("--runs", type=click.IntRange(1, 1_000), default=RUNS, help="Runs of each fault.")
@click.option(
    "--base", type=click.IntRange(0, SEED_MAX // 2), default=BASE, help="First seed of the first."
)
@json_option
def mutations_command(
    names: tuple[str, ...], *, seeds: int, runs: int, base: int, as_json: bool
) -> int:
    """Plant faults in the protocol, one at a time, and count the seeds until one is seen.

    Exit code 1 if a fault survived a run.
    """
    from sim.mutations import MUTATIONS
    from sim.power import as_line, as_result, measured, table

    known = [mutation.name for mutation in MUTATIONS]
    for name in names:
        if name not in known:
            raise click.BadParameter(
                f"there is no fault {name!r}; there are {', '.join(known)}",
                param_hint="'MUTATION'",
            )
    rows = []
    for row in measured(names, base=base, runs=runs, seeds_max=seeds):
        rows.append(row)
        note(as_line(row))
    if as_json:
        emit_json(as_result(rows, base))
    else:
        emit(table(rows))
    return FAILED if any(row.worst is None for row in rows) else OK
