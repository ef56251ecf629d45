"""`python -m sim.experiments NAME`: run one experiment, or say which there are."""

import argparse
import json
import sys
from collections.abc import Sequence

from sim.experiments.catalogue import EXPERIMENTS
from sim.experiments.model import Options
from sim.experiments.runs import to_terminal

EXIT_OK, EXIT_MISSED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment; returns 0, or 1 if a target was missed (2 for wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.experiments",
        description="Reproduce a published result with the simulator.",
        epilog="\n".join(f"{each.name:<16} {each.text}" for each in EXPERIMENTS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small: shows that it works, no more")
    parser.add_argument("--seeds", type=_count, help="seeds for each cell")
    parser.add_argument("--jobs", type=_count, default=1, help="processes at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    given = parser.parse_args(arguments)
    options = Options(quick=given.quick, seeds=given.seeds, jobs=given.jobs)
    outcome = EXPERIMENTS[given.name].run(options, to_terminal(given.name))
    text = json.dumps(outcome.as_json()) if given.json else outcome.as_text()
    sys.stdout.write(text + "\n")
    return EXIT_OK if outcome.ok else EXIT_MISSED


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
