"""Workers that are closed at the end of their test, and a gate for what they run."""

import pytest
from work_fakes import Gate, WorkPlatform

from meshd.capability.definition import collect
from meshd.work.worker import Worker


@pytest.fixture
async def gate():
    return Gate()


@pytest.fixture
async def make():
    """Workers that are closed at the end."""
    made: list[Worker] = []

    def make(*sources, platform=None, **options) -> Worker:
        definitions = collect(sources) if sources else ()
        options.setdefault("name", "me")
        made.append(Worker(platform or WorkPlatform(), definitions, **options))
        return made[-1]

    yield make
    for worker in made:
        await worker.close()
