"""Sites of real daemons: one for each test, or one running mesh for all tests of a file."""

import pytest
from processes import Site


@pytest.fixture
def site():
    made = Site()
    yield made
    made.close()
