"""How long after kill -9 all others stop routing to a node, and declare it dead."""

import argparse
import random
import time
from typing import Any

from mesh_processes import (
    ALIVE,
    DEAD,
    SUSPECT,
    Daemon,
    MeshProcesses,
    arguments,
    kill,
    progress,
    report,
    summary,
)


def believed_at(
    mesh: MeshProcesses, observers: list[Daemon], node: str, states: list[str], since: float
) -> list[float]:
    """When each of the observers first believed `node` to be in one of `states`, sorted."""

    def all_do() -> bool:
        for observer in observers:
            observer.read_log()
        return all(o.first(node, states, since) is not None for o in observers)

    mesh.wait(all_do, f"all to believe {node} {'/'.join(states)}", 120)
    found = [observer.first(node, states, since) for observer in observers]
    return sorted(at for at in found if at is not None)


def run(
    count: int, kills: int, profile: str, seed: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    times: dict[str, list[float]] = {
        "first_dead_s": [], "dead_everywhere_s": [], "unrouted_everywhere_s": [], "back_s": [],
    }  # fmt: skip
    alarms = {"suspected": 0, "declared_dead": 0}
    chance = random.Random(seed)
    with MeshProcesses(profile=profile) as mesh:
        daemons = mesh.start(count)
        mesh.wait_all_alive(daemons)
        for number in range(1, kills + 1):
            time.sleep(chance.random())  # the victim dies at any point of a probe round
            victim = chance.choice(daemons)
            others = [daemon for daemon in daemons if daemon is not victim]
            # What the log calls suspect is no more routed to; the accuser itself stops a little
            # before that, at the missed probe: so this is an upper bound.
            killed_at = time.time()
            kill(victim.process)
            unrouted = believed_at(mesh, others, victim.id, [SUSPECT, DEAD], killed_at)
            dead = believed_at(mesh, others, victim.id, [DEAD], killed_at)
            again = mesh.restart(victim, others[:2])
            back = believed_at(mesh, others, again.id, [ALIVE], again.spawned_at)
            daemons = [*others, again]
            mesh.wait_all_alive(daemons)
            for what, value in (
                ("first_dead_s", dead[0] - killed_at),
                ("dead_everywhere_s", dead[-1] - killed_at),
                ("unrouted_everywhere_s", unrouted[-1] - killed_at),
                ("back_s", back[-1] - again.ready_at),
            ):
                times[what].append(value)
            shown = {what: round(values[-1], 3) for what, values in times.items()}
            progress(f"kill {number} of {kills} ({victim.name}): {shown}")
            alarms["suspected"] += count_alarms(daemons, victim.id, [SUSPECT], killed_at)
            alarms["declared_dead"] += count_alarms(daemons, victim.id, [DEAD], killed_at)
    return times, alarms


def count_alarms(observers: list[Daemon], victim: str, states: list[str], since: float) -> int:
    """How often somebody else than the victim was believed to be in one of `states`."""
    return sum(
        1
        for observer in observers
        for at, node, state in observer.changes
        if at >= since and node != victim and state in states
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--profile", default="lan")
    parser.add_argument("--seed", type=int, default=1)
    options = arguments(parser)
    size, kills = (3, 1) if options.quick else (options.size, options.kills)
    profile = "local" if options.quick else options.profile
    times, alarms = run(size, kills, profile, options.seed)
    figures: dict[str, Any] = {what: summary(values) for what, values in times.items()}
    rows = [{"what": what, **numbers} for what, numbers in figures.items()]
    figures["false_alarms"] = alarms
    parameters = {"n": size, "kills": kills, "profile": profile, "seed": options.seed}
    report("detect", rows, parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
