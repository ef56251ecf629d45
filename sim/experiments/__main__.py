"""`python -m sim.experiments NAME`: the same as `meshd sim experiment NAME`."""

import sys

from sim.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["experiment", *sys.argv[1:]]))
