"""What all tests share: the coverage gate. Fixtures stand beside the tests that use them."""

import pytest
from coverage_gate import pytest_sessionfinish

__all__ = ["pytest_addoption", "pytest_sessionfinish"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--coverage-gate`, which a whole run (`script/test` without arguments) sets."""
    parser.addoption(
        "--coverage-gate", action="store_true", help="fail where too little of the code was run"
    )
