"""Bounds of a call that the command line names too; it imports nothing, to keep that quick."""

RETRIES_MAX = 3
"""Further candidates after the first: what a call may cost when peers refuse."""

DEADLINE_S = 30.0
"""Seconds for calls that name no deadline, where no setting says otherwise."""

DEADLINE_UNNAMED_S_MAX = 600.0
"""The most that a setting may give them: so long who calls waits for a daemon that says nothing."""
