"""How long a daemon takes from its process's start until it serves, and until it sees another."""

import argparse
import signal

from mesh_processes import ALIVE, Daemon, MeshProcesses, arguments, progress, report, summary


def joined_at(mesh: MeshProcesses, new: Daemon, old: Daemon) -> float:
    """When `new` first believed `old` alive."""

    def seen() -> bool:
        new.read_log()
        return new.first(old.id, [ALIVE], new.spawned_at) is not None

    mesh.wait(seen, f"{new.name} to see {old.name}")
    at = new.first(old.id, [ALIVE], new.spawned_at)
    assert at is not None
    return at


def run(way: str, runs: int) -> dict[str, dict[str, float]]:
    """Start `runs` daemons, one after the other, beside one that runs."""
    ready, joined = [], []
    with MeshProcesses() as mesh:
        is_mdns = way == "mdns"
        old = mesh.spawn("old", mdns=is_mdns)
        mesh.wait_ready([old])
        for number in range(1, runs + 1):
            # A name of its own: no cache on disk tells it whom to ask.
            name, seeds = f"new{number}", [] if is_mdns else [old.address]
            new = mesh.spawn(name, join=seeds, mdns=is_mdns)
            mesh.wait_ready([new])
            ready.append(new.ready_at - new.spawned_at)
            joined.append(joined_at(mesh, new, old) - new.spawned_at)
            progress(f"{way} {number}/{runs}: ready {ready[-1]:.3f} s, joined {joined[-1]:.3f} s")
            new.process.send_signal(signal.SIGTERM)
            new.process.wait(timeout=20)
    return {"spawn_to_ready_s": summary(ready), "spawn_to_joined_s": summary(joined)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--ways", nargs="+", choices=["seed", "mdns"], default=["seed", "mdns"])
    options = arguments(parser)
    runs = 2 if options.quick else options.runs
    figures = {way: run(way, runs) for way in options.ways}
    rows = [
        {"found by": way, "what": what, **numbers}
        for way, whats in figures.items()
        for what, numbers in whats.items()
    ]
    report("start", rows, parameters={"runs": runs, "profile": "lan"}, figures=figures)


if __name__ == "__main__":
    main()
