"""A program that lends its functions to a daemon: `attached_program.py SOCKET NAME`."""

import asyncio
import os
import sys

from meshd import Mesh

_, path, name = sys.argv
mesh = Mesh(name, control=path)


@mesh.agent()
async def once(seconds: float) -> int:
    """Sleep; not to be run twice."""
    await asyncio.sleep(seconds)  # plays work: it is under way when the program dies
    return os.getpid()


@mesh.agent(idempotent=True)
async def again(seconds: float) -> int:
    """Sleep; may be run twice."""
    await asyncio.sleep(seconds)  # plays work: it is under way when the program dies
    return os.getpid()


async def main() -> None:
    """Serve, and say so."""
    async with mesh:
        print("serving", file=sys.stderr)  # noqa: T201 - this line is what the test waits for
        await mesh.serve()


asyncio.run(main())
