"""How the faults of what people write are told: every one of them, with the word they meant."""

import difflib
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec


def meant(word: str, known: Sequence[str]) -> str:
    """What to say after a word that is unknown; empty where no known one is spelt alike."""
    found = difflib.get_close_matches(word[:80], known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def converted(value: Any, kind: Any, *, strict: bool = True) -> Any:
    """`value` as the annotated type `kind`; not `strict`, texts may stand for numbers.

    Raises:
        ValueError: it is none; the message says what may stand there.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        text = str(error)
        raise ValueError(_choices(kind, value) or text[:1].lower() + text[1:]) from error


def _choices(kind: Any, value: Any) -> str:
    """What may stand where one of a few words is wanted, and a wrong word was given."""
    bare = get_args(kind)[0]
    if get_origin(bare) is not Literal or not isinstance(value, str):
        return ""
    words = get_args(bare)
    return f"{value[:80]!r} is none of {', '.join(words)}{meant(value, words)}"


def all_told(faults: Sequence[str]) -> str:
    """One message that lists them all."""
    if len(faults) == 1:
        return f"the configuration is wrong: {faults[0]}"
    return f"the configuration has {len(faults)} faults:" + "".join(f"\n  {f}" for f in faults)
