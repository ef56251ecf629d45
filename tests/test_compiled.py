"""The compiled wheel: the same protocol, to the last packet, and what it cannot do says so."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import repository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _missing() -> str:
    """What the build needs and this machine lacks."""
    if sysconfig.get_platform().startswith("win"):
        return "a compiled build on Windows was never tried"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        return f"no C compiler: {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no headers of Python"
    needed = [name for name in ("hatchling", "mypyc", "setuptools") if find_spec(name) is None]
    return f"not installed: {', '.join(needed)}" if needed else ""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A directory with the compiled build, made without network."""
    if reason := _missing():
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("compiled")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"),
            *(str(repository.ROOT), "--no-deps", "--no-build-isolation", "--no-index"),
            *("-w", str(place)),
        ],
        # What it does is the same however little the C compiler optimises.
        env={
            **os.environ,
            "HATCH_BUILD_HOOK_ENABLE_CUSTOM": "1",
            "MESHD_BUILD_OPT_LEVEL": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "installed")
    return place / "installed"


@pytest.fixture
def run(compiled, tmp_path):
    """Run Python with the compiled build before the checkout."""
    # Its files are not those whose coverage is asked for.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(compiled)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def passes(run):
    """Pass tests by the compiled build: from outside the checkout, which is not on the path."""

    def passes(choice: str, *names: str) -> str:
        done = run(
            *("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", choice),
            *("-c", str(repository.ROOT / "pyproject.toml"), "--rootdir", str(repository.ROOT)),
            *(str(repository.ROOT / "tests" / name) for name in names),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return passes


def test_pinned_runs_and_the_machines_tests_come_out_the_same(passes):
    names = ("broadcast", "codec", "loads", "members", "probe", "state", "suspicion", "timers")
    machines = (f"gossip/test_gossip_{name}.py" for name in names)
    passes("not slow and not net", *machines, "sim/test_sim_determinism.py")


def test_links_routing_and_workers_pass_their_tests(passes):
    ways = (f"daemon/test_{name}.py" for name in ("delegate_short", "short_work", "work_params"))
    told = passes("not slow", "rpc", "routing", "work", *ways)
    assert "what is compiled cannot be replaced" in told, "or else it was not compiled"


def modules() -> list[str]:
    hook = repository.pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    return list(hook["modules"])


@pytest.mark.parametrize("name", modules())
def test_nothing_is_awaited_while_an_exception_is_handled(name):
    """Compiled, such an await shows the exception to all other tasks (`sys.exc_info`)."""
    tree = ast.parse((repository.ROOT / name).read_text("utf-8"))
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    blocks = [block for t in tries for block in (*t.handlers, *t.finalbody)]
    waits = (ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [n.lineno for block in blocks for n in ast.walk(block) if isinstance(n, waits)]
    assert not found, f"{name}: lines {found}"


STRUCTS = """
import importlib, json, sys
import msgspec
found = {}
for name in sys.argv[1:]:
    for key, kind in vars(importlib.import_module(name)).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == name:
            config = kind.__struct_config__
            options = [option for option in dir(config) if option[0] != "_"]
            found[f"{name}.{key}"] = {each: repr(getattr(config, each)) for each in options}
print(json.dumps(found))
"""


def test_structs_have_the_options_that_their_source_gives(run):
    names = [name.removesuffix(".py").replace("/", ".") for name in modules()]
    words = ("-c", STRUCTS, *names)
    pure = subprocess.run(
        [sys.executable, *words], cwd=repository.ROOT, capture_output=True, text=True, check=True
    )
    expected, found = (json.loads(done.stdout) for done in (pure, run(*words)))
    assert len(expected) > 10
    assert found == expected


def test_whole_daemons_run_the_same(run):
    words = ("-m", "sim", "run", "delegate_split", "--duration", "10s", "--json")
    pure = subprocess.run(
        [sys.executable, *words], cwd=repository.ROOT, capture_output=True, text=True, check=True
    )
    digests = [json.loads(done.stdout)["digest"] for done in (pure, run(*words))]
    assert digests[0] == digests[1]


def test_the_bench_says_which_build_it_measured(run):
    done = run("-m", "meshd", "sim", "bench", "crash_100", "--json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert [row["build"] for row in document["rows"]] == ["compiled"]
    assert "compiled" in done.stderr


@pytest.mark.parametrize(
    "words", [("mutations", "twice", "--runs", "1"), ("experiment", "lifeguard", "--quick")]
)
def test_what_replaces_protocol_code_is_wrong_usage_there(run, words):
    done = run("-m", "meshd", "sim", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is compiled here: nothing in it can be replaced" in done.stderr
    assert "use the pure build" in done.stderr
    assert "Traceback" not in done.stderr
