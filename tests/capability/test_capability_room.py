"""The decorator's public name is also a package's: both uses work, in any order of imports."""

import pytest

import meshd
import meshd.capability.manifest
from meshd import capability
from meshd.capability.definition import define
from meshd.errors import UsageError


def test_the_public_name_decorates_after_its_package_was_imported():
    @capability("shout", idempotent=True)
    def loud(text: str) -> str:
        return text.upper()

    assert define(loud).manifest.name == "shout"
    assert define(loud).manifest.idempotent


def test_the_public_name_decorates_without_parentheses():
    @meshd.capability
    def loud(text: str) -> str:
        return text.upper()

    assert define(loud).manifest.name == "loud"
    assert loud("a") == "A"


def test_the_package_remains_a_package():
    assert meshd.capability.manifest.Manifest(name="a").name == "a"


def test_a_wrong_name_is_refused_by_the_public_name():
    with pytest.raises(UsageError, match="not a valid name"):
        capability("a b")
