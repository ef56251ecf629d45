"""The short ways of a node's methods, which need no task: for calls that want only their answer."""

from typing import TYPE_CHECKING

import msgspec

from meshd.clock import Seconds
from meshd.daemon.params import DEADLINE_DEFAULT_S, WorkParams
from meshd.daemon.short_work import ShortCall
from meshd.model import is_name
from meshd.priority import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from meshd.routing.request import DEADLINE_MS_MAX
from meshd.rpc.methods import Answered, Begun, CallContext, Params

if TYPE_CHECKING:
    from meshd.daemon.node import Node

_PLAIN = frozenset({"capability", "input", "deadline_ms", "priority"})
"""What `delegate` may be asked the short way; a deadline is any of `_NUMBERS`."""
_NUMBERS = frozenset({int, float})


class ShortWays:
    """They begin a call at once, or do nothing and say None: then its method has it."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def work(self, params: Params, context: CallContext, answered: Answered) -> ShortCall | None:
        """`work`, unless more than a run and its result is asked for."""
        try:
            asked = msgspec.convert(params, WorkParams)
        except msgspec.ValidationError:
            return None  # or it is said by position
        special = (
            asked.text is not None
            or asked.idempotency_key
            or asked.only_joins
            or context.sink is not None
        )
        if special or not asked.capability:
            return None
        work = ShortCall(self._node, answered)
        work.begin(
            asked.capability, asked.input, deadline_s=work_deadline_s(asked.deadline_ms, context),
            priority=asked.priority, hops=asked.hops,
        )  # fmt: skip
        return work

    def delegate(self, params: Params, context: CallContext, answered: Answered) -> Begun | None:
        """`delegate`, of a capability by name."""
        return self._begin(params, context, answered, is_bare=False)

    def call(self, params: Params, context: CallContext, answered: Answered) -> Begun | None:
        """The same, whose caller takes the result alone."""
        return self._begin(params, context, answered, is_bare=True)

    def _begin(
        self, params: Params, context: CallContext, answered: Answered, *, is_bare: bool
    ) -> Begun | None:
        if type(params) is not dict or context.sink is not None or not params.keys() <= _PLAIN:
            return None
        capability, ms = params.get("capability"), params.get("deadline_ms")
        priority = params.get("priority", PRIORITY_DEFAULT)
        if type(capability) is not str or type(priority) is not int or not is_name(capability):
            return None
        dispatcher = self._node.dispatcher
        if ms is None:
            asked_s = dispatcher.settings_for(capability).deadline_s
        elif type(ms) in _NUMBERS and 0.0 < ms <= DEADLINE_MS_MAX:
            asked_s = ms / 1_000
        else:
            return None
        if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
            return None
        limit_s = context.deadline_s
        return dispatcher.begin(
            capability, params.get("input"), answered,
            deadline_s=asked_s if limit_s is None else min(asked_s, limit_s),
            caller=context.who, priority=priority, is_bare=is_bare,
        )  # fmt: skip


def work_deadline_s(deadline_ms: float | None, context: CallContext) -> Seconds:
    """How long `work` may take."""
    asked = DEADLINE_DEFAULT_S if deadline_ms is None else deadline_ms / 1_000
    return asked if context.deadline_s is None else min(asked, context.deadline_s)
