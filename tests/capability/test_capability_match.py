"""Finding capabilities by name and by words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.capability.manifest import Manifest, summarise
from meshd.capability.match import QUERY_CHARS_MAX, match

OFFERED = [
    summarise(Manifest(name=name, description=text, tags=tags))
    for name, text, tags in (
        ("summarise_text", "Shorten a long document to its main points", ("text", "language")),
        ("csv_stats", "Mean, minimum and maximum of the columns of a table", ("csv", "numbers")),
        ("translate", "Translate text from one language to another", ("language",)),
        ("resize-image", "Scale a picture to a given width and height", ("image",)),
        ("transcribe", "Turn recorded speech into written text", ("audio", "text")),
        ("ocr", "Read the letters in a scanned page", ("image", "text")),
    )
]


def names(query: str, **options) -> list[str]:
    return [m.name for m in match(query, OFFERED, **options)]


def test_the_exact_name_scores_one_and_comes_first():
    first = match("Translate", OFFERED)[0]
    assert (first.name, first.score, first.why) == ("translate", 1.0, "exact name")


@pytest.mark.parametrize("query", ["csvStats", "CSV stats", "csv-stats"])
def test_other_spellings_of_a_name_are_nearly_exact(query):
    assert match(query, OFFERED)[0].score == pytest.approx(0.99)


def test_part_of_a_name_scores_seven_tenths_or_more():
    first = match("resize", OFFERED)[0]
    assert first.name == "resize-image"
    assert 0.7 <= first.score < 0.99
    assert "part of the name" in first.why


def test_a_name_within_the_query_counts_as_well():
    first = match("please translate this letter for me", OFFERED)[0]
    assert first.name == "translate"
    assert first.score >= 0.7
    assert "the query says" in first.why


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("average of table column", "csv_stats"),
        ("scaling pictures", "resize-image"),
        ("shortening documents", "summarise_text"),
        ("speech recorded", "transcribe"),
        ("scaned leters", "ocr"),
    ],
)
def test_inflections_and_slips_of_the_pen_are_forgiven(query, name):
    first = match(query, OFFERED)[0]
    assert first.name == name
    assert first.why.startswith("similar words: ")


def test_nothing_alike_is_an_answer():
    assert match("quantum zebra", OFFERED) == []
    assert match("", OFFERED) == []
    assert match("!!!", OFFERED) == []
    assert match("anything", []) == []


def test_short_words_do_not_match_as_parts():
    assert all(m.score < 0.7 for m in match("te", OFFERED, min_score=0.0))


def test_tags_narrow_and_stand_alone():
    assert names("text", tags=["AUDIO"], min_score=0.0) == ["transcribe"]
    assert names("", tags=["image"]) == ["ocr", "resize-image"]
    found = match("", OFFERED, tags=["image", "text"])
    assert [(m.name, m.score, m.why) for m in found] == [("ocr", 1.0, "has the tags image, text")]


def test_the_limit_holds():
    assert len(match("text", OFFERED, limit=2, min_score=0.0)) == 2
    assert match("text", OFFERED, limit=0) == []


def test_one_name_of_two_nodes_is_listed_once_with_its_better_score():
    other = summarise(Manifest(name="translate", description="French to German dictionary"))
    found = match("dictionary of French", [*OFFERED, other])
    assert [m.name for m in found] == ["translate"]
    assert "dictionary" in found[0].why


def test_two_texts_of_one_digest_are_told_apart():
    one = OFFERED[0]
    liar = summarise(Manifest(name="liar", description="Paints fences"))
    liar = type(liar)(*[*(getattr(liar, f) for f in liar.__struct_fields__[:-1]), one.digest])
    assert match("paints fences", [one])[:1] == []
    assert match("paints fences", [liar])[0].name == "liar"


def test_a_name_of_signs_alone_is_found_exactly():
    signs = summarise(Manifest(name="...", description="Waits"))
    assert match("...", [signs])[0].score == 1.0
    assert match("..", [signs]) == []


def test_names_with_similar_letters_and_no_similar_word_say_so():
    found = match("abcdefghijklmnop", [summarise(Manifest(name="zzabczzzz"))], min_score=0.0)
    assert [m.why for m in found] == ["similar letters"]


TEXT = st.text(alphabet="abcdeé _-.Z9", max_size=20)


@given(TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=5), st.randoms())
def test_scores_are_fractions_and_order_does_not_matter(query, texts, chance):
    summaries = [
        summarise(Manifest(name=name, description=text, tags=(text[:3],))) for name, text in texts
    ]
    shuffled = list(summaries)
    chance.shuffle(shuffled)
    found = match(query, summaries, min_score=0.0)
    assert found == match(query, shuffled, min_score=0.0)
    assert all(0.0 <= m.score <= 1.0 for m in found)
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)


def test_long_queries_are_cut():
    assert match("x" * QUERY_CHARS_MAX + " translate", OFFERED) == []
