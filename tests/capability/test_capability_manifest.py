"""Manifests within their bounds, and the summaries that gossip carries of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.capability.manifest import (
    SUMMARY_DESCRIPTION_CHARS_MAX,
    CapabilitySummary,
    Manifest,
    check_manifest,
    decode_manifest,
    encode_manifest,
    encode_summary,
    summarise,
    told_fields,
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
    with pytest.raises(UsageError, match="whole number"):
        check_manifest(Manifest(name="a", concurrency=1.5))
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


class OldSummary(msgspec.Struct, frozen=True, array_like=True):
    """What a node of version 0.1 reads and writes."""

    name: str
    version: str
    idempotent: bool
    agent: str
    description: str
    tags: tuple[str, ...]
    digest: bytes


PRICED = Manifest(
    name="a", cost_usd_per_call=0.01, cost_usd_per_unit=0.5, unit="page", proficiency=0.9,
    attributes={"warehouse": ("A", "B"), "gpu": "a100"},
)  # fmt: skip


def test_prices_skill_and_attributes_out_of_bounds_are_named():
    with pytest.raises(UsageError) as caught:
        check_manifest(
            Manifest(
                name="a", cost_usd_per_call=-1.0, cost_usd_per_unit=float("nan"), unit="u" * 17,
                proficiency=1.5,
                attributes={
                    "a b": "x", "many": ("v",) * 65, "empty": "",
                    **dict.fromkeys(map(str, range(14)), "x"),
                },
            )
        )  # fmt: skip
    for words in (
        "cost_usd_per_call must be", "cost_usd_per_unit must be", "unit is longer",
        "proficiency must be", "attribute 'a b'", "more than 64 values", "attribute 'empty'",
        "more than 16 attributes",
    ):  # fmt: skip
        assert words in caught.value.message
    assert check_manifest(PRICED) is PRICED


def test_a_call_costs_its_own_price_and_that_of_its_units():
    assert summarise(PRICED).cost_usd(3.0) == pytest.approx(1.51)
    assert summarise(Manifest(name="a")).cost_usd() == 0.0


def test_a_capability_that_says_nothing_new_is_written_as_by_older_nodes():
    plain = Manifest(name="a", description="d", tags=("t",))
    summary = summarise(plain)
    old = OldSummary(*(getattr(summary, name) for name in OldSummary.__struct_fields__))
    assert encode_summary(summary) == msgspec.msgpack.encode(old)
    assert b"proficiency" not in encode_manifest(plain)
    assert decode_manifest(encode_manifest(PRICED)) == PRICED


prices = st.sampled_from([0.0, 0.25, 7.0])


@given(
    manifest=st.builds(
        Manifest, name=st.just("a"), cost_usd_per_call=prices, cost_usd_per_unit=prices,
        proficiency=st.sampled_from([0.0, 0.5, 1.0]),
        attributes=st.dictionaries(st.sampled_from("xyz"), st.sampled_from(["1", ("2", "3")])),
    )
)  # fmt: skip
def test_a_summary_comes_back_as_it_went_and_older_nodes_read_their_part(manifest):
    summary = summarise(manifest)
    body = encode_summary(summary)
    assert msgspec.msgpack.decode(body, type=CapabilitySummary) == summary
    assert msgspec.msgpack.decode(body, type=OldSummary).digest == summary.digest
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert msgspec.convert(told_fields(manifest), Manifest) == manifest


def test_a_price_that_makes_no_sense_is_no_summary():
    for bad in (float("nan"), float("inf"), -0.5):
        body = encode_summary(msgspec.structs.replace(summarise(PRICED), cost_usd_per_call=bad))
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(body, type=CapabilitySummary)
