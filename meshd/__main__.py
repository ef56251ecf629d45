"""`python -m meshd` and the `meshd` command."""

from meshd.cli import main

if __name__ == "__main__":
    main()
