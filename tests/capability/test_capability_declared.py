"""Capabilities declared in TOML, and the checks of their input schemas."""

import sys
import tomllib

import pytest

from meshd.capability.declared import (
    CAPABILITIES_MAX,
    CapabilityConfig,
    definitions_from_config,
)
from meshd.capability.definition import CommandHandler, HttpHandler
from meshd.capability.validation import compile_schema
from meshd.errors import Code, UsageError

GOOD = """
[[capability]]
name = "stats"
command = ["python3", "stats.py"]
cwd = "tools"
env = { MODE = "fast" }
description = "Statistics of a table"
tags = ["csv", "numbers"]
idempotent = true
timeout_s = 5
input_schema = { type = "object", required = ["file"], properties = { file = { type = "string" } } }

[[capability]]
name = "web"
url = "http://127.0.0.1:8000/run"
agent = "browser"
"""


def faults(*entries) -> str:
    with pytest.raises(UsageError) as caught:
        definitions_from_config(entries)
    return caught.value.message


def test_commands_and_urls_are_read_from_toml():
    stats, web = definitions_from_config(tomllib.loads(GOOD)["capability"])
    assert stats.handler == CommandHandler(("python3", "stats.py"), "tools", {"MODE": "fast"})
    assert stats.manifest.tags == ("csv", "numbers")
    assert (stats.manifest.idempotent, stats.manifest.timeout_s) == (True, 5)
    assert web.handler == HttpHandler("http://127.0.0.1:8000/run")
    assert web.manifest.agent == "browser"
    assert web.check is None


def test_a_declared_schema_checks_inputs():
    stats, _ = definitions_from_config(tomllib.loads(GOOD)["capability"])
    assert stats.check is not None
    stats.check({"file": "a.csv"})
    with pytest.raises(UsageError, match="stats: file: 3 is not of type") as caught:
        stats.check({"file": 3})
    assert caught.value.code == Code.INVALID_PARAMS
    assert caught.value.definite
    with pytest.raises(UsageError, match="required"):
        stats.check({})
    with pytest.raises(UsageError, match="not JSON"):
        stats.check({"file": object()})


def test_prices_skill_and_attributes_are_declared_too():
    (found,) = definitions_from_config(
        tomllib.loads("""
            [[capability]]
            name = "scan"
            command = ["true"]
            cost_usd_per_call = 1
            unit = "page"
            proficiency = 0.8
            attributes = { warehouse = ["A", "B"], gpu = "a100" }
        """)["capability"]
    )
    manifest = found.manifest
    assert (manifest.cost_usd_per_call, manifest.unit, manifest.proficiency) == (1.0, "page", 0.8)
    assert manifest.attributes == {"warehouse": ("A", "B"), "gpu": "a100"}
    assert "proficiency must be 0 to 1" in faults(
        {"name": "a", "command": ["true"], "proficiency": 2.0}
    )


def test_structs_are_taken_as_well():
    (found,) = definitions_from_config([CapabilityConfig(name="a", command=("true",))])
    assert found.manifest.name == "a"


def test_every_fault_of_every_table_is_told_at_once():
    message = faults(
        {"name": "one", "comand": ["x"], "timeout_s": "5"},
        {"url": "http://localhost:1/"},
        {"name": "two words", "command": [], "allow_remote": True, "timeout_s": 0},
        {"name": "both", "command": ["x"], "url": "http://localhost:1/"},
        {"name": "ok", "command": ["x"], "agent": "two words"},
        {"name": "far", "url": "http://example.org/", "cwd": "x"},
        {"name": "far", "url": "ftp://127.0.0.1/"},
        {"name": "null", "command": ["a\0b"]},
        {"name": "much", "command": ["x"], "memory_mb": 2**21, "rate_per_s": -1},
    )
    for words in (
        "memory_mb must be 0 (no bound) to 1048576",
        "rate_per_s must be 0 (no bound) to 1e+06",
        "capability 1: unknown key 'comand' (did you mean 'command'?)",
        "capability 1: timeout_s: Expected `float`",
        "capability 2: name is missing",
        "capability 3 ('two words'): command is empty",
        "allow_remote goes with url",
        "'two words' is not a valid name",
        "capability 4 ('both'): it needs exactly one of",
        "capability 5 ('ok'): agent",
        "capability 6 ('far'): url 'http://example.org/' is on another machine",
        "cwd, env, streaming and memory_mb go with command",
        "capability 7 ('far'): url 'ftp://127.0.0.1/' must begin",
        "capability 8 ('null'): command, cwd and env must not hold null",
    ):
        assert words in message
    assert "timeout_s must be above 0" in faults({"name": "a", "command": ["x"], "timeout_s": 0})
    assert "unknown key 'zzz'" in faults({"name": "a", "zzz": 1})


def test_a_name_declared_twice_is_refused():
    entry = {"name": "a", "command": ["x"]}
    assert "declared twice" in faults(entry, entry)


def test_the_number_of_tables_is_bounded():
    entries = [{"name": f"c{i}", "command": ["x"]} for i in range(CAPABILITIES_MAX + 1)]
    assert "more than" in faults(*entries)
    assert len(definitions_from_config(entries[:-1])) == CAPABILITIES_MAX


@pytest.mark.parametrize(
    "url", ["http://localhost/a", "https://127.0.0.9:1/", "http://[::1]:80/x?y=1"]
)
def test_urls_of_this_machine_are_taken(url):
    (found,) = definitions_from_config([{"name": "a", "url": url}])
    assert found.handler == HttpHandler(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/",
        "http://localhost.example.org/",
        "http://127.0.0.1.example.org/",
        "http://127.0.0.1@example.org/",
        "http://[::ffff:10.0.0.1]/",
        "http:///x",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "",
        "file:///etc/hostname",
    ],
)
def test_other_urls_are_refused(url):
    assert "url" in faults({"name": "a", "url": url})


def test_another_machine_is_allowed_when_said_so():
    (found,) = definitions_from_config(
        [{"name": "a", "url": "https://example.org/x", "allow_remote": True}]
    )
    assert found.handler == HttpHandler("https://example.org/x")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/hostname"},
        {"type": "nonsense"},
    ],
)
def test_schemas_that_are_wrong_or_point_elsewhere_are_refused(schema):
    message = faults({"name": "a", "command": ["x"], "input_schema": schema})
    assert "input_schema is not usable" in message


def test_a_slow_pattern_is_checked_in_linear_time():
    check = compile_schema({"type": "string", "pattern": "^(a+)+$"}, "a")
    with pytest.raises(UsageError):
        check("a" * 5_000 + "!")


def test_a_schema_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    message = faults({"name": "a", "command": ["x"], "input_schema": {"type": "object"}})
    assert "pip install jsonschema-rs" in message
