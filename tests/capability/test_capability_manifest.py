"""Manifests within their bounds, and the summaries that gossip carries of them."""

import pytest

from meshd.capability.manifest import (
    SUMMARY_DESCRIPTION_CHARS_MAX,
    Manifest,
    check_manifest,
    encode_manifest,
    summarise,
)
from meshd.errors import UsageError


def test_a_manifest_within_bounds_is_returned_as_it_is():
    manifest = Manifest(name="a", description="x" * 2_000, tags=("t" * 32,) * 16)
    assert check_manifest(manifest) is manifest


def test_every_field_out_of_bounds_is_named():
    manifest = Manifest(
        name="a",
        description="x" * 2_001,
        tags=("t" * 33,),
        timeout_s=0.0,
        concurrency=-1,
        input_schema={"description": "x" * 70_000},
    )
    with pytest.raises(UsageError) as caught:
        check_manifest(manifest)
    for words in ("description", "tags", "timeout_s", "concurrency", "larger than"):
        assert words in caught.value.message
    with pytest.raises(UsageError, match="tags"):
        check_manifest(Manifest(name="a", tags=("t",) * 17))


def test_a_summary_cuts_long_descriptions_and_joins_lines():
    summary = summarise(Manifest(name="a", description="one\n  two " + "x" * 500))
    assert summary.description.startswith("one two x")
    assert len(summary.description) == SUMMARY_DESCRIPTION_CHARS_MAX
    assert summarise(Manifest(name="a", description="short")).description == "short"


def test_the_digest_follows_the_content_and_not_the_order_of_keys():
    one = Manifest(name="a", input_schema={"x": 1, "y": 2})
    other = Manifest(name="a", input_schema={"y": 2, "x": 1})
    assert encode_manifest(one) == encode_manifest(other)
    assert summarise(one).digest == summarise(other).digest
    assert summarise(one).digest != summarise(Manifest(name="a")).digest
