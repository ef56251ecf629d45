"""Holds how much of the code the tests ran: everything in pure modules, nine tenths overall."""

import json
import tempfile
from pathlib import Path

import coverage
import pytest
import repository

PERCENT_OVERALL = 90.0


def faults(report: dict[str, object]) -> list[str]:
    """What a JSON report of coverage lacks, a line each, the worst first."""
    totals, files = report["totals"], report["files"]
    assert isinstance(totals, dict)
    assert isinstance(files, dict)
    found = []
    if totals["percent_covered"] < PERCENT_OVERALL:
        found.append(f"{totals['percent_covered']:.1f} % overall, under {PERCENT_OVERALL:.0f} %")
    for name, file in sorted(files.items()):
        lines, branches = file["missing_lines"], file.get("missing_branches", [])
        if (lines or branches) and repository.is_pure(Path(name)):
            ways = [f"{start}->{'exit' if end < 0 else end}" for start, end in branches]
            found.append(f"{name} is pure, so all of it must run; missed: {_listed(lines, ways)}")
    return found


def measured() -> dict[str, object]:
    """The report of the data that the last run left in the repository's root."""
    data = coverage.Coverage(
        data_file=str(repository.ROOT / ".coverage"),
        config_file=str(repository.ROOT / "pyproject.toml"),
    )
    data.load()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "coverage.json"
        data.json_report(outfile=str(file))
        report: dict[str, object] = json.loads(file.read_text("utf-8"))
    return report


@pytest.hookimpl
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Count a gate that does not hold as an error, above pytest's own summary."""
    config = session.config
    if not config.getoption("--coverage-gate") or hasattr(config, "workerinput"):
        return
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    report = measured()
    totals = report["totals"]
    assert isinstance(totals, dict)
    terminal.write_line(f"\ncoverage: {totals['percent_covered']:.1f} % overall")
    for fault in faults(report):
        place = ("coverage", 0, "coverage")
        terminal.stats.setdefault("error", []).append(
            pytest.TestReport("coverage", place, {}, "failed", fault, "teardown")
        )
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def _listed(lines: list[int], ways: list[str]) -> str:
    return ", ".join([*map(str, lines), *ways][:20])
