"""The SDK's front door: offer functions to the mesh, and call what others offer.

```python
from meshd import Mesh

mesh = Mesh()

@mesh.agent("speaker")
def shout(text: str) -> str:
    return text.upper()

async with mesh:
    print(await mesh.call("shout", {"text": "hello"}))
```

With a daemon on this machine the program attaches to it; else it becomes a node itself.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import msgspec

from meshd.capability.definition import (
    TIMEOUT_DEFAULT_S,
    AgentDefinition,
    CapabilityDefinition,
    Worth,
    capability,
    collect,
)
from meshd.capability.manifest import Manifest
from meshd.clock import Seconds
from meshd.daemon.event_side import EventSide, carried, running_loop
from meshd.daemon.link import AttachedLink, EmbeddedLink, Link
from meshd.daemon.naming import program_name
from meshd.daemon.preferences import Preferences, params_of
from meshd.daemon.program_events import Query, Reply
from meshd.daemon.task_side import MeshTask, TaskSide, TaskStatus
from meshd.errors import NoDaemonError, UsageError
from meshd.happening import Event
from meshd.priority import PRIORITY_DEFAULT
from meshd.routing.custom import Cost, Policies
from meshd.routing.installed import GROUP
from meshd.routing.limits import DEADLINE_S, DEADLINE_UNNAMED_S_MAX
from meshd.sink import PartQueue, Sink
from meshd.telemetry.log import event, get_logger
from meshd.work.origin import ORIGIN

__all__ = [
    "Event", "Found", "Mesh", "MeshTask", "Query", "Reply", "TaskStatus", "capability",
]  # fmt: skip

GRACE_S: Seconds = 2.0
"""How much longer than the deadline the daemon may take to say that it has passed."""
NAME_TRIES = 16
OWN_POLICY = "own"
"""The name of a policy that was given as a function only."""

Target = TypeVar("Target", bound=Callable[..., Any] | type)
Answer = TypeVar("Answer")
logger = get_logger(__name__)


class Found(msgspec.Struct, frozen=True):
    """A capability that fits a query: how well (0..1), why, and who offers it."""

    capability: str
    score: float
    why: str
    description: str
    tags: tuple[str, ...]
    nodes: tuple[dict[str, Any], ...]


class Mesh(EventSide, TaskSide):
    """One program's place in the mesh.

    Use it as `async with Mesh() as mesh`, or in plain scripts as `with Mesh() as mesh` and the
    methods that end in `_sync`. What is offered before it starts is offered from the start; later
    offers are told at once.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        mesh: str | None = None,
        embed: bool | None = None,
        control: str | os.PathLike[str] | None = None,
        node: str | None = None,
        slots: int = 0,
        policy: str | Cost = "",
        **settings: Any,
    ) -> None:
        """Prepare; nothing is opened before the start.

        Args:
            name: the agent's name where a capability names none, and the node's if embedded.
            mesh: the mesh's name.
            embed: True makes this program a node of its own, False insists on a daemon; None
                attaches where a daemon runs, and else embeds (and logs which).
            control: the control socket of the daemon to attach to.
            node: the name of the daemon to attach to, where several run.
            slots: how many of its functions run at a time; 0 is one a CPU.
            policy: how to choose in calls and tasks that name no policy and, by affinity or
                difficulty, mean none: a name, or a cost function as `add_policy` takes it, which
                makes this program a node of its own. Of such a node it is the `routing_policy`.
            settings: further settings of an embedded node, by the names of `meshd start`'s flags
                (`bind="127.0.0.1:0"`, `join=["lab-b"]`, `mdns=False`).
        """
        if policy and "routing_policy" in settings:
            raise UsageError("policy and routing_policy say the same", hint="leave one out")
        if embed and (control is not None or node is not None):
            raise UsageError("an embedded node attaches to nobody: leave out control and node")
        self.name = name or program_name()
        self._link: Link | None = None
        self._mesh = mesh
        self._embed = embed
        self._control = None if control is None else os.fspath(control)
        self._node = node
        self._slots = slots
        self.policies = Policies()  # of one's own; see add_policy
        self._policy = policy if isinstance(policy, str) else self.add_policy(OWN_POLICY, policy)
        self._settings = settings
        self._named = name is not None
        self._definitions: dict[str, CapabilityDefinition] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        super().__init__()

    # Offering

    def agent(
        self,
        name: str | None = None,
        *,
        capability_name: str | None = None,
        version: str = "1.0.0",
        description: str = "",
        tags: Iterable[str] = (),
        examples: Iterable[str] = (),
        idempotent: bool = False,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        concurrency: int = 0,
        rate_per_s: float = 0.0,
        executor: str = "",
        **worth: Unpack[Worth],
    ) -> Callable[[Target], Target]:
        """Offer a function, or a class's methods that are marked with `@capability`.

        A function becomes one capability, named like the function (or `capability_name`); what is
        decorated stays as it is. A class is made an object of, without arguments.

        Args:
            name: the agent's name; this program's if None.
            capability_name: another name than the function's.
            version: semantic version of the capability.
            description: what it does; the docstring's first line if empty.
            tags: words to find it by.
            examples: inputs in words.
            idempotent: running it twice does no harm; only then is it retried elsewhere.
            timeout_s: bound of one run.
            concurrency: runs at a time, within the slots; 0 is no bound of its own.
            rate_per_s: runs that begin a second; 0 is as many as are asked for.
            executor: where a plain function runs instead of a thread: "process", or
                "dask:tcp://HOST:PORT".
            worth: what it costs and what it is good for, as `capability` takes it.

        Raises:
            UsageError: the name is taken, or the function's types cannot be told as JSON Schema.
        """

        def decorate(target: Target) -> Target:
            if not isinstance(target, type):
                mark = capability(
                    capability_name, version=version, description=description, tags=tags,
                    examples=examples, idempotent=idempotent, timeout_s=timeout_s,
                    concurrency=concurrency, rate_per_s=rate_per_s, executor=executor,
                    **worth,
                )  # fmt: skip
                mark(target)
            agent_name = name or (target.__name__ if isinstance(target, type) else self.name)
            self.offer(*AgentDefinition.of(agent_name, target).capabilities)
            return target

        return decorate

    def offer(self, *sources: Any) -> tuple[str, ...]:
        """Offer decorated functions, objects, modules or definitions; returns their names.

        It may be called from any thread. Where the daemon that this program is attached to refuses
        (another program has the name), the next call says so.

        Raises:
            UsageError: there is nothing to offer, or a name is taken; nothing changed.
        """
        agent = AgentDefinition.of(self.name, *sources)
        taken = [
            d.manifest.name for d in agent.capabilities if d.manifest.name in self._definitions
        ]
        if taken:
            raise UsageError(f"already offered here: {', '.join(taken)}", hint="rename one")
        definitions = collect(agent)
        if self._link is not None:
            if running_loop() is self._loop:
                self._link.offer(definitions)
            else:
                self._wait(_offer(self._link, definitions))
        self._definitions |= {d.manifest.name: d for d in definitions}
        return tuple(d.manifest.name for d in definitions)

    def add_policy(self, name: str, cost: Cost) -> str:
        """Choose by a function of one's own, in calls that name it: `call(..., policy=name)`.

        `cost(peer, estimate)` is asked about a few peers of each call; the lowest is asked first.
        It runs in the node, so the program has to be one: without a daemon, or with `embed=True`.
        Returns the name.

        Raises:
            UsageError: this program is not a node of its own, or is running already; no policy can
                be called so; or `cost` is no function.
        """
        if self._embed is False or self._control is not None or self._node is not None:
            raise UsageError(
                "a policy of one's own runs in a node of one's own, and this program attaches",
                hint=f"use embed=True, or install it as an entry point {GROUP} for the daemon",
            )
        if self._link is not None:
            raise UsageError("policies are added before the start", hint="add it sooner")
        self.policies.add(name, cost)
        self._embed = True
        return name

    @property
    def definitions(self) -> tuple[CapabilityDefinition, ...]:
        """What is offered, in the order in which it was."""
        return tuple(self._definitions.values())

    # Life

    async def start(self) -> Self:
        """Attach, or become a node.

        Raises:
            NoDaemonError: a daemon is insisted on and none answers.
            UsageError: a setting is wrong, or several daemons run and none was chosen.
            OSError: the embedded node's address cannot be bound.
        """
        if self._link is not None:
            raise UsageError("this Mesh has been started already")
        self._loop = asyncio.get_running_loop()
        definitions = self.definitions
        if self._embed is not True:
            try:
                self._link = await AttachedLink.open(
                    path=self._control, mesh=self._mesh, node=self._node, name=self.name,
                    definitions=definitions, slots=self._slots,
                )  # fmt: skip
            except NoDaemonError:
                if self._embed is False or self._control is not None or self._node is not None:
                    raise
        if self._link is None:
            self._link = await self._become_node(definitions)
        self._usual_policy = self._policy if self._link.kind == AttachedLink.kind else ""
        late = tuple(d for d in self._definitions.values() if d not in definitions)
        if late:
            # Offered while this was starting.
            self._link.offer(late)
        await self._follow()
        event(logger, "info", "mesh_ready", how=self._link.kind, node=self._link.node_name)
        return self

    def use(self, link: Link) -> None:
        """Be started already, on a node that somebody runs with these definitions and policies."""
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._late = self._loop.create_task(self._follow_late(), name="meshd-follow")

    async def _become_node(self, definitions: tuple[CapabilityDefinition, ...]) -> Link:
        """Embed a node; where the name is in use on this machine, one with a number behind it."""
        flags = {"mesh": self._mesh, "slots": self._slots or None, **self._settings}
        if self._policy:
            flags["routing_policy"] = self._policy
        if "bind" not in flags and "MESHD_BIND" not in os.environ:
            flags["bind"] = ":0"
        for number in range(1, NAME_TRIES + 1):
            flags["name"] = self.name if number == 1 else f"{self.name[:60]}-{number}"
            try:
                return await EmbeddedLink.open(flags, definitions, self.policies)
            except UsageError as error:
                if self._named or not error.data.get("locked"):
                    raise
        raise UsageError(f"{NAME_TRIES} nodes named {self.name!r} run here", hint="name this one")

    async def stop(self) -> None:
        """Finish what runs, and leave. Idempotent."""
        link, self._link = self._link, None
        await self._program.stop()
        if link is not None:
            await link.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def serve(self) -> None:
        """Serve what is offered until cancelled; starts if need be, and stops at the end."""
        started_here = self._link is None
        if started_here:
            await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if started_here:
                await self.stop()

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM: the last line of a program that only offers."""

        async def serve() -> None:
            me = asyncio.current_task()
            assert me is not None
            # Signals come to the main thread alone; elsewhere whoever ends the loop ends this.
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
            await self.serve()

        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(serve())

    # Calling

    async def call(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - the field's name on the wire and in the manifest
        *,
        deadline_s: Seconds | None = None,
        to: str = "",
        policy: str = "",
        idempotency_key: str = "",
        priority: int = PRIORITY_DEFAULT,
        fallback: Iterable[str] = (),
        wait: bool = False,
        offers: int = 0,
        **preferences: Unpack[Preferences],
    ) -> Any:
        """Have the best node do it, and return the result alone.

        Args:
            capability: its name.
            input: JSON values; for Python functions an object of their parameters.
            deadline_s: give up after this long; else as the node is configured (30 s), and in a
                handler after 30 s or what is left of its own caller's time.
            to: a node's name or id, to insist on it.
            policy: how to choose, if not as the node is configured.
            idempotency_key: a repeated key returns the first result.
            priority: 1 .. 5, the most urgent.
            fallback: capabilities to try with the same input where nobody can do this one.
            wait: until the deadline, for somebody who can, instead of failing at once.
            offers: ask so many candidates (up to 4) for a bid, and take the best.
            preferences: what is asked of whoever does it: `version`, `tags`, `where`, `region`,
                `labels`, `difficulty`, `budget_usd`, `affinity`; see `Preferences`.

        Raises:
            NoCandidateError, BusyError, DeadlineError, PeerError, UsageError: see `delegate`.
        """
        params = params_of(
            preferences, policy, self._usual_policy, to=to, idempotency_key=idempotency_key,
            priority=priority, fallback=list(fallback), wait=wait, offers=offers,
        )  # fmt: skip
        params |= {"capability": capability, "input": input}
        return await self._place("call", params, deadline_s, None)

    async def delegate(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - the field's name on the wire and in the manifest
        *,
        deadline_s: Seconds | None = None,
        to: str = "",
        policy: str = "",
        idempotency_key: str = "",
        priority: int = PRIORITY_DEFAULT,
        fallback: Iterable[str] = (),
        wait: bool = False,
        offers: int = 0,
        explain: bool = False,
        sink: Sink | None = None,
        **preferences: Unpack[Preferences],
    ) -> dict[str, Any]:
        """As `call`, but the whole envelope: who did it, how long it took, what was tried.

        `sink` takes partial results and progress; `stream` is the easy way to them.

        Raises:
            NoCandidateError: nobody offers it, or nobody may be asked now.
            BusyError: all who offer it are busy for too long.
            DeadlineError: time ran out.
            UsageError: the input does not fit.
            PeerError: it failed; `definite` says whether it surely had no effect.
        """
        params = params_of(
            preferences, policy, self._usual_policy, to=to, idempotency_key=idempotency_key,
            priority=priority, fallback=list(fallback), wait=wait, offers=offers, explain=explain,
        )  # fmt: skip
        params |= {"capability": capability, "input": input}
        answer: dict[str, Any] = await self._place("delegate", params, deadline_s, sink)
        return answer

    async def _place(
        self, method: str, params: dict[str, Any], deadline_s: Seconds | None, sink: Sink | None
    ) -> Any:
        """`call` or `delegate`, on the way and in the time of the work that it is made in."""
        origin = ORIGIN.get()
        if origin.deadline is not None and self._link is not None:
            left_s = origin.deadline.remaining(self._link.clock.now())
            deadline_s = min(DEADLINE_S if deadline_s is None else deadline_s, left_s)
        if deadline_s is not None:
            params["deadline_ms"] = max(1.0, deadline_s * 1_000)
        if origin.hops:
            params["hops"] = list(origin.hops)
        wait_s = GRACE_S + (DEADLINE_UNNAMED_S_MAX if deadline_s is None else deadline_s)
        return await self._request(method, params, wait_s, sink)

    async def stream(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - the field's name on the wire and in the manifest
        *,
        on_progress: Callable[[float | None, str], None] | None = None,
        **choices: Any,
    ) -> AsyncIterator[Any]:
        """Have the best node do it, and take its partial results as they come.

        A capability that has none gives its result as the only part. Leaving the loop cancels the
        work. Once a part has come, no other node is tried.

        Args:
            capability: its name.
            input: as for `call`.
            on_progress: called with fraction (0 .. 1, or None) and message.
            choices: `deadline_s` (for all of it), `to`, `policy`, `priority` and others of `call`.

        Raises:
            MeshError: as `delegate` does, at the part that does not come.
        """
        parts = PartQueue(on_progress)
        work = self.delegate(capability, input, **choices, sink=parts)
        async for part in parts.of(work, lambda envelope: envelope["peer_result"]["result"]):
            yield part

    async def discover(
        self, query: str, *, tags: Iterable[str] = (), min_score: float = 0.1, limit: int = 5
    ) -> list[Found]:
        """Capabilities that fit a text, best first; answered without asking anybody."""
        params = {"query": query, "tags": list(tags), "min_score": min_score, "limit": limit}
        answer = await self._request("discover", params)
        return [msgspec.convert(match, Found) for match in answer["matches"]]

    async def peers(self) -> list[dict[str, Any]]:
        """The rows of `meshd peers`."""
        rows: list[dict[str, Any]] = (await self._request("peers", {}))["nodes"]
        return rows

    async def manifest(self, capability: str) -> Manifest:
        """Everything about a capability, schemas included.

        Raises:
            NoCandidateError: nobody offers it.
        """
        answer = await self._request("capabilities", {"name": capability})
        shape = {k: v for k, v in answer["capabilities"][0].items() if k != "nodes"}
        return msgspec.convert(shape, Manifest)

    async def _request(
        self, method: str, params: Any, timeout_s: Seconds = 10.0, sink: Sink | None = None
    ) -> Any:
        if self._link is None:
            raise UsageError(
                "this Mesh is not started", hint="use it in `async with mesh:` or `with mesh:`"
            )
        return await self._link.request(method, params, timeout_s, sink)

    # The same for scripts

    def __enter__(self) -> Self:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="meshd-sdk", daemon=True)
        self._thread.start()
        self._loop = loop
        try:
            self._wait(self.start())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._wait(self.stop())
        finally:
            self._end_thread()

    def _end_thread(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run `work` in this Mesh's loop, from another thread."""
        loop = self._loop
        if loop is None or running_loop() is loop:
            work.close()
            why = "is not started" if loop is None else "runs in this very loop"
            raise UsageError(f"this Mesh {why}", hint="use `with mesh:`, or await the other method")
        return asyncio.run_coroutine_threadsafe(carried(work), loop).result()

    def call_sync(self, capability: str, input: Any = None, **choices: Any) -> Any:  # noqa: A002 - see call
        """`call` for code that does not await."""
        return self._wait(self.call(capability, input, **choices))

    def stream_sync(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - see call
        **choices: Any,
    ) -> Iterator[Any]:
        """`stream` for code that does not await."""
        parts = self.stream(capability, input, **choices)
        try:
            while (part := self._wait(_next(parts))) is not _END:
                yield part
        finally:
            self._wait(_close(parts))

    def delegate_sync(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - see call
        **choices: Any,
    ) -> dict[str, Any]:
        """`delegate` for code that does not await."""
        return self._wait(self.delegate(capability, input, **choices))

    def discover_sync(self, query: str, **choices: Any) -> list[Found]:
        """`discover` for code that does not await."""
        return self._wait(self.discover(query, **choices))

    def peers_sync(self) -> list[dict[str, Any]]:
        """`peers` for code that does not await."""
        return self._wait(self.peers())


_END = object()


async def _next(parts: AsyncIterator[Any]) -> Any:
    return await anext(parts, _END)


async def _close(parts: AsyncIterator[Any]) -> None:
    if isinstance(parts, AsyncGenerator):
        await parts.aclose()


async def _offer(link: Link, definitions: tuple[CapabilityDefinition, ...]) -> None:
    link.offer(definitions)
