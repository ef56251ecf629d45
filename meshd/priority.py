"""How urgent a piece of work is."""

from meshd.errors import UsageError

PRIORITY_MIN, PRIORITY_DEFAULT, PRIORITY_MAX = 1, 3, 5
"""Classes of work; 5 is the most urgent."""


def check_priority(priority: int) -> int:
    """The same, if there is such a class.

    Raises:
        UsageError: there is not.
    """
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise UsageError(
            f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX} (the most urgent), not {priority}"
        )
    return priority
