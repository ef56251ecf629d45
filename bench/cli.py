"""How long `meshd peers` takes, against starting Python with two modules that it needs."""

import argparse
import subprocess
import sys
import time

from mesh_processes import MESHD, MeshProcesses, arguments, progress, report, summary

BASELINE = [sys.executable, "-c", "import json, http.client"]
NOTHING = [sys.executable, "-c", "pass"]
PEERS = [sys.executable, *MESHD, "peers"]


def timed(command: list[str], environment: dict[str, str]) -> float:
    """How many milliseconds a command takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True
    )
    return (time.perf_counter() - began) * 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--size", type=int, default=3, help="Nodes of the mesh.")
    options = arguments(parser)
    runs = 3 if options.quick else options.runs
    commands = {"peers": PEERS, "baseline": BASELINE, "python": NOTHING}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with MeshProcesses() as mesh:
        daemons = mesh.start(options.size)
        mesh.wait_all_alive(daemons)
        environment = {**mesh.environment, "MESHD_NODE": daemons[0].name}
        for number in range(runs + 1):
            for name, command in commands.items():
                taken_ms = timed(command, environment)
                if number:  # the first round fills caches
                    times[name].append(taken_ms)
        progress(f"{runs} alternating runs each")
    figures = {f"{name}_ms": summary(values, 1) for name, values in times.items()}
    ratio = figures["peers_ms"]["p50"] / figures["baseline_ms"]["p50"]
    rows = [
        {"command": " ".join(["python", *commands[name][1:]]), **figures[f"{name}_ms"]}
        for name in commands
    ]
    parameters = {"runs": runs, "n": options.size}
    report("cli", rows, parameters=parameters, figures={**figures, "ratio_p50": round(ratio, 2)})


if __name__ == "__main__":
    main()
