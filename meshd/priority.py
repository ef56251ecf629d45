"""How urgent a piece of work is."""

PRIORITY_MIN, PRIORITY_DEFAULT, PRIORITY_MAX = 1, 3, 5
"""Classes of work; 5 is the most urgent."""
