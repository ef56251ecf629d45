"""Where functions run that block: threads, processes, or a cluster that this node is the door to.

All of them stand behind `concurrent.futures.Executor`. Which one is a text, `KIND` or
`KIND:ADDRESS`. Further kinds come by the entry point group `meshd.executors`: each is a function
from the address and the number of slots to an executor.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from meshd.clock import Seconds
from meshd.errors import PeerError, UsageError

GROUP = "meshd.executors"
OPEN_TIMEOUT_S: Seconds = 10.0
"""How long a cluster may take to answer."""

Factory = Callable[[str, int], Executor]


class Processes(Executor):
    """Processes of this machine, started when first needed.

    Unlike the standard library's pool one ends with a run that is cancelled or crashes, and a new
    one takes its place; the runs of the others go on.
    """

    def __init__(self, workers: int) -> None:
        # Imported here: most nodes need no process.
        from multiprocessing import get_context

        from pebble import ProcessPool

        # Forked ones would have this one's sockets, and its threads' locks as they were.
        self._pool: Any = ProcessPool(workers, context=get_context("spawn"))

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Future[Any]:
        """Run it; cancelling ends the process that does.

        Raises:
            RuntimeError: the pool is closed or broken.
        """
        running: Future[Any] = self._pool.schedule(function, arguments, options)
        return running

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - the interface's
        """End all processes, whatever they do if `cancel_futures`, and then wait for them."""
        (self._pool.stop if cancel_futures else self._pool.close)()
        if wait or cancel_futures:
            self._pool.join()


def _open_processes(address: str, slots: int) -> Executor:
    if address:
        raise UsageError(f"executor 'process:{address}': processes have no address")
    return Processes(slots)


class _Dask(Executor):
    """A Dask cluster, with its connection."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # Not pure: equal calls are still two calls.
        self._executor = client.get_executor(pure=False)

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **options: Any
    ) -> Future[Any]:
        """Run it on the cluster."""
        running: Future[Any] = self._executor.submit(function, *arguments, **options)
        return running

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT002 - the interface's
        """Close the connection; the cluster goes on."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


def _open_dask(address: str, slots: int) -> Executor:
    del slots  # the cluster has its own
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UsageError(
            "the executor 'dask' needs Dask", hint="install it: pip install 'meshd-gossip[dask]'"
        ) from error
    try:
        return _Dask(distributed.Client(address, timeout=OPEN_TIMEOUT_S, set_as_default=False))
    except (OSError, ValueError) as error:
        raise PeerError(
            f"the Dask scheduler {address or '(none given)'} cannot be reached: {error}"[:500],
            hint='name it as in executor="dask:tcp://10.0.0.5:8786", and see that it runs',
        ) from error


_KINDS: dict[str, Factory] = {"process": _open_processes, "dask": _open_dask}


class Pools:
    """The executors of one worker: its threads, and others, each opened when first needed."""

    def __init__(self, threads: Executor, slots: int) -> None:
        self.threads = threads
        self._slots = slots
        self._opened: dict[str, asyncio.Future[Executor]] = {}

    async def get(self, name: str) -> Executor:
        """The executor of this name, opened if need be; one attempt at a time.

        Raises:
            MeshError: it cannot be had; definite.
        """
        found = self._opened.get(name)
        if found is None or _has_failed(found):
            opening = asyncio.to_thread(open_executor, name, self._slots)
            found = self._opened[name] = asyncio.ensure_future(opening)
        return await asyncio.shield(found)

    async def submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a function there, in a new executor if the last one broke.

        Raises:
            MeshError: it cannot be had; definite.
            RuntimeError: it takes nothing any more.
        """
        pool = await self.get(name)
        try:
            return pool.submit(function, *arguments)
        except RuntimeError:
            broken = self._opened.pop(name, None)
            if broken is None:
                raise
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        return (await self.get(name)).submit(function, *arguments)

    async def close(self) -> None:
        """End them all. What runs in threads goes on until it ends."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        while self._opened:
            _, opening = self._opened.popitem()
            await asyncio.wait((opening,))
            if not _has_failed(opening):
                await asyncio.to_thread(opening.result().shutdown, cancel_futures=True)


def _has_failed(opening: asyncio.Future[Executor]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


def open_executor(name: str, slots: int) -> Executor:
    """The executor that a text names; blocks while it connects.

    Raises:
        UsageError: there is no such kind, or it is not installed.
        PeerError: it does not answer; definite.
    """
    kind, _, address = name.partition(":")
    return _factory(kind)(address, slots)


def check_executor(name: str) -> None:
    """See that a text names a kind of executor.

    Raises:
        UsageError: it does not.
    """
    _factory(name.partition(":")[0])


def _factory(kind: str) -> Factory:
    found = _KINDS.get(kind)
    if found is not None:
        return found
    others = {point.name: point for point in entry_points(group=GROUP)}
    if kind not in others:
        known = ", ".join(sorted({*_KINDS, *others}))
        raise UsageError(
            f"there is no executor {kind!r}",
            hint=f"there are: {known}; more come by the entry point group {GROUP}",
        )
    loaded: Factory = others[kind].load()
    return loaded
