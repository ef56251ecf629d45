"""Level 2: whole daemons, calls and work included, under virtual time."""
