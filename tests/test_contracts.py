"""The import contracts hold, name what exists and leave no room out; style and types are clean."""

import pytest
import repository


def _rooms_in_the_order() -> set[str]:
    layers = next(c for c in repository.contracts() if c["type"] == "layers")
    named = {name.strip(" ()") for layer in layers["layers"] for name in layer.split("|")}
    return named | set(layers["exhaustive_ignores"])


def test_every_room_has_its_place_in_the_order():
    rooms = {
        path.stem
        for path in (repository.ROOT / "meshd").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= _rooms_in_the_order()


def test_every_module_that_a_contract_names_exists():
    named = {
        name
        for contract in repository.contracts()
        for name in [*contract.get("source_modules", ()), *contract.get("forbidden_modules", ())]
        if name.startswith(("meshd", "sim"))
    }
    assert not [name for name in sorted(named) if repository.module_file(name) is None]


@pytest.mark.slow
def test_imports_keep_the_contracts():
    repository.run_tool("lint-imports", "--no-cache")


@pytest.mark.slow
def test_style_is_clean():
    repository.run_tool("ruff", "check", ".")


@pytest.mark.slow
def test_format_is_clean():
    repository.run_tool("ruff", "format", "--check", ".")


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first run has no cache
def test_types_are_clean():
    repository.run_tool("mypy")
