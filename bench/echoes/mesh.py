"""meshd's SDK: attached to a daemon of this machine, or a node itself.

python mesh.py attached SOCKET | embedded MESH SEED
"""

import sys

from loop import TEXT, obey, run

from meshd import Mesh


async def caller(mesh: Mesh) -> None:
    async with mesh:

        async def call() -> None:
            assert await mesh.call("echo", {"text": TEXT}) == TEXT

        await obey(call)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["attached", socket]:
            run(caller(Mesh("attached", control=socket)))
        case ["embedded", name, seed]:
            settings = {"mesh": name, "bind": "127.0.0.1:0", "mdns": False, "join": [seed]}
            run(caller(Mesh("embedded", embed=True, **settings)))
