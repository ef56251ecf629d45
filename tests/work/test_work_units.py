"""Handlers say how many units their work took."""

import pytest
from work_fakes import shout

from meshd import charge
from meshd.capability.definition import capability
from meshd.errors import UsageError


@capability
def scan(pages: int) -> int:
    for _ in range(pages):
        charge(1.5)
    return pages


@capability
async def scan_async(pages: int) -> int:
    charge(pages)
    return pages


async def test_the_units_of_a_run_are_added_up(make):
    worker = make(scan, scan_async, shout)
    assert (await worker.run("scan", {"pages": 2})).units == 3.0
    assert (await worker.run("scan_async", {"pages": 7})).units == 7.0
    assert (await worker.run("scan_async", {"pages": 0})).units == 0.0


async def test_a_handler_that_says_nothing_took_no_units(make):
    assert (await make(shout).run("shout", {"text": "a"})).units is None


@pytest.mark.parametrize("units", [-1, float("nan"), float("inf")])
def test_units_that_make_no_sense_are_refused_where_they_are_said(units):
    with pytest.raises(UsageError, match="units must be"):
        charge(units)


def test_outside_of_handlers_it_does_nothing():
    charge(3)
