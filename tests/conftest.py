"""What all tests share: the coverage gate, and which files come first; fixtures are elsewhere."""

import os

import hypothesis
import pytest
from coverage_gate import pytest_sessionfinish

from sim import build

# How long an input takes to make says something of the machine, and nothing of meshd.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "gate", hypothesis.settings.get_profile("any_machine"), derandomize=True
)
hypothesis.settings.load_profile("any_machine")

__all__ = ["pytest_addoption", "pytest_sessionfinish"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--coverage-gate`, which a whole run (`script/test` without arguments) sets."""
    parser.addoption(
        "--coverage-gate", action="store_true", help="fail where too little of the code was run"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Where coverage is judged, inputs are the same each time: it must not depend on chance."""
    if config.getoption("--coverage-gate"):
        hypothesis.settings.load_profile("gate")


LONGEST = ("test_compiled.py", "test_sim_scenarios.py", "test_sim_experiments.py")
"""Files to begin with, so that no worker is left with one of them when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files to the front (workers take them in this order), and mark tests."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.no_cover)
        if item.get_closest_marker("replaces") and build.name() == "compiled":
            item.add_marker(pytest.mark.skip("what is compiled cannot be replaced"))


@pytest.fixture(autouse=True)
def _unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the processes that long tests start; pytest-cov leaves out what is `no_cover`.

    They are there for what they find, and pass few lines that no other test passes; to be measured
    doubles the time of pure Python and adds a third to that of a daemon.
    """
    if any(request.node.get_closest_marker(name) for name in ("no_cover", "slow")):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


# A worker of pytest-xdist is measured three times: by coverage, which measures all processes that a
# measured one starts, by pytest-cov before it knows that it is a worker, and after. That costs
# thrice the time, and only the last of them leaves out what is marked `no_cover`.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Start workers without the first of the three; processes that tests start keep it."""
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the second in a worker."""
    measuring = session.config.pluginmanager.get_plugin("_cov")
    if measuring is not None and hasattr(session.config, "workerinput"):
        measuring.cov_controller.pause()
