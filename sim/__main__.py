"""`python -m sim`: the commands of `meshd sim`."""

import importlib
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 if an invariant was broken, 2 for usage.

    The command line is found by name: the simulated cores have no need of it.
    """
    words = sys.argv[1:] if arguments is None else arguments
    code = importlib.import_module("meshd.cli.app").run(["sim", *words])
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
