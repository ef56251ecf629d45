"""Keepers of tasks that are closed at the end of their test."""

import random

import pytest
from task_fakes import NODE, Shaky, Work

from meshd.daemon.platform import SystemClock
from meshd.tasks.keeper import Tasks


@pytest.fixture
async def work():
    return Work()


@pytest.fixture
async def make(work):
    made = []

    async def start(store=None, **options):
        tasks = Tasks(
            node=NODE, clock=SystemClock(), random=random.Random(1), delegate=work,
            store=store, **options,
        )  # fmt: skip
        made.append(tasks)
        await tasks.start()
        return tasks

    yield start
    work.hold.set()
    for tasks in made:
        await tasks.close()


@pytest.fixture
def store():
    return Shaky()
