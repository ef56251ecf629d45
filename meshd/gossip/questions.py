"""Members that are asked for their load at once: who waits for whose answer, on either thread."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from meshd.clock import Instant, Seconds
from meshd.model import Load, NodeId

LoadAnswers = Mapping[NodeId, tuple[Seconds, Load]]
"""The round trip and the load of each that has answered."""

IsEnough = Callable[[LoadAnswers], bool]
"""Whether the others need not be waited for; asked after each answer, in the asker's loop."""


class LoadQuestion:
    """One question to several members; made, waited for and answered in the asker's loop."""

    def __init__(self, nodes: tuple[NodeId, ...], is_enough: IsEnough) -> None:
        self.nodes = nodes
        self.answers: dict[NodeId, tuple[Seconds, Load]] = {}
        self._is_enough = is_enough
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether somebody has not answered."""
        return len(self.answers) < len(self.nodes)

    async def wait(self, timeout_s: Seconds) -> None:
        """Until there are answers enough, or time is up."""
        timer = self._loop.call_later(timeout_s, self._settle)
        try:
            await self._answered
        finally:
            timer.cancel()

    def tell(self, node: NodeId, rtt_s: Seconds, load: Load) -> None:
        """One has answered. For any thread; too late, it is as if it had not."""
        with contextlib.suppress(RuntimeError):  # the asker's loop has closed
            self._loop.call_soon_threadsafe(self._take, node, rtt_s, load)

    def _take(self, node: NodeId, rtt_s: Seconds, load: Load) -> None:
        if self._answered.done():
            return
        self.answers[node] = (rtt_s, load)
        if self._is_enough(self.answers) or not self.is_open:
            self._settle()

    def _settle(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)


class LoadQuestions:
    """The open questions, in the protocol's loop."""

    def __init__(self) -> None:
        self._asked: dict[NodeId, dict[LoadQuestion, Instant]] = {}

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._asked.values())

    def ask(self, node: NodeId, question: LoadQuestion, now: Instant) -> None:
        """A member is asked now."""
        self._asked.setdefault(node, {})[question] = now

    def answered(self, node: NodeId, rtt_s: Seconds, load: Load | None, asked_by: Instant) -> None:
        """A member has answered what it was asked up to `asked_by`; it may have told no load."""
        waiting = self._asked.get(node, {})
        for question in [q for q, at in waiting.items() if at <= asked_by]:
            self._drop(node, question)
            if load is not None:
                question.tell(node, rtt_s, load)

    def forget(self, question: LoadQuestion) -> None:
        """Nobody waits for its answers any more."""
        for node in question.nodes:
            self._drop(node, question)

    def _drop(self, node: NodeId, question: LoadQuestion) -> None:
        waiting = self._asked.get(node, {})
        waiting.pop(question, None)
        if not waiting:
            self._asked.pop(node, None)
