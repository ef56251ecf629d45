"""Ray: three actors, asked in turn. `ray.init` starts its own processes.

python ray_echo.py caller WORKERS
"""

import itertools
import logging
import sys
from typing import Any

import ray
from loop import TEXT, obey, run


@ray.remote(num_cpus=0)
class Echo:
    """An asynchronous actor: it takes many calls at a time."""

    async def echo(self, text: str) -> str:
        """Give it back."""
        return text


async def caller(actors: list[Any]) -> None:
    turns = itertools.cycle(actors)

    async def call() -> None:
        assert await next(turns).echo.remote(TEXT) == TEXT

    await obey(call)


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        run(caller([Echo.remote() for _ in range(int(sys.argv[2]))]))
    finally:
        ray.shutdown()
