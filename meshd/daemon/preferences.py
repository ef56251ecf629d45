"""What a program may ask of whoever takes its work, as arguments of the SDK's calls."""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict


class Preferences(TypedDict, total=False):
    """Arguments that `call`, `delegate`, `stream` and `submit` take beside their own.

    Attributes:
        version: of the capability: `1.2`, `^1.2`, `~1.2`, `>=1,<2`.
        tags: that the capability must all carry.
        where: conditions on its attributes, `warehouse in {A, B}`; one, or several that all hold.
        region: where its node is; `eu` takes `eu-west`.
        labels: that its node carries.
        difficulty: of the work, 0..1: who does it is at least as proficient, and no more so than
            need be.
        budget_usd: what the call may cost at most.
        affinity: calls of one key go to one node, where that has room.
    """

    version: str
    tags: Iterable[str]
    where: str | Iterable[str]
    region: str
    labels: Mapping[str, str]
    difficulty: float | None
    budget_usd: float | None
    affinity: str


def params_of(
    preferences: Preferences, policy: str = "", usual: str = "", **given: Any
) -> dict[str, Any]:
    """The parameters of `delegate` that they stand for, with the policy that is to be named.

    Args:
        preferences: the call's.
        policy: the one that the call names; empty if it names none.
        usual: the one of calls that neither name a policy nor, by affinity or difficulty, mean one.
        given: further parameters; what is false is left out.

    Raises:
        TypeError: one is unknown.
    """
    told = {name: value for name, value in given.items() if value} if any(given.values()) else {}
    if not preferences:
        if policy or usual:
            told["policy"] = policy or usual
        return told
    unknown = sorted(preferences.keys() - Preferences.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    where = preferences.get("where", ())
    means_one = preferences.get("affinity") or preferences.get("difficulty") is not None
    optional = {
        "policy": policy or ("" if means_one else usual),
        "version": preferences.get("version"),
        "tags": list(preferences.get("tags", ())),
        "where": [where] if isinstance(where, str) and where else list(where),
        "region": preferences.get("region"),
        "labels": dict(preferences.get("labels", {})),
        "affinity": preferences.get("affinity"),
    }
    bounds = {
        "difficulty": preferences.get("difficulty"),
        "cost_usd_max": preferences.get("budget_usd"),
    }
    return {
        **told,
        **{name: value for name, value in optional.items() if value},
        **{name: value for name, value in bounds.items() if value is not None},
    }
