"""A LAN of namespaces for each test, with daemons that are stopped before it is torn down."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from daemons import Daemon
from namespaces import Lan, need_namespaces


@pytest.fixture
def build():
    """Make the test's LAN: `build(hosts=2, ipv6=True)`."""
    need_namespaces()
    made = []

    def make(hosts=3, **addresses):
        made.append(Lan(hosts))
        made[-1].build(**addresses)
        return made[-1]

    try:
        yield make
    finally:
        for lan in made:
            lan.remove()


@pytest.fixture
async def daemon(build):
    """Prepare a daemon on a host of a LAN: `daemon(lan, 1)`; it is yet to be started."""
    daemons = []
    # A short path: a socket's may have no more than about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="meshd-") as directory:

        def make(lan, number, mesh="default"):
            daemons.append(Daemon(lan, number, Path(directory), mesh))
            return daemons[-1]

        yield make
        await asyncio.gather(*(one.stop() for one in daemons))
