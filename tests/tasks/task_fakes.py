"""What tasks are delegated to, and where they are kept, under a test's control."""

import asyncio

from meshd.errors import NoCandidateError
from meshd.tasks.record import TaskRecord
from meshd.tasks.store import MemoryStore

NODE = "a" * 16
WORKER = "b" * 16


class Work:
    """What tasks are delegated to: answers, raises or waits as a test wants."""

    def __init__(self):
        self.asked = []
        self.answers = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.news = asyncio.Condition()
        self.sinks = []
        self.flags = []
        self.marks = True
        self.refused = set()

    async def __call__(self, params, *, deadline_s, sink, trying, is_repeat, only_joins):
        self.flags.append((is_repeat, only_joins))
        if self.marks:
            await trying(WORKER, 7)
        self.sinks.append(sink)
        self.asked.append(params)
        async with self.news:
            self.news.notify_all()
        await self.hold.wait()
        if params["capability"] in self.refused:
            raise NoCandidateError("nobody")
        answer = self.answers.pop(0) if self.answers else {"done": params["input"]}
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count):
        async with asyncio.timeout(5), self.news:
            await self.news.wait_for(lambda: len(self.asked) >= count)


async def submit(tasks, value=1, **params):
    return await tasks.submit("echo", {"capability": "echo", "input": value, **params})


class Shaky(MemoryStore):
    """Takes a record when a test lets it, or fails."""

    def __init__(self):
        self.put_now = asyncio.Event()
        self.put_now.set()
        self.asked = asyncio.Event()
        self.puts = []
        self.refuses = lambda record: False

    async def put(self, record: TaskRecord):
        self.asked.set()
        await self.put_now.wait()
        if self.refuses(record):
            raise OSError("no space left")
        self.puts.append(record.state)
