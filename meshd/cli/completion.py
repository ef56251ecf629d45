"""`meshd completion`: completion of commands, options, node and capability names."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from meshd.cli.options import examples
from meshd.cli.session import Session, current, emit
from meshd.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    short_help="Complete commands in your shell.",
    epilog=examples(
        "meshd completion install",
        "source <(meshd completion bash)",
        "meshd completion fish > ~/.config/fish/completions/meshd.fish",
    ),
)
@click.argument("shell", type=click.Choice([*SHELLS, "install"]))
@current
def command(session: Session, *, shell: str) -> None:
    """Print the completion script of a shell, or install it for $SHELL."""
    if shell != "install":
        emit([script(shell)])
        return
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise UsageError(
            f"$SHELL is {name or 'not set'}; completion exists for {', '.join(SHELLS)}",
            hint="print it and place it yourself: meshd completion bash",
        )
    path, advice = place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(name) + "\n", encoding="utf-8")
    emit([f"installed {path}"])
    session.note(advice)


def script(shell: str) -> str:
    """The completion script of `shell`."""
    from meshd.cli.app import root

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(root, {}, "meshd", "_MESHD_COMPLETE").source()


def place(shell: str) -> tuple[Path, str]:
    """Where the user's `shell` looks for it, and what remains to be done."""
    home = Path.home()
    if shell == "fish":
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return base / "fish/completions/meshd.fish", "fish reads it at once"
    base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    if shell == "zsh":
        folder = base / "zsh/site-functions"
        advice = f"in ~/.zshrc, above compinit: fpath=({folder} $fpath); then open a new shell"
        return folder / "_meshd", advice
    advice = "open a new shell (needs the package bash-completion)"
    return base / "bash-completion/completions/meshd", advice
