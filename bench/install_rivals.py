"""Installs the programs that meshd is measured against.

`membership` for the benches `versus_*`: Serf, memberlist, kinship. `rpc` for `rpc`: NATS, Ray, and
Celery with Redis, which take some 600 MB.
"""

import argparse
import json
from pathlib import Path

from echoes import install as rpc
from rivals import install as membership
from rivals.install import default_directory

GROUPS = {"membership": membership.install, "rpc": rpc.install}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], default=["membership"])
    parser.add_argument("--rivals-dir", type=Path, default=default_directory())
    options = parser.parse_args()
    told: dict[str, str] = {}
    for group in options.groups:
        told |= GROUPS[group](options.rivals_dir)
    for name, text in told.items():
        print(f"{name}: {text}")
    print(json.dumps({"directory": str(options.rivals_dir), "rivals": told}))


if __name__ == "__main__":
    main()
