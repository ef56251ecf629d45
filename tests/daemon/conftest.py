"""Sites of real daemons: one for each test, or one running mesh for all tests of a file."""

import os

import pytest
from processes import Site


@pytest.fixture
def site():
    made = Site()
    yield made
    made.close()


@pytest.fixture
def place(site, monkeypatch):
    """Programs of this very process see the site's directories, too."""
    for name in list(os.environ):
        if name.startswith("MESHD_"):
            monkeypatch.delenv(name)
    for name, value in site.env.items():
        if name.startswith("XDG_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(site.path)
