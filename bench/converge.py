"""How long until N daemons, started at once and knowing one seed, all see all others alive."""

import argparse
import time

from mesh_processes import Daemon, MeshProcesses, arguments, progress, report


def run(count: int, profile: str) -> dict[str, float]:
    with MeshProcesses(profile=profile) as mesh:
        daemons = mesh.start(count)
        seen_at = mesh.wait_all_alive(daemons)
        known_at = wait_all_known(mesh, daemons)
        first_spawn = min(d.spawned_at for d in daemons)
        last_ready = max(d.ready_at for d in daemons)
        return {
            "spawn_to_last_ready_s": round(last_ready - first_spawn, 3),
            "last_ready_to_all_see_all_s": round(max(0.0, seen_at - last_ready), 3),
            "last_ready_to_all_know_all_s": round(max(0.0, known_at - last_ready), 3),
            "spawn_to_all_see_all_s": round(max(seen_at, last_ready) - first_spawn, 3),
        }


def wait_all_known(mesh: MeshProcesses, daemons: list[Daemon]) -> float:
    """Wait until each also has everybody's state: the names, in what a user sees. Polled."""
    names = {daemon.name for daemon in daemons}

    def knows_all(daemon: Daemon) -> bool:
        rows = daemon.client.call("peers")["nodes"]
        return {row["name"] for row in rows if row["state"] == "alive"} == names

    waiting = list(daemons)

    def done() -> bool:
        waiting[:] = [daemon for daemon in waiting if not knows_all(daemon)]
        return not waiting

    mesh.wait(done, "all to know all names")
    return time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", default="lan")
    options = arguments(parser)
    sizes, runs = ([5], 1) if options.quick else (options.sizes, options.runs)
    rows, figures = [], {}
    for size in sizes:
        results = []
        for number in range(1, runs + 1):
            results.append(run(size, options.profile))
            progress(f"N={size}, run {number} of {runs}: {results[-1]}")
            rows.append({"N": size, "run": number, **results[-1]})
        figures[f"n{size}"] = results
    report("converge", rows, parameters={"profile": options.profile, "runs": runs}, figures=figures)


if __name__ == "__main__":
    main()
