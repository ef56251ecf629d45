"""Many callers and workers under virtual time: what a way to choose workers comes to."""
