"""`meshd start`: run the daemon in the foreground and show what it is and whom it found."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from meshd.cli.failure import ReportedError, start_report
from meshd.cli.options import duration_or_zero, examples
from meshd.cli.session import Session, current
from meshd.errors import MeshError, UsageError

if TYPE_CHECKING:
    from meshd.config import Config, Loaded

Command = Callable[..., Any]
THREADS_END_WITHIN_S = 1.0

_FLAGS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--name",), {"help": "Label of this node. Default: the host's name."}),
    (("--mesh",), {"help": "Name of the mesh; nodes of other meshes are ignored."}),
    (("--bind",), {"metavar": "ADDR[:PORT]", "help": "Where to listen; port 0 picks a free one."}),
    (
        ("--advertise",),
        {
            "metavar": "ADDR[:PORT]",
            "help": "The address that others shall use (or one of each IP version, with a comma).",
        },
    ),
    (("--join",), {"metavar": "HOST[:PORT]", "multiple": True, "help": "A node of the mesh."}),
    (("--peers-file",), {"metavar": "FILE", "help": "File with one HOST[:PORT] a line."}),
    (("--mdns/--no-mdns",), {"default": None, "help": "Find nodes on the local network."}),
    (("--iface",), {"metavar": "NAME", "multiple": True, "help": "Interface for mDNS."}),
    (
        ("--capability",),
        {
            "metavar": "FILE.toml|PKG.MOD:OBJ",
            "multiple": True,
            "help": "Capabilities to offer.",
        },
    ),
    (
        ("--routing-policy-file",),
        {"metavar": "FILE", "help": "Policies by capability, read again when it changes."},
    ),
    (("--region",), {"metavar": "NAME", "help": "Where this node is, e.g. eu-west."}),
    (
        ("--label", "labels"),
        {"metavar": "K=V", "multiple": True, "help": "What this node is, for calls that ask."},
    ),
    (("--slots",), {"type": int, "metavar": "N", "help": "Tasks at a time; 0: one a CPU."}),
    (("--journal/--no-journal",), {"default": None, "help": "Keep accepted tasks on disk."}),
    (("--profile",), {"metavar": "lan|wan|local", "help": "Timing of the failure detector."}),
    (("--state-dir",), {"metavar": "DIR", "help": "Where the node keeps its key and memory."}),
    (("--config",), {"metavar": "FILE", "help": "Read this TOML file alone."}),
    (("--log-level",), {"metavar": "LEVEL", "help": "debug, info, warning or error."}),
    (("--log-format",), {"metavar": "text|json", "help": "Form of the log on stderr."}),
    (("--loop",), {"metavar": "auto|uvloop|asyncio", "help": "Event loop."}),
    (("--ready-file",), {"metavar": "FILE", "help": "File to write once the node serves."}),
    (
        ("--drain", "drain_s"),
        {"type": duration_or_zero, "metavar": "TIME", "help": "Time that a stop gives to tasks."},
    ),
]


def _start_options(function: Command) -> Command:
    for names, details in reversed(_FLAGS):
        function = click.option(*names, **details)(function)
    return function


@click.command(
    "start",
    short_help="Run the daemon in the foreground.",
    epilog=examples(
        "meshd start",
        "meshd start --name b --bind :0 --join 192.168.1.17",
        "meshd start --capability my.agents:translate --capability tools.toml",
    ),
)
@_start_options
@click.pass_context
@current
def command(session: Session, context: click.Context, /, **flags: Any) -> int:
    """Run the daemon in the foreground, until `meshd stop`, Ctrl-C or SIGTERM.

    Without any flag: the host's name, the mesh "default", port 6374, and mDNS to find others. Each
    flag can also be set in a TOML file or as MESHD_NAME, MESHD_MESH and so on; see `meshd config`.
    """
    from meshd.config import load_config

    _refuse_client_options(session, context, flags)
    loaded = load_config(flags)
    for warning in loaded.warnings:
        session.warn(warning)
    return _run(session, loaded, lambda: load_config(flags).config)


def _refuse_client_options(session: Session, context: click.Context, flags: dict[str, Any]) -> None:
    """Take --mesh from before the command too; refuse what would silently do nothing."""
    before = context.parent
    given = {
        name
        for name in ("node", "socket", "mesh")
        if before is not None
        and before.get_parameter_source(f"global_{name}") is click.core.ParameterSource.COMMANDLINE
    }
    for name, instead in (("node", "--name"), ("socket", "--name and --mesh")):
        if name in given:
            raise UsageError(
                f"--{name} chooses a running daemon; start makes a new one", hint=f"use {instead}"
            )
    if "mesh" in given and flags["mesh"] is None:
        flags["mesh"] = session.mesh


def _run(session: Session, loaded: "Loaded", reread: "Callable[[], Config]") -> int:
    from meshd.daemon.lifecycle import run

    config = loaded.config
    if session.verbosity >= 0 and config.log.format == "text":
        _announce(session, config)
    try:
        code: int = run(config, ready_file=config.node.ready_file or None, reread=reread)
    except (MeshError, OSError) as error:
        raise ReportedError(start_report(error, config.node.bind)) from error
    _end_for_sure(code)
    return code


def _end_for_sure(code: int) -> None:
    """End the process if a handler's thread will not: Python would wait for it for ever."""
    import threading

    give_up = time.monotonic() + THREADS_END_WITHIN_S
    me = threading.current_thread()
    for thread in threading.enumerate():
        if thread is not me and not thread.daemon:
            thread.join(max(0.0, give_up - time.monotonic()))
            if thread.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
                os._exit(code)


def _announce(session: Session, config: "Config") -> None:
    """Show the start screen as soon as the daemon answers, from a thread of its own."""
    import threading

    from meshd.cli.welcome import welcome
    from meshd.control import ControlClient, socket_path

    client = ControlClient(socket_path(config.node.mesh, config.node.name))
    palette = session.palette()
    threading.Thread(
        target=welcome, args=(client.call, palette, sys.stdout.write), name="welcome", daemon=True
    ).start()
