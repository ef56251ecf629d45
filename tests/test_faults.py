"""Faults say what was meant, and all of them are told."""

from typing import Annotated, Literal

import pytest
from msgspec import Meta

from meshd.faults import all_told, converted, meant

Word = Annotated[Literal["lan", "wan"], Meta(description="x")]
Few = Annotated[int, Meta(ge=0, le=3)]


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert meant("retires", ["retries", "policy"]) == "; did you mean retries?"
    assert meant("x", ["retries"]) == ""


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ("lam", Word, "'lam' is none of lan, wan; did you mean lan?"),
        (5, Word, "expected `str`, got `int`"),
        (9, Few, "expected `int` <= 3"),
        ("2", Few, "expected `int`, got `str`"),
    ],
)
def test_a_value_of_another_kind_is_told_by_what_may_stand_there(value, kind, said):
    with pytest.raises(ValueError) as caught:
        converted(value, kind)
    assert str(caught.value) == said


def test_texts_stand_for_numbers_only_where_they_may():
    assert converted("2", Few, strict=False) == 2
    assert converted("lan", Word) == "lan"


def test_all_faults_are_in_one_message():
    assert all_told(["a"]) == "the configuration is wrong: a"
    assert all_told(["a", "b"]) == "the configuration has 2 faults:\n  a\n  b"
