"""The same echo in each system, as workers, relays and callers: processes of their own each."""
