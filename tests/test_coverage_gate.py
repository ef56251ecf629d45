"""The coverage gate lets a well covered report pass and names what is missing in a worse one."""

from pathlib import Path

import coverage_gate
import repository


def _report(*, percent=95.0, name="meshd/model.py", lines=(), branches=()):
    file = {"missing_lines": list(lines), "missing_branches": [list(pair) for pair in branches]}
    return {"totals": {"percent_covered": percent}, "files": {name: file}}


def test_a_covered_report_has_no_faults():
    assert coverage_gate.faults(_report()) == []


def test_too_little_overall_is_a_fault():
    assert "89.9 % overall" in coverage_gate.faults(_report(percent=89.94))[0]


def test_a_missed_branch_of_a_pure_module_is_a_fault():
    assert "missed: 7, 3->exit" in coverage_gate.faults(_report(lines=[7], branches=[(3, -1)]))[0]


def test_a_missed_line_elsewhere_is_none():
    assert coverage_gate.faults(_report(name="meshd/platform.py", lines=[7])) == []


def test_packages_in_the_purity_contract_cover_their_modules():
    assert repository.is_pure(Path("meshd/capability/manifest.py"))
    assert not repository.is_pure(Path("meshd/platform.py"))
