"""What an idle daemon holds: its resident memory, and which modules it has loaded."""

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RSS_BYTES_MAX = 57_000_000
"""60 MB are promised, and about 50 are used."""
UNNEEDED = {
    "cryptography": "signs nothing; see meshd.security.ed25519",
    "meshd.discovery.mdns": "runs without mDNS here",
    "zeroconf": "runs without mDNS here",
    "jsonschema_rs": "has no schema to check by",
    "matplotlib": "draws nothing",
    "sim": "is no simulator",
    "meshd.testing": "is no test",
    "multiprocessing": "has threads, and commands",
    "ctypes": "asks the system through extensions alone",
}


def uncovered(site):
    """Whoever measures coverage in a daemon changes what the daemon holds."""
    for name in [name for name in site.env if name.startswith("COVERAGE_")]:
        del site.env[name]
    return site


def test_an_idle_daemon_stays_well_below_its_memory(site):
    a = uncovered(site).start("a")
    b = site.start("b", "--join", a.address)
    for daemon in (a, b):
        daemon.until(lambda d=daemon: len(d.call("peers")["nodes"]) == 2, "both know each other")
    held = [psutil.Process(daemon.pid).memory_info().rss for daemon in (a, b)]
    assert max(held) < RSS_BYTES_MAX, held


def test_an_idle_daemon_has_not_loaded_what_it_does_not_need(site):
    uncovered(site).env["PYTHONPROFILEIMPORTTIME"] = "1"
    daemon = site.start("a")
    assert daemon.call("status")
    assert daemon.stop() == 0
    names = {line.rpartition("|")[2].strip() for line in daemon.lines if "import time:" in line}
    assert {"meshd.gossip.swim", "aiohttp.web"} <= names
    loaded = {each for each in UNNEEDED for name in names if f"{name}.".startswith(f"{each}.")}
    assert not loaded
