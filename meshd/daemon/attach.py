"""Programs on this machine that lend their functions to the daemon over its control socket."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.capability.definition import CapabilityDefinition, RemoteHandler, named_for
from meshd.capability.manifest import Manifest, check_manifest
from meshd.clock import Seconds
from meshd.daemon.event_methods import EventMethods
from meshd.errors import UsageError
from meshd.model import check_name
from meshd.rpc.channel import Channel
from meshd.rpc.methods import CallContext
from meshd.sink import Sink
from meshd.telemetry.log import event, get_logger
from meshd.units import charge
from meshd.work.origin import ORIGIN

if TYPE_CHECKING:
    from meshd.daemon.node import Node

CAPABILITIES_PER_PROGRAM_MAX = 128
CANCEL_GRACE_S: Seconds = 0.5
"""What the program may take beyond a task's time to say itself that it is over."""

logger = get_logger(__name__)


class RegisterParams(msgspec.Struct, forbid_unknown_fields=True):
    """`register`: serve these under the name of `agent`, for as long as the link lasts."""

    agent: str
    capabilities: list[dict[str, Any]]


class Attachments:
    """All programs attached to one node."""

    def __init__(self, node: "Node", events: EventMethods) -> None:
        self._node = node
        self._events = events

    async def attach(self, channel: Channel) -> None:
        """Prepare the link of a new program."""

        async def register(params: RegisterParams, context: CallContext) -> dict[str, Any]:
            del context
            answer = self._register(channel, params)
            await self._node.described()
            return answer

        channel.methods.add("register", RegisterParams, register)
        channel.on_closed(self._detach)
        self._events.attach(channel)

    def _register(self, channel: Channel, params: RegisterParams) -> dict[str, Any]:
        """Offer what the program offers.

        Raises:
            UsageError: a manifest is wrong or a name is taken; nothing changed.
        """
        check_name(params.agent, "agent")
        if len(params.capabilities) > CAPABILITIES_PER_PROGRAM_MAX:
            raise UsageError(f"a program may offer {CAPABILITIES_PER_PROGRAM_MAX} capabilities")
        manifests = [check_manifest(_manifest(shape)) for shape in params.capabilities]
        metered = frozenset(m.name for m in manifests if m.cost_usd_per_unit)
        handler = RemoteHandler(self._caller(channel, metered), channel)
        definitions = [CapabilityDefinition(manifest, handler) for manifest in manifests]
        names = self._node.worker.add(named_for(params.agent, definitions))
        channel.context = replace(channel.context, caller=f"agent {params.agent}")
        if names:
            event(logger, "info", "attached", agent=params.agent, capabilities=",".join(names))
        return {"registered": list(names), "node": self._node.name}

    def _detach(self, channel: Channel) -> None:
        gone = self._node.worker.remove_owner(channel)
        if gone:
            event(logger, "info", "detached", capabilities=",".join(gone))

    def _caller(self, channel: Channel, metered: frozenset[str]) -> Any:
        """What runs a program's functions; those that are `metered` say how many units they took.

        A program that has a price by unit is new enough to know how.
        """

        async def call(capability: str, value: Any, timeout_s: Seconds, sink: Sink | None) -> Any:
            params = {
                "capability": capability,
                "input": value,
                "timeout_s": timeout_s,
                "hops": list(ORIGIN.get().hops),
            }
            if capability not in metered:
                return await channel.call("work", params, timeout_s + CANCEL_GRACE_S, sink=sink)
            params["tells_units"] = True
            told = await channel.call("work", params, timeout_s + CANCEL_GRACE_S, sink=sink)
            if told.get("units") is not None:
                charge(told["units"])
            return told.get("result")

        return call


def _manifest(shape: dict[str, Any]) -> Manifest:
    try:
        return msgspec.convert(shape, Manifest)
    except msgspec.ValidationError as error:
        name = shape.get("name")
        raise UsageError(f"the manifest of {name!r} is not valid: {error}") from error
