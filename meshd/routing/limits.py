"""Bounds of a call that the command line names too; it imports nothing, to keep that quick."""

RETRIES_MAX = 3
"""Further candidates after the first: what a call may cost when peers refuse."""
