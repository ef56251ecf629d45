"""Installs the programs that meshd is measured against, for the benches `versus_*`."""

import argparse
import json
from pathlib import Path

from rivals.install import default_directory, install


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals-dir", type=Path, default=default_directory())
    options = parser.parse_args()
    told = install(options.rivals_dir)
    for name, text in told.items():
        print(f"{name}: {text}")
    print(json.dumps({"directory": str(options.rivals_dir), "rivals": told}))


if __name__ == "__main__":
    main()
