"""The examples do what their docstrings say."""

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import repository

from meshd.capability.declared import definitions_from_config
from meshd.capability.definition import collect
from meshd.errors import UsageError
from meshd.toml_file import read_capability_file

EXAMPLES = repository.ROOT / "examples"


def _example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stats = _example("stats")
demo_data = _example("demo_data")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("STATS_ROOT", str(tmp_path))
    return tmp_path


def test_csv_stats_agrees_with_the_figures_of_its_rows(root):
    demo_data.write_orders(root / "orders.csv", 50, random.Random(1))
    rows = [line.split(",") for line in (root / "orders.csv").read_text().splitlines()[1:]]
    amounts = [float(row[3]) for row in rows]
    found = stats.csv_stats(path="orders.csv")
    assert found["rows"] == 50
    assert set(found["columns"]) == {"order", "quantity", "amount", "weight_kg"}
    figures = stats.csv_stats(path="orders.csv", column="amount")["columns"]["amount"]
    assert figures["mean"] == pytest.approx(statistics.mean(amounts), abs=1e-6)
    assert figures["stdev"] == pytest.approx(statistics.stdev(amounts), abs=1e-6)
    assert (figures["min"], figures["max"]) == (min(amounts), max(amounts))


def test_csv_stats_takes_the_text_itself_and_skips_empty_cells():
    found = stats.csv_stats(content="a,b\n1,x\n,y\n3,z\n")
    assert found["rows"] == 3
    assert list(found["columns"]) == ["a"]
    figures = found["columns"]["a"]
    assert figures.pop("stdev") == pytest.approx(2**0.5, abs=1e-6)
    assert figures == {"count": 2, "mean": 2, "median": 2, "min": 1, "max": 3}


def test_text_stats_counts_all_texts_of_a_folder(root):
    (root / "letters").mkdir()
    (root / "letters" / "a.txt").write_text("One two\ntwo three's", "utf-8")
    (root / "letters" / "b.txt").write_text("TWO", "utf-8")
    (root / "letters" / "c.md").write_text("four", "utf-8")
    assert stats.text_stats(folder="letters", top=2) == {
        "files": 2, "lines": 3, "words": 5, "distinct": 3, "top": {"two": 3, "one": 1},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../secret.csv", "missing.csv", "."])
def test_stats_reads_nothing_outside_its_folder(root, name):
    (root.parent / "secret.csv").write_text("a\n1\n", "utf-8")
    with pytest.raises(UsageError):
        stats.csv_stats(path=name)


@pytest.mark.parametrize(
    ("work", "given"),
    [
        ("csv_stats", {}),
        ("csv_stats", {"path": "a", "content": "b"}),
        ("csv_stats", {"content": "a\n1\n", "column": "b"}),
        ("text_stats", {}),
        ("text_stats", {"content": "a", "top": -1}),
    ],
)
def test_stats_refuses_what_makes_no_sense(work, given):
    with pytest.raises(UsageError):
        getattr(stats, work)(**given)


def test_the_stats_may_be_repeated_on_another_node():
    assert {d.manifest.name: d.manifest.idempotent for d in collect(stats)} == {
        "csv_stats": True,
        "text_stats": True,
    }


def test_the_declared_tools_are_valid():
    (tool,) = definitions_from_config(read_capability_file(EXAMPLES / "tools.toml"))
    assert tool.manifest.name == "fingerprint"
    assert (EXAMPLES / tool.handler.argv[1]).is_file()


def _run(place: Path, name: str, *, stdin: str = "") -> str:
    # The path of a socket may have about a hundred bytes, and pytest's own may be long.
    with tempfile.TemporaryDirectory(prefix="meshd-") as run:
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("MESHD_")},
                "PYTHONPATH": str(repository.ROOT),
                "XDG_STATE_HOME": str(place),
                "XDG_RUNTIME_DIR": run,
                "XDG_CONFIG_HOME": str(place),
                "MESHD_MESH": f"examples-{os.getpid()}",
                "MESHD_BIND": "127.0.0.1:0",
                "MESHD_MDNS": "false",
            },
            input=stdin, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_hello_greets(tmp_path):
    assert _run(tmp_path, "hello") == "Hello, mesh!\n"


@pytest.mark.slow
def test_the_pipeline_reports_on_its_text(tmp_path):
    lines = _run(tmp_path, "pipeline").splitlines()
    assert lines[0] == "17 words, mostly about: mesh (2), every (2), node (2)"
    assert lines[1].startswith("written by editor on pipeline")


@pytest.mark.slow
def test_the_translator_translates_words_and_lines(tmp_path):
    assert _run(tmp_path, "translator").splitlines() == [
        "bon matin", "guten Morgen", "guten Abend", "Welt",
    ]  # fmt: skip


@pytest.mark.no_cover
@pytest.mark.slow
def test_no_row_is_missed_where_one_of_three_workers_is_killed(tmp_path):
    first, second, third = _run(tmp_path, "etl").splitlines()
    assert first == "60 of 60 partitions, 10800 of 10800 rows"
    assert second.startswith("killed ada in the middle; ")
    assert third.startswith("done by ")
    assert "cleo" in third


@pytest.mark.slow
def test_the_fingerprint_speaks_json(tmp_path):
    found = json.loads(_run(tmp_path, "fingerprint", stdin='{"text": "hello"}'))
    assert found["bytes"] == 5
    assert found["sha256"].startswith("2cf24dba")
