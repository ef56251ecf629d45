"""The rules of style hold in every file, and each rule catches what it was made to catch."""

from functools import cache
from pathlib import Path

import pytest
import repository
import tidy_rules
from tidy_rules import Module, Rule

LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 70
PLANTED: list[tuple[Rule, str, str]] = [
    (tidy_rules.file_is_short, "meshd/a.py", "x = 1\n" * 601),
    (tidy_rules.functions_are_short, "meshd/a.py", LONG_FUNCTION),
    (tidy_rules.opens_with_a_sentence, "meshd/a.py", "x = 1\n"),
    (tidy_rules.opens_with_a_sentence, "meshd/a.py", '"""No full stop"""\n'),
    (tidy_rules.opens_with_a_sentence, "meshd/a.py", '"""A sentence that\nwraps."""\n'),
    (tidy_rules.imports_are_absolute, "meshd/a.py", "from . import b\n"),
    (tidy_rules.init_only_re_exports, "meshd/gossip/__init__.py", "def f(): ...\n"),
    (tidy_rules.init_only_re_exports, "meshd/__init__.py", "class A: ...\n"),
    (tidy_rules.errors_are_not_swallowed, "meshd/a.py", "try: f()\nexcept: raise\n"),
    (tidy_rules.errors_are_not_swallowed, "meshd/a.py", "try: f()\nexcept Exception: pass\n"),
    (tidy_rules.errors_are_not_swallowed, "tests/a.py", "with suppress(Exception): f()\n"),
    (tidy_rules.only_output_prints, "meshd/cli/peers.py", "print(1)\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "async def f(): ...\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "def f(y): return [x async for x in y]\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "import random\nrandom.random()\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "from random import choice\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "open('x')\n"),
    (tidy_rules.tests_do_not_sleep, "tests/a.py", "time.sleep(0)\n"),
    (tidy_rules.tests_do_not_sleep, "tests/a.py", "await asyncio.sleep(0.1)\n"),
    (tidy_rules.tests_do_not_sleep, "tests/a.py", "from time import sleep\n"),
    (tidy_rules.tests_use_fakes, "tests/a.py", "from unittest import mock\n"),
    (tidy_rules.tests_use_fakes, "tests/a.py", "import unittest.mock\n"),
]
ALLOWED: list[tuple[Rule, str, str]] = [
    (tidy_rules.file_is_short, "meshd/a.py", "x = 1\n" * 600),
    (tidy_rules.functions_are_short, "meshd/a.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
    (tidy_rules.opens_with_a_sentence, "meshd/a.py", '"""A sentence.\n\nAnd more."""\n'),
    (tidy_rules.init_only_re_exports, "meshd/__init__.py", "def __getattr__(name): ...\n"),
    (tidy_rules.errors_are_not_swallowed, "meshd/a.py", "try: f()\nexcept OSError: pass\n"),
    (tidy_rules.only_output_prints, "meshd/cli/output.py", "print(1)\n"),
    (tidy_rules.pure_modules_stay_pure, "meshd/a.py", "import random\nrandom.Random(1)\n"),
    (tidy_rules.tests_do_not_sleep, "tests/a.py", "await asyncio.sleep(0)\n"),
    (tidy_rules.tests_do_not_sleep, "tests/a.py", "time.sleep(1)  # plays work: it blocks\n"),
]


@cache
def _modules(*, room: str | None = None) -> list[Module]:
    return [
        Module(path, (repository.ROOT / path).read_text("utf-8"), is_pure=repository.is_pure(path))
        for path in repository.python_files()
        if room in {None, path.parts[0]}
    ]


@pytest.mark.parametrize("rule", tidy_rules.RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    faults = [
        f"{module.path}:{line}: {what}" for module in _modules() for line, what in rule(module)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_fault_is_caught(rule, path, text):
    assert list(rule(Module(Path(path), text, is_pure=True)))


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_what_is_allowed_is_not_caught(rule, path, text):
    assert not list(rule(Module(Path(path), text, is_pure=True)))


def test_every_rule_has_a_planted_fault():
    assert {rule for rule, _, _ in PLANTED} == set(tidy_rules.RULES)


def test_nine_functions_in_ten_are_under_thirty_lines():
    lengths = [
        lines for module in _modules(room="meshd") for _, lines in tidy_rules.functions(module)
    ]
    long = sum(lines >= tidy_rules.FUNCTION_LINES_USUAL for lines in lengths)
    assert long <= len(lengths) / 10, f"{long} of {len(lengths)} functions"


def test_no_tracked_file_names_a_machine():
    faults = [
        f"{path}:{line}: {what}"
        for path in repository.tracked_files()
        for line, what in tidy_rules.names_no_machine(
            (repository.ROOT / path).read_text("utf-8", errors="ignore")
        )
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("place", ["/home" + "/jo/x", "/root" + "/x", "/Users" + "/Jo/x"])
def test_a_planted_machine_path_is_caught(place):
    assert list(tidy_rules.names_no_machine(f"see {place}"))
