"""What one run of the command line shares: the global options, the daemon, the output streams."""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from meshd.cli.output import Palette, escape, json_text, wants_color

if TYPE_CHECKING:
    from meshd.control import ControlClient

REQUEST_TIMEOUT_S = 10.0


class Session:
    """The global options, and lazily the control client that they select."""

    def __init__(self) -> None:
        self.node: str | None = None
        self.mesh: str | None = None
        self.socket: str | None = None
        self.color = "auto"
        self.verbosity = 0
        self._client: ControlClient | None = None

    @property
    def client(self) -> "ControlClient":
        """The control client of the chosen daemon.

        Raises:
            NoDaemonError: none runs.
            UsageError: several run and none was chosen.
        """
        if self._client is None:
            from meshd.control import ControlClient, choose_socket

            chosen = choose_socket(path=self.socket, mesh=self.mesh, name=self.node)
            self._client = ControlClient(chosen.path)
        return self._client

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        """Call one method of the daemon.

        Raises:
            MeshError: as the daemon answered, or the way to it failed.
        """
        return self.client.call(method, params or {}, timeout_s)

    def palette(self, stream: Any = None) -> Palette:
        """Colours as they are wanted on `stream` (default: stdout)."""
        stream = sys.stdout if stream is None else stream
        return Palette(enabled=wants_color(self.color, os.environ, is_tty=is_tty(stream)))

    def warn(self, text: str) -> None:
        """Tell of something odd but harmless: on stderr, always."""
        word = self.palette(sys.stderr).paint("warning:", "yellow")
        click.echo(f"{word} {escape(text)}", err=True, color=True)

    def note(self, text: str) -> None:
        """Tell people something beside the data: on stderr, silent under --quiet."""
        if self.verbosity >= 0:
            painted = self.palette(sys.stderr).paint(text, "dim")
            click.echo(painted, err=True, color=True)


current = click.make_pass_decorator(Session, ensure=True)


def is_tty(stream: Any) -> bool:
    """Whether `stream` is a terminal. Closed streams are none."""
    try:
        return bool(stream.isatty())
    except ValueError:
        return False


def emit(lines: Iterable[str]) -> None:
    """Write lines to stdout; a reader who has seen enough ends the program quietly."""
    text = "".join(f"{line}\n" for line in lines)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        raise click.exceptions.Exit(0) from None


def discard_stdout() -> None:
    """Send what is still buffered nowhere, so that closing stdout does not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def emit_json(value: Any) -> None:
    """Write a JSON document: indented on a terminal, one line elsewhere."""
    emit([json_text(value, indent=2 if is_tty(sys.stdout) else None)])


def with_schema(schema: str, result: Any) -> dict[str, Any]:
    """The daemon's result with a schema name in front, unless it already has one."""
    if isinstance(result, dict):
        return result if "schema" in result else {"schema": schema, **result}
    return {"schema": schema, "result": result}
