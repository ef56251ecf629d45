"""Capabilities by import path, and every way in which an import can fail."""

import sys

import pytest

from meshd.capability.loading import load_definitions, load_object
from meshd.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


TOOLS = """
from meshd.capability.definition import capability

@capability
def echo(text: str) -> str:
    return text

@capability
def shout(text: str) -> str:
    return text.upper()

class Kit:
    @capability
    def hammer(self) -> int:
        return 1

nested = Kit
"""


def test_functions_classes_and_modules_load_from_the_current_directory(folder):
    (folder / "mesh_tools.py").write_text(TOOLS)
    assert load_object("mesh_tools:echo")("a") == "a"
    assert load_object(" mesh_tools:Kit.hammer ").__name__ == "hammer"
    found = load_definitions(["mesh_tools", "mesh_tools:Kit"])
    assert [d.manifest.name for d in found] == ["echo", "shout", "hammer"]
    assert load_definitions([]) == ()


def test_packages_load(folder):
    (folder / "mesh_kit").mkdir()
    (folder / "mesh_kit" / "__init__.py").write_text("")
    (folder / "mesh_kit" / "tools.py").write_text(TOOLS)
    assert load_object("mesh_kit.tools:shout")("a") == "A"


def test_a_fresh_load_sees_the_changed_file(folder):
    file = folder / "mesh_changing.py"
    file.write_text("def f() -> int:\n    return 1\n")
    assert load_object("mesh_changing:f", fresh=True)() == 1
    file.write_text("def f() -> int:\n    return 20\n")
    assert load_object("mesh_changing:f")() == 1
    assert load_object("mesh_changing:f", fresh=True)() == 20


def test_a_fresh_load_forgets_what_the_file_no_longer_holds(folder):
    file = folder / "mesh_renamed.py"
    file.write_text("def old() -> int:\n    return 1\n")
    assert load_object("mesh_renamed:old")() == 1
    file.write_text("def other() -> int:\n    return 1\n")
    assert load_object("mesh_renamed:other", fresh=True)() == 1
    with pytest.raises(UsageError, match="has no 'old'"):
        load_object("mesh_renamed:old")


def test_a_fresh_load_that_fails_leaves_the_old_module(folder):
    file = folder / "mesh_breaking.py"
    file.write_text("def f() -> int:\n    return 1\n")
    assert load_object("mesh_breaking:f")() == 1
    file.write_text("def f() -> int:\n    return 1 +\n")
    with pytest.raises(UsageError, match="SyntaxError"):
        load_object("mesh_breaking:f", fresh=True)
    assert load_object("mesh_breaking:f")() == 1


@pytest.mark.parametrize("spec", ["", ":echo", "a-b:c", "tools/text.py", "a..b"])
def test_what_is_no_import_path_is_refused(folder, spec):
    with pytest.raises(UsageError, match="not an import path"):
        load_object(spec)


def test_a_missing_module_is_told_from_a_missing_import_in_it(folder):
    (folder / "mesh_needy.py").write_text("import mesh_absent_library\n")
    with pytest.raises(UsageError, match="module 'mesh_nowhere' is not found"):
        load_object("mesh_nowhere:f")
    with pytest.raises(UsageError, match=r"'mesh_nowhere.deep' \(no 'mesh_nowhere'\)"):
        load_object("mesh_nowhere.deep:f")
    with pytest.raises(UsageError, match=r"mesh_needy\.py line 1: ModuleNotFoundError"):
        load_object("mesh_needy:f")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nraise ValueError('no\\nway')\n", "line 2: ValueError: no"),
        ("def broken(:\n", "mesh_broken.py line 1: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("1 / 0\n", "line 1: ZeroDivisionError"),
    ],
)
def test_a_module_that_fails_says_where_and_why(folder, text, words):
    (folder / "mesh_broken.py").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_object("mesh_broken:f")
    assert str(folder) not in str(caught.value)
    assert "import mesh_broken" in caught.value.hint


def test_a_missing_attribute_suggests_the_nearest(folder):
    (folder / "mesh_tools.py").write_text(TOOLS)
    with pytest.raises(UsageError, match="has no 'ecko'") as caught:
        load_object("mesh_tools:ecko")
    assert caught.value.hint == "did you mean 'echo'?"
    with pytest.raises(UsageError) as caught:
        load_object("mesh_tools:zzz")
    assert "top" in caught.value.hint


def test_faults_of_all_paths_are_told_at_once(folder):
    (folder / "mesh_tools.py").write_text(TOOLS)
    with pytest.raises(UsageError) as caught:
        load_definitions(["mesh_tools:zzz", "mesh_tools:echo", "mesh_nowhere"])
    assert "zzz" in caught.value.message
    assert "mesh_nowhere" in caught.value.message
    with pytest.raises(UsageError, match="has no 'zzz'"):
        load_definitions(["mesh_tools:zzz"])


def test_one_name_from_two_paths_is_refused(folder):
    (folder / "mesh_one.py").write_text(TOOLS)
    (folder / "mesh_two.py").write_text(TOOLS)
    with pytest.raises(UsageError, match="two capabilities are named 'echo'"):
        load_definitions(["mesh_one:echo", "mesh_two:echo"])
