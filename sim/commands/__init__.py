"""The simulator's commands: `meshd sim ...`, and the same as `python -m sim ...`."""
