"""What the documentation says is so: its code runs, its commands, scripts and links exist."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import docs_blocks
import pytest
import repository
from docs_blocks import Block, Document

pytestmark = pytest.mark.no_cover

NOT_RUN: tuple[str, ...] = ()
"""The first lines of all ```python no-run blocks. Keep it short: what is not run goes stale."""

DOCUMENTS = docs_blocks.documents()
BLOCKS = [block for document in DOCUMENTS for block in document.blocks()]
PYTHON = [block for block in BLOCKS if block.language in {"python", "py"}]
RUN = [block for block in PYTHON if "no-run" not in block.words]
SHELL = [block for block in BLOCKS if block.language in {"sh", "shell", "bash", "console"}]

needs_cli = pytest.mark.skipif(
    importlib.util.find_spec("meshd.cli") is None, reason="the command line is not written yet"
)


def _environment(place: Path, run: str) -> dict[str, str]:
    """An environment in which a block touches nothing but `place` and the loopback interface.

    Sockets are in `run`: the path of one may not be long, and pytest's own directories are. It has
    no daemon to attach to, so that `Mesh()` in a ```python mesh block embeds a node.
    """
    for name in ("state", "config", "cache"):
        (place / name).mkdir(mode=0o700)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MESHD_")},
        "HOME": str(place),
        "PYTHONPATH": str(repository.ROOT),
        "PYTHONWARNINGS": "error",
        "XDG_STATE_HOME": str(place / "state"),
        "XDG_RUNTIME_DIR": run,
        "XDG_CONFIG_HOME": str(place / "config"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "MESHD_MESH": f"docs-{os.getpid()}",
        "MESHD_BIND": "127.0.0.1:0",
        "MESHD_MDNS": "false",
    }


def _run(block: Block, place: Path) -> subprocess.CompletedProcess[str]:
    work = place / "work"
    work.mkdir()
    script = work / "block.py"
    script.write_text(block.text, "utf-8")
    how = (
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
        if "pytest" in block.words
        else []
    )
    with tempfile.TemporaryDirectory(prefix="meshd-") as run:
        return subprocess.run(
            [sys.executable, *how, str(script)],
            cwd=work,
            env=_environment(place, run),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )


def _fault_of_command(words: list[str]) -> str:
    """Why `meshd ...` is not a command line that exists; empty if it is. Runs nothing."""
    from click.testing import CliRunner

    from meshd.cli.app import root

    # --help is eager: the parser still refuses unknown options and commands before it.
    arguments = words[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    result = CliRunner().invoke(root, [*arguments[:end], "--help"])
    if result.exit_code == 0:
        return ""
    return (
        result.output.strip().splitlines()[-1] if result.output.strip() else str(result.exception)
    )


def _commands_of_meshd(blocks: list[Block]) -> list[tuple[Block, list[str]]]:
    return [
        (block, words)
        for block in blocks
        for words in docs_blocks.commands(block)
        if words[0] == "meshd"
    ]


def _visible_commands() -> list[str]:
    import click

    from meshd.cli.app import root

    context = click.Context(root, info_name="meshd")
    found = ((name, root.get_command(context, name)) for name in root.list_commands(context))
    return [name for name, command in found if command and not command.hidden]


def _faults_of_links(document: Document) -> list[str]:
    faults = []
    for target in document.links():
        name, _, anchor = target.partition("#")
        file = (repository.ROOT / document.path.parent / name) if name else None
        if file is not None and not file.exists():
            faults.append(f"{document.path}: {target}: no such file")
        elif anchor and (file is None or file.suffix == ".md"):
            there = Document(document.path, file.read_text("utf-8")) if file else document
            if anchor not in there.anchors():
                faults.append(f"{document.path}: {target}: no such heading")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=str)
def test_python_block_runs(block, tmp_path):
    done = _run(block, tmp_path)
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_blocks_that_are_not_run_are_listed():
    left_out = [block for block in PYTHON if "no-run" in block.words]
    assert [block.text.splitlines()[0] for block in left_out] == list(NOT_RUN)


def test_python_blocks_carry_known_words_only():
    odd = [str(block) for block in PYTHON if block.words - {"no-run", "mesh", "pytest"}]
    assert not odd


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in {"toml", "json"}], ids=str)
def test_data_block_parses(block):
    assert (tomllib.loads if block.language == "toml" else json.loads)(block.text) is not None


def test_every_block_says_its_language():
    assert not [str(block) for block in BLOCKS if not block.language]


@needs_cli
def test_every_command_line_in_the_documentation_exists():
    told = ((block, words, _fault_of_command(words)) for block, words in _commands_of_meshd(SHELL))
    faults = [f"{block}: {' '.join(words)}: {fault}" for block, words, fault in told if fault]
    assert not faults, "\n".join(faults)


@needs_cli
def test_every_command_is_in_the_documentation():
    read_first = [d for d in DOCUMENTS if d.path.parts[0] in {"README.md", "docs"}]
    text = "\n".join(document.text for document in read_first)
    assert not [name for name in _visible_commands() if f"meshd {name}" not in text]


@needs_cli
@pytest.mark.parametrize("line", ["meshd no-such-command", "meshd peers --no-such-option"])
def test_a_planted_command_line_is_caught(line):
    block = Block(Path("a.md"), 1, "sh", frozenset(), f"X=1 {line} | cat\n")
    ((_, words),) = _commands_of_meshd([block])
    assert _fault_of_command(words)


def test_every_script_that_is_named_can_be_run():
    named = {name for document in DOCUMENTS for name in document.scripts()}
    assert named
    assert not [name for name in sorted(named) if not os.access(repository.ROOT / name, os.X_OK)]


def test_every_link_leads_somewhere():
    faults = [fault for document in DOCUMENTS for fault in _faults_of_links(document)]
    assert not faults, "\n".join(faults)


def test_a_planted_dead_link_is_caught():
    page = Document(Path("README.md"), "# A b\n[x](#a-b) [y](#c) [z](none.md) `[code](none.md)`\n")
    assert _faults_of_links(page) == [
        "README.md: #c: no such heading",
        "README.md: none.md: no such file",
    ]


@pytest.mark.slow
def test_a_block_that_fails_is_caught(tmp_path):
    done = _run(Block(Path("a.md"), 1, "python", frozenset(), "raise SystemExit(3)\n"), tmp_path)
    assert done.returncode == 3


def test_shell_blocks_split_into_commands():
    text = "A=1 sudo meshd start \\\n  --name 'a b' && meshd peers | jq . > out # end\n"
    block = Block(Path("a.md"), 1, "sh", frozenset(), text)
    assert docs_blocks.commands(block) == [
        ["meshd", "start", "--name", "a b"],
        ["meshd", "peers"],
        ["jq", "."],
    ]
    console = Block(Path("a.md"), 1, "console", frozenset(), "$ meshd x\noutput\n")
    assert docs_blocks.commands(console) == [["meshd", "x"]]


def test_blocks_are_found_with_their_words_and_lines():
    text = "a\n```python mesh\nx = 1\n```\n````text\n```\n````\n"
    found = list(Document(Path("a.md"), text).blocks())
    assert [(b.line, b.language, b.words, b.text) for b in found] == [
        (2, "python", frozenset({"mesh"}), "x = 1\n"),
        (5, "text", frozenset(), "```\n"),
    ]
