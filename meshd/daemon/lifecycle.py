"""From a configuration to a running daemon, and back: loop, logs, signals, readiness."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from meshd.capability.declared import definitions_from_config
from meshd.capability.definition import CapabilityDefinition, collect
from meshd.capability.loading import load_definitions
from meshd.config import Config
from meshd.daemon.event_commands import EventCommands
from meshd.daemon.node import Node
from meshd.daemon.platform import LoopFactory, SystemPlatform
from meshd.daemon.routing_watch import Reloaded, RoutingWatch
from meshd.errors import MeshError, UsageError
from meshd.event_handler import handlers_from_config
from meshd.telemetry import log
from meshd.telemetry.log import event, get_logger
from meshd.toml_file import read_capability_file

logger = get_logger(__name__)


def run(
    config: Config,
    *,
    ready_file: str | os.PathLike[str] | None = None,
    reread: Callable[[], Config] | None = None,
) -> int:
    """Run a daemon until it is asked to stop; returns the exit code.

    `reread` is asked for the configuration again at each reload, which takes capabilities, handlers
    and routing from it; without it those of `config` are loaded anew.

    Raises:
        UsageError: it could not be started; every fault of the capabilities is listed.
        OSError: its address cannot be bound.
    """
    log.configure(level=config.log.level, form=config.log.format)
    factory = loop_factory(config.node.loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(config, factory, ready_file, reread or (lambda: config)))


def loop_factory(name: str) -> LoopFactory:
    """The event loop that is asked for; `auto` takes uvloop where it is installed.

    Raises:
        UsageError: uvloop is asked for and missing.
    """
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError as error:
        if name == "uvloop":
            raise UsageError("uvloop is not installed", hint="use --loop asyncio") from error
        return asyncio.new_event_loop
    made: LoopFactory = uvloop.new_event_loop
    return made


def definitions_of(config: Config, *, fresh: bool = False) -> tuple[CapabilityDefinition, ...]:
    """Everything that the configuration says to serve.

    Raises:
        UsageError: one error lists the faults of all of it.
    """
    found: list[CapabilityDefinition] = []
    faults: list[UsageError] = []

    def take(load: Callable[[], tuple[CapabilityDefinition, ...]]) -> None:
        try:
            found.extend(load())
        except UsageError as error:
            faults.append(error)

    take(lambda: definitions_from_config(config.capability))
    for spec in config.node.capability:
        if spec.endswith(".toml"):
            take(lambda s=spec: definitions_from_config(read_capability_file(Path(s))))  # type: ignore[misc]
        else:
            take(lambda s=spec: load_definitions([s], fresh=fresh))  # type: ignore[misc]
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise UsageError(f"{len(faults)} capabilities cannot be served:{lines}")
    return collect(found) if found else ()


def reload_all(node: Node, commands: EventCommands, routing: RoutingWatch) -> Reloaded:
    """Take capabilities, handlers and routing from the configuration as it is now, or none of it.

    Raises:
        UsageError: some of it is wrong, or an attached program has a name of it; nothing changed.
    """
    fresh = routing.read()
    definitions = definitions_of(fresh, fresh=True)
    handlers = handlers_from_config(fresh.handler)
    routing.check(fresh.routing)
    commands.check(handlers)
    changed = node.worker.replace(definitions)  # the last that may fail, and then changes nothing
    commands.use(handlers)
    return changed, routing.use(fresh.routing)


async def _serve(
    config: Config,
    factory: LoopFactory,
    ready_file: str | os.PathLike[str] | None,
    reread: Callable[[], Config],
) -> int:
    node = Node(config, definitions_of(config), SystemPlatform(factory))
    commands = EventCommands(node)
    routing = RoutingWatch(node, reread)

    node.reload_with(lambda: reload_all(node, commands, routing))
    if ready_file:
        _remove_ready(Path(ready_file))  # a killed run's would tell scripts that we serve already
    with _signals(node):
        try:
            await node.start()
            commands.use(handlers_from_config(config.handler))
            routing.start()
            if ready_file:
                _write_ready(Path(ready_file), node)
            _tell_systemd("READY=1")
            await node.stopping.wait()
            _tell_systemd("STOPPING=1")
        finally:
            await routing.stop()
            await commands.stop()
            await node.stop(node.stopping.drain_s)
            if ready_file:
                _remove_ready(Path(ready_file))
    event(logger, "info", "stopped", node=node.name)
    return 0


@contextlib.contextmanager
def _signals(node: Node) -> Iterator[None]:
    """SIGTERM and SIGINT stop (a second one at once), SIGHUP reloads."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if node.stopping.is_asked and not node.hurried.is_set():
            event(logger, "warning", "stopping_at_once", node=node.name)
            node.hurried.set()
        node.stopping.ask()

    def reload() -> None:
        try:
            changed, routing = node.reload()
        except MeshError as error:
            event(logger, "error", "reload_failed", reason=str(error))
        else:
            event(logger, "info", "reloaded", changed=",".join(changed),
                  routing=",".join(routing))  # fmt: skip

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _remove_ready(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _write_ready(path: Path, node: Node) -> None:
    """Tell scripts that the node serves: its address, in one line.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(f"{node.address}\n")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            f"the ready file {path} cannot be written: {error.strerror or error}",
            hint="choose a file in a directory that exists and is yours",
        ) from error


def _tell_systemd(message: str) -> None:
    """sd_notify, where systemd started us."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    if target.startswith("@"):
        target = "\0" + target[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(message.encode(), target)
