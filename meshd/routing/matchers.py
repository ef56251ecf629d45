"""Conditions on what a capability is good for, as people write them: `warehouse in {A, B}`."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from meshd.capability.manifest import Attributes

CONDITIONS_MAX = 16
CONDITION_CHARS_MAX = 400
CHOICES_MAX = 64

_NAME = r"[A-Za-z0-9._-]{1,64}"
_SET = re.compile(rf"({_NAME})\s+(in|not\s+in)\s*\{{(.*)\}}")
_COMPARISON = re.compile(rf"({_NAME})\s*(==|=|!=|>=|<=|>|<)\s*(.+)")
_PRESENCE = re.compile(rf"(not\s+|!\s*)?({_NAME})")
_NOT_IN_VALUES = frozenset("{},\"'")
_NO = frozenset({"", "0", "false", "no", "off"})
_TOO_MANY = f"where: more than {CONDITIONS_MAX} conditions"
_FORMS = "write name = value, name != value, name in {A, B}, name not in {A, B}, name >= 8 or name"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on an attribute.

    Attributes:
        text: as it is told to people, and as it is read again.
        name: of the attribute.
        sign: `in`, `not in`, `>=`, `<=`, `>`, `<`, `is` (it is there and says no `no`) or `is not`.
        choices: of `in` and `not in`.
        bound: of the comparisons.
    """

    text: str
    name: str
    sign: str
    choices: frozenset[str] = frozenset()
    bound: float = field(default=0.0, compare=False)

    def matches(self, attributes: Attributes, labels: Mapping[str, str]) -> bool:
        """Whether what a capability says of itself, or else its node's labels, meets this.

        Of several values one must, and of `!=` and `not in` all must: that nothing is said meets
        these two and no others.
        """
        values = _values(self.name, attributes, labels)
        match self.sign:
            case "in":
                return not self.choices.isdisjoint(values)
            case "not in":
                return self.choices.isdisjoint(values)
            case "is":
                return not _NO.issuperset(value.lower() for value in values)
            case "is not":
                return _NO.issuperset(value.lower() for value in values)
            case _:
                return any(_holds(_number(value), self.sign, self.bound) for value in values)


def parse_matchers(texts: Collection[str]) -> tuple[tuple[Matcher, ...], list[str]]:
    """The conditions that these texts are, and what is wrong with the others, in sentences.

    A text may hold several, joined by `and`. Of too many none is read: they come from anybody, and
    reading them takes time.
    """
    if len(texts) > CONDITIONS_MAX:
        return (), [_TOO_MANY]
    found: list[Matcher] = []
    faults: list[str] = []
    for text in texts:
        for part in _parts(text):
            if len(found) + len(faults) >= CONDITIONS_MAX:
                return (), [*faults, _TOO_MANY]
            parsed = _parse(part)
            if isinstance(parsed, Matcher):
                found.append(parsed)
            else:
                faults.append(f"where {part[:80]!r}: {parsed}")
    return tuple(found), faults


def _parts(text: str) -> list[str]:
    """The conditions of one text; of one that is too long, that text alone."""
    if len(text) > CONDITION_CHARS_MAX:
        return [text]
    return re.split(r"\s+and\s+", text.strip(), maxsplit=CONDITIONS_MAX)


def _parse(text: str) -> Matcher | str:
    """One condition, or what is wrong with it."""
    if len(text) > CONDITION_CHARS_MAX:
        return f"longer than {CONDITION_CHARS_MAX} characters"
    if found := _SET.fullmatch(text):
        choices = [_bare(part) for part in found[3].split(",")]
        if not all(map(_is_value, choices)) or len(choices) > CHOICES_MAX:
            return f"braces hold 1 to {CHOICES_MAX} values, separated by commas"
        return _among(found[1], " ".join(found[2].split()), choices)
    if found := _COMPARISON.fullmatch(text):
        return _compared(found[1], found[2], _bare(found[3]))
    if found := _PRESENCE.fullmatch(text):
        sign = "is not" if found[1] else "is"
        return Matcher(f"not {found[2]}" if found[1] else found[2], found[2], sign)
    return _FORMS


def _among(name: str, sign: str, choices: list[str]) -> Matcher:
    return Matcher(f"{name} {sign} {{{', '.join(choices)}}}", name, sign, frozenset(choices))


def _compared(name: str, sign: str, value: str) -> Matcher | str:
    if sign in {"=", "==", "!="}:
        if not _is_value(value):
            return _FORMS
        equal = sign != "!="
        text = f"{name} {'=' if equal else '!='} {value}"
        return Matcher(text, name, "in" if equal else "not in", frozenset({value}))
    bound = _number(value)
    if bound is None:
        return f"{value[:40]!r} is no number, and {sign} compares numbers"
    return Matcher(f"{name} {sign} {value}", name, sign, frozenset({value}), bound)


def _is_value(text: str) -> bool:
    return bool(text) and _NOT_IN_VALUES.isdisjoint(text) and text == text.strip()


def _values(name: str, attributes: Attributes, labels: Mapping[str, str]) -> tuple[str, ...]:
    for each, values in attributes:
        if each == name:
            return values
    return (labels[name],) if name in labels else ()


def _holds(number: float | None, sign: str, bound: float) -> bool:
    if number is None:
        return False
    if sign[0] == ">":
        return number > bound or (number == bound and sign == ">=")
    return number < bound or (number == bound and sign == "<=")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bare(text: str) -> str:
    """Without the blanks and quotes around it."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]
    return text[1:-1] if is_quoted else text
