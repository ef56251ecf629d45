"""The `meshd` command: one file a command, each imported only when it is asked for."""

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    `arguments` replaces `sys.argv[1:]`.
    """
    import sys

    from meshd.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
