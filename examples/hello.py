"""The smallest program of a mesh: it offers one function, and calls it.

python hello.py            with a daemon on this machine it attaches to it, else it is a node itself
"""

import asyncio

from meshd import Mesh

mesh = Mesh("hello")


@mesh.agent("greeter", idempotent=True)
def greet(name: str) -> str:
    """Greet someone by name."""
    return f"Hello, {name}!"


async def main() -> None:
    """Ask the mesh: `greet` is offered here, and wherever else this program runs."""
    async with mesh:
        print(await mesh.call("greet", {"name": "mesh"}))


if __name__ == "__main__":
    asyncio.run(main())
