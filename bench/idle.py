"""What an idle node costs: packets and bytes on the wire, processor time, memory."""

import argparse
import time
from statistics import mean
from typing import Any

import psutil
from mesh_processes import Daemon, MeshProcesses, arguments, progress, report

HEADER_BYTES = 28
"""IPv4 and UDP headers of one datagram."""


def sample(daemon: Daemon) -> dict[str, float]:
    """Counters and processor time now, without what the question itself costs."""
    process = psutil.Process(daemon.process.pid)
    before = process.cpu_times()
    counters = daemon.client.call("status")["gossip"]
    after = process.cpu_times()
    return {
        "at": time.monotonic(),
        "packets": counters["packets_sent"],
        "bytes": counters["bytes_sent"],
        "cpu_before_s": before.user + before.system,
        "cpu_after_s": after.user + after.system,
    }


def run(count: int, settle_s: float, window_s: float, profile: str) -> dict[str, Any]:
    with MeshProcesses(profile=profile) as mesh:
        daemons = mesh.start(count)
        mesh.wait_all_alive(daemons)
        progress(f"N={count}: all see all; settling for {settle_s:g} s")
        time.sleep(settle_s)
        first = [sample(daemon) for daemon in daemons]
        machine = watch_machine(window_s)
        last = [sample(daemon) for daemon in daemons]
        memory = [psutil.Process(d.process.pid).memory_full_info() for d in daemons]
    rates = [_rates(a, b) for a, b in zip(first, last, strict=True)]
    result = {key: round(mean(rate[key] for rate in rates), 2) for key in rates[0]}
    return {
        **result,
        "rss_mb": round(mean(m.rss for m in memory) / 1e6, 1),
        "uss_mb": round(mean(m.uss for m in memory) / 1e6, 1),
        "machine_cpu_percent": f"{min(machine):.0f}..{max(machine):.0f}",
    }


def watch_machine(seconds: float) -> list[float]:
    """The whole machine's CPU use in each second of the window.

    Where it swings, for whatever reason, nodes tell each other: "idle" is not idle then.
    """
    psutil.cpu_percent()
    return [psutil.cpu_percent(interval=1.0) for _ in range(max(1, round(seconds)))]


def _rates(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    seconds = b["at"] - a["at"]
    packets = b["packets"] - a["packets"]
    return {
        "packets_per_s": packets / seconds,
        "ip_bytes_per_s": (b["bytes"] - a["bytes"] + HEADER_BYTES * packets) / seconds,
        "cpu_ms_per_s": (b["cpu_before_s"] - a["cpu_after_s"]) * 1_000 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--settle", type=float, default=15.0, help="Seconds before the window.")
    parser.add_argument("--window", type=float, default=60.0, help="Seconds that are measured.")
    parser.add_argument("--profile", default="lan")
    options = arguments(parser)
    settle_s, window_s = (1.0, 2.0) if options.quick else (options.settle, options.window)
    sizes = [3] if options.quick else options.sizes
    figures = {}
    for size in sizes:
        figures[f"n{size}"] = run(size, settle_s, window_s, options.profile)
        progress(f"N={size}: {figures[f'n{size}']}")
    rows = [{"N": size, **figures[f"n{size}"]} for size in sizes]
    parameters = {"settle_s": settle_s, "window_s": window_s, "profile": options.profile}
    report("idle", rows, parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
