"""Choosing who does a piece of work, and getting it done there: filter, sample, rank, call."""
