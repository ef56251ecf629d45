"""A try that is sent and answered without a task: for calls that only want an answer.

Of a call that is done in a millisecond a task, its future and its turns of the loop are a good
part. What a try is entered in, and what it comes to, is the same either way: see
`meshd.routing.tries`. Only where it fails does its call go on in a task, as all others do.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from meshd.clock import Clock, Instant, Seconds
from meshd.errors import Code, MeshError, PeerError
from meshd.model import Address, NodeId
from meshd.routing.call import Call, Hedge, Running, Won
from meshd.routing.request import DelegateResult, peer_result
from meshd.routing.tries import Tries
from meshd.view import Peer

Answered = Callable[[Any], None]
"""Takes the end of a call, once: its result, or what it failed with."""


class Wire(Protocol):
    """A way to a peer that is open now; a channel of a link fits."""

    def begin(
        self, method: str, params: Any, on_answer: Callable[[Any, MeshError | None], None]
    ) -> int | None:
        """Send a call; `on_answer(result, error)` is called once, later, unless it is called off.

        Returns its number; None where it would have to wait, and nothing was sent.

        Raises:
            MeshError: it cannot be sent, or got lost meanwhile.
        """
        ...

    def call_off(self, request_id: int) -> None:
        """Nobody waits for that call any more."""
        ...


def no_wire(_target: Address) -> None:
    """There is none: every call has a task."""


class Direct(Running):
    """A try without a task. It bounds itself, where others have a `Scope` for that.

    `done(direct, won or error, now)` is called once, unless the call is cancelled before; it says
    what its caller is `answered`: the whole envelope. If `is_bare`, that is the result alone, and
    has been said by then.
    """

    __slots__ = (
        "_clock", "_done", "_is_off", "_loop", "_number", "_task", "_timer", "_tries", "_wire",
        "answered", "has_ended", "hedge", "is_bare",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        peer: Peer,
        remaining_s: Seconds,
        budget_s: Seconds,
        *,
        is_fair: bool,
        wire: Wire,
        tries: Tries,
        clock: Clock,
        done: "Callable[[Direct, Won | Exception, Instant], None]",
        answered: Answered,
        is_bare: bool,
    ) -> None:
        super().__init__(call, peer, remaining_s, budget_s, is_fair=is_fair)
        self.has_ended = False
        self._is_off = False
        self._wire = wire
        self._tries = tries
        self._clock = clock
        self._done = done
        self.answered = answered
        self.is_bare = is_bare
        self.hedge: Hedge | None = None
        """A second copy for later, of work that may run twice."""
        self._loop = asyncio.get_running_loop()
        self._number: int | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, me: NodeId, now: Instant) -> None:
        """Send it. Nothing may be awaited since the plan."""
        tries, fault = self._tries, None
        try:
            # Before it is entered anywhere: the peer works while all that is written down.
            params = self.call.work_params(me, self.budget_s)
            self._number = self._wire.begin("work", params, self._on_answer)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this call alone
            fault = error
        tries.enter(self, now)
        tries.sent(self, now)
        tries.enlist(self)
        if self._number is not None:
            self._timer = self._loop.call_later(self.remaining_s, self._end)
        elif fault is None:
            self._failed(PeerError(f"the link to {self.peer.name} is full", code=Code.BUSY))
        else:
            self._broke(fault)

    def abandon(self, why: str) -> None:
        """End it by the next turn of the loop, unless it is over by then."""
        if not self.has_ended:
            self.lost = why
            self._loop.call_soon(self._end)

    def cancel(self, msg: object = None) -> None:
        """Its caller has left."""
        self._is_off = True
        if self.hedge is not None:
            self.hedge.close()
        if self._task is not None:
            self._task.cancel(msg)
        elif not self.has_ended:
            self._over()
            now = self._clock.now()
            self._tries.dropped(self, now)
            self._tries.leave(self, now)

    def go_on(self, work: Coroutine[Any, Any, DelegateResult]) -> None:
        """Go on in a task; what that comes to is the call's end."""
        self._task = self._loop.create_task(work, name="meshd-delegate")
        self._task.add_done_callback(self._went_on)

    def _went_on(self, task: asyncio.Task[DelegateResult]) -> None:
        if self._is_off:
            if not task.cancelled():
                task.exception()  # nobody takes it, and asyncio need not log it
        elif task.cancelled():  # not by its caller, but something that it waited for was
            error = MeshError("the work was cancelled", code=Code.CANCELLED, definite=False)
            self.answered(error)
        elif (fault := task.exception()) is not None:
            self.answered(fault)
        else:
            envelope = task.result()
            self.answered(envelope["peer_result"]["result"] if self.is_bare else envelope)

    def _end(self) -> None:
        if not self.has_ended:
            self._over()
            self._failed(self.ended_early())

    def _on_answer(self, result: Any, error: MeshError | None) -> None:
        self._number = None
        if error is not None:
            self._failed(error)
            return
        try:
            answer = peer_result(result)
        except Exception as invalid:  # noqa: BLE001 - a peer's answer may be anything
            self._broke(invalid)
            return
        if self.is_bare:
            # As above: whoever waits has it before the rest is written down.
            self.answered(answer["result"])
        now = self._clock.now()
        self._left(self._tries.answered(self, result, answer, now), now)

    def _broke(self, fault: Exception) -> None:
        if isinstance(fault, MeshError):
            self._failed(fault)
        else:
            now = self._clock.now()
            self._tries.dropped(self, now)
            self._left(fault, now)

    def _failed(self, error: MeshError) -> None:
        now = self._clock.now()
        self._tries.failed(self, error, now)
        self._left(error, now)

    def _left(self, end: Won | Exception, now: Instant) -> None:
        self._over()
        try:
            self._tries.leave(self, now)
            self._done(self, end, now)
        except Exception as fault:
            if self.is_bare and isinstance(end, Won):
                raise  # its caller has its answer
            self.answered(fault)

    def _over(self) -> None:
        """Nothing of the wire, the clock or the peer concerns it any more."""
        if self.has_ended:
            return
        self.has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._tries.strike(self)
        if self._number is not None:
            self._wire.call_off(self._number)
