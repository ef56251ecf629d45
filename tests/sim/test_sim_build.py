"""Which build runs, and what must not be replaced in it."""

import msgspec._core
import pytest

from meshd.errors import UsageError
from meshd.gossip import swim
from sim import build


def test_a_checkout_is_pure_and_may_be_changed():
    assert build.name() == "pure"
    build.require_pure(swim)
    build.require_pure(swim.Swim)


@pytest.mark.parametrize("owner", [msgspec._core, msgspec._core.Struct.__class__])
def test_what_is_compiled_may_not_be_replaced(owner):
    with pytest.raises(UsageError) as told:
        build.require_pure(owner)
    assert "msgspec._core is compiled here" in str(told.value)
    assert "pure build" in (told.value.hint or "")
