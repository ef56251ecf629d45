"""What `meshd status` tells of circuits."""

from test_cli_commands import STATUS


def test_status_tells_which_circuits_are_not_closed(meshd, fake):
    row = {"capability": "echo", "node": "9f3c", "name": "nuc", "state": "open", "left_s": 42.0,
           "why": "3 failures in a row", "repeats": 1}  # fmt: skip
    rows = [
        {**row, "node": None, "name": None, "state": "half_open", "why": "10 failures in a row"},
        row,
        {**row, "name": None},
    ]
    fake.results["status"] = {
        **STATUS, "circuits": {"open": 12, "half_open": 1, "opened": 20, "rows": rows}
    }  # fmt: skip
    assert (
        "circuits   echo everywhere: half-open, 10 failures in a row\n"
        "           echo at nuc: open for 42s, 3 failures in a row\n"
        "           echo at 9f3c: open for 42s, 3 failures in a row\n"
        "           10 more: --json\n"
    ) in meshd("status").out


def test_status_of_an_older_daemon_says_nothing_of_circuits(meshd, fake):
    fake.results["status"] = STATUS
    assert "circuits" not in meshd("status").out
