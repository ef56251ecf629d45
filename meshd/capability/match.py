"""Finding capabilities by words: names, and TF-IDF over the letters of name, text and tags."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshd.capability.manifest import CapabilitySummary

QUERY_CHARS_MAX = 1_000
INDEXES_MAX = 4
"""How many sets of summaries keep their index: the newest, and a few views before it."""

GRAM_SIZES = (3, 4)
NAME_WEIGHT = 2
"""The name's words count twice: an author chooses them with most care."""

PARTIAL_SCORE = 0.7
PARTIAL_CHARS_MIN = 3
ALIKE_MIN = 0.4
WHY_WORDS_MAX = 3

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Match:
    """A capability that answers a query: score 0..1 (1.0: its exact name), and why."""

    name: str
    score: float
    why: str


@dataclass(frozen=True, slots=True)
class _Index:
    """Letter grams of every summary: each gram's weight, and where it occurs how much."""

    summaries: tuple[CapabilitySummary, ...]
    names: tuple[tuple[str, ...], ...]
    words: tuple[tuple[str, ...], ...]
    postings: dict[str, tuple[tuple[int, float], ...]]
    rarity: dict[str, float]
    unseen: float


def match(
    query: str,
    summaries: Iterable[CapabilitySummary],
    *,
    tags: Iterable[str] = (),
    min_score: float = 0.1,
    limit: int = 5,
) -> list[Match]:
    """The capabilities that fit `query` best, best first; none is an answer too.

    An exact name scores 1.0, a part of a name (or a name within the query) 0.7 and more, other
    words by the cosine of their 3- and 4-letter grams, which forgives inflections and slips of
    the pen. Only capabilities with all of `tags` count; with an empty query every one of them
    scores 1.0. One name is listed once. Equal scores are ordered by name.
    """
    wanted = frozenset(tag.casefold() for tag in tags)
    text = query[:QUERY_CHARS_MAX].strip()
    if not text and not wanted:
        return []
    index = _index(tuple(sorted(set(summaries), key=_order)))
    scored = _scores(text, index) if text else dict.fromkeys(range(len(index.summaries)), 1.0)
    best: dict[str, tuple[float, int, str]] = {}
    for at, cosine in scored.items():
        summary = index.summaries[at]
        if not wanted.issubset(tag.casefold() for tag in summary.tags):
            continue
        score, why = _judge(text, at, cosine, index) if text else (1.0, "")
        if score >= min_score and score > best.get(summary.name, (0.0, 0, ""))[0]:
            best[summary.name] = (score, at, why)
    tagged = f"has the tags {', '.join(sorted(wanted))}" if wanted else ""
    ranked = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))
    return [
        Match(
            name, round(score, 4), "; ".join(filter(None, (why or _alike(text, index, at), tagged)))
        )
        for name, (score, at, why) in ranked[: max(0, limit)]
    ]


def _judge(query: str, at: int, cosine: float, index: _Index) -> tuple[float, str]:
    """The score of one summary, and why where its name decides."""
    name = index.summaries[at].name
    if query.casefold() == name.casefold():
        return 1.0, "exact name"
    asked, named = _words(query), index.names[at]
    short, long = "".join(asked), "".join(named)
    if short == long and short:
        return 0.99, "the name in another spelling"
    if len(short) >= PARTIAL_CHARS_MIN and short in long:
        partial = PARTIAL_SCORE + 0.25 * len(short) / len(long)
        return max(partial, cosine), f"part of the name {name!r}"
    if len(long) >= PARTIAL_CHARS_MIN and set(named).issubset(asked):
        partial = PARTIAL_SCORE + 0.25 * len(long) / len(short)
        return max(partial, cosine), f"the query says {name!r}"
    return min(cosine, 0.95), ""


def _scores(query: str, index: _Index) -> dict[int, float]:
    """Cosines of the query with every summary that shares a gram or is named like it."""
    weights = {
        gram: (1.0 + math.log(count)) * index.rarity.get(gram, index.unseen)
        for gram, count in Counter(_grams(_words(query))).items()
    }
    # Grams that no summary has count in the length: a query about something else scores low.
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    totals: dict[int, float] = {}
    for gram, weight in weights.items():
        for at, part in index.postings.get(gram, ()):
            totals[at] = totals.get(at, 0.0) + weight * part
    found = {at: totals[at] / length for at in sorted(totals)}
    # Names too short for grams of their own are still found when they are spelt out.
    folded = query.casefold()
    for at, summary in enumerate(index.summaries):
        if at not in found and summary.name.casefold() == folded:
            found[at] = 1.0
    return found


@lru_cache(maxsize=INDEXES_MAX)
def _index(summaries: tuple[CapabilitySummary, ...]) -> _Index:
    """The index of a set of summaries.

    Kept by the summaries' whole content, not by their digests: those are a peer's own word, and
    two peers may say the same digest of different texts.
    """
    names = tuple(_words(summary.name) for summary in summaries)
    texts = tuple(_words(" ".join((s.description, *s.tags))) for s in summaries)
    counts = [
        Counter(_grams(name * NAME_WEIGHT + text)) for name, text in zip(names, texts, strict=True)
    ]
    seen: Counter[str] = Counter()
    for count in counts:
        seen.update(count.keys())
    rarity = {gram: _rarity(len(summaries), number) for gram, number in seen.items()}
    postings: dict[str, list[tuple[int, float]]] = {}
    for at, count in enumerate(counts):
        weights = {gram: (1.0 + math.log(n)) * rarity[gram] for gram, n in count.items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        for gram, weight in weights.items():
            postings.setdefault(gram, []).append((at, weight / length))
    return _Index(
        summaries=summaries,
        names=names,
        words=tuple(
            tuple(dict.fromkeys(name + text)) for name, text in zip(names, texts, strict=True)
        ),
        postings={gram: tuple(places) for gram, places in postings.items()},
        rarity=rarity,
        unseen=_rarity(len(summaries), 0),
    )


def _alike(query: str, index: _Index, at: int) -> str:
    """The words of a summary that look most like words of the query."""
    asked = [frozenset(_grams((word,))) for word in _words(query)]
    close: list[tuple[float, str]] = []
    for word in index.words[at]:
        grams = frozenset(_grams((word,)))
        best = max((_dice(grams, other) for other in asked), default=0.0)
        if best >= ALIKE_MIN:
            close.append((best, word))
    close.sort(key=lambda item: (-item[0], item[1]))
    if not close:
        return "similar letters" if query else ""
    return "similar words: " + ", ".join(word for _, word in close[:WHY_WORDS_MAX])


def _dice(one: frozenset[str], other: frozenset[str]) -> float:
    return 2.0 * len(one & other) / (len(one) + len(other)) if one and other else 0.0


def _rarity(documents: int, with_gram: int) -> float:
    """Smoothed inverse document frequency, above 0. Source: Sparck Jones 1972, smoothed."""
    return math.log((1 + documents) / (1 + with_gram)) + 1.0


def _words(text: str) -> tuple[str, ...]:
    """Words in lower case without accents; `csvStats`, `csv_stats` and `csv-stats` are two."""
    parted = _CAMEL.sub(" ", text)
    plain = unicodedata.normalize("NFKD", parted)
    bare = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return tuple(_WORD.findall(bare.casefold()))


def _grams(words: Sequence[str]) -> list[str]:
    """Runs of 3 and 4 letters of each word, its borders marked by a space."""
    found: list[str] = []
    for word in words:
        padded = f" {word} "
        for size in GRAM_SIZES:
            found.extend(padded[i : i + size] for i in range(len(padded) - size + 1))
    return found


def _order(summary: CapabilitySummary) -> tuple[str, str, bytes, str]:
    return summary.name, summary.version, summary.digest, summary.description
