"""How soon a LAN that was cut in two is one cluster again: meshd, Serf and kinship in one run."""

import contextlib
import time
from typing import Any

from mesh_processes import progress, report
from rivals.cluster import Cluster, Node
from rivals.kinds import DEAD, Make
from rivals.network import Lan
from rivals.side_by_side import (
    Result,
    at_once,
    flat_rows,
    kinds,
    need_lan,
    network,
    parse,
    parser,
    running,
    shown,
)


class Halves:
    """A cluster's nodes on both sides of the cut."""

    def __init__(self, cluster: Cluster, far: range) -> None:
        self.near = [node for node in cluster.nodes if node.host not in far]
        self.far = [node for node in cluster.nodes if node.host in far]

    def own_deaths(self, cluster: Cluster, since: float) -> int:
        """How often somebody was declared dead by its own side."""
        return sum(
            cluster.deaths(since, of=[node.key for node in side], by=side)
            for side in (self.near, self.far)
        )

    def deaths_across(self) -> float:
        """The share of pairs across the cut in which one believes the other dead by now."""
        pairs = [(a, b) for a in self.near for b in self.far]
        pairs += [(b, a) for a, b in pairs]
        return sum(_holds_dead(a, b) for a, b in pairs) / len(pairs)


def _holds_dead(one: Node, other: Node) -> bool:
    return one.beliefs.get(other.key) == DEAD


def heal(cluster: Cluster, halves: Halves, began: float, healed: float, options: Any) -> Result:
    """What came of it, once the link is back."""
    result: Result = {"dead_across": round(halves.deaths_across(), 2)}
    try:
        seen_s = cluster.wait_all_alive(healed, options.timeout)
        result["all_see_all_s"] = round(seen_s, 3)
    except TimeoutError:
        result["all_see_all_s"] = f"not in {options.timeout:g}"
    at = time.monotonic()
    time.sleep(options.after)
    keys = [node.key for node in cluster.nodes]
    result["own_side_deaths"] = halves.own_deaths(cluster, began)
    result["deaths_after"] = cluster.deaths(at, of=keys, by=cluster.nodes)
    return result


def split(
    makes: dict[str, Make], lan: Lan, size: int, split_s: float, options: Any, *, is_seeded: bool
) -> dict[str, Result]:
    """One split of fresh clusters: of a cluster that lived through one before, nobody knows all."""
    far = range(size - size // 2 + 1, size + 1)
    with contextlib.ExitStack() as stack:
        clusters = {
            name: stack.enter_context(running(make, lan, size, is_seeded=is_seeded))
            for name, make in makes.items()
        }
        halves = {name: Halves(cluster, far) for name, cluster in clusters.items()}
        began = time.monotonic()
        lan.split(far)
        try:
            time.sleep(split_s)
        finally:
            lan.heal()
        healed = time.monotonic()
        return at_once(
            clusters,
            lambda cluster, _: heal(cluster, halves[cluster.kind.name], began, healed, options),
            1,
        )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[3, 10, 50])
    made.add_argument("--seconds", type=float, nargs="+", default=[25.0, 70.0], help="Of splits.")
    made.add_argument("--seeds", choices=["shared", "none", "both"], default="both")
    made.add_argument("--timeout", type=float, default=120.0, help="Until it did not heal.")
    made.add_argument("--after", type=float, default=10.0, help="How long is still looked on.")
    options = parse(made)
    if options.quick:
        options.sizes, options.seconds, options.seeds = [3], [3.0], "shared"
        options.profile, options.after = "local", 0.5
    makes = kinds(options)
    ways = {"shared": [True], "none": [False], "both": [True, False]}[options.seeds]
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    for size in options.sizes:
        with network(size, is_lan_needed=True) as place:
            for split_s in options.seconds:
                for is_seeded in ways:
                    lan = need_lan(place)
                    found = split(makes, lan, size, split_s, options, is_seeded=is_seeded)
                    seed = "shared" if is_seeded else "none"
                    for name, result in found.items():
                        progress(f"N={size}, {split_s:g} s, seed {seed}, {name}: {shown(result)}")
                    rows += flat_rows(found, N=size, split_s=split_s, seed=seed)
                    figures[f"n{size}_{split_s:g}s_seed_{seed}"] = found
    keys = ("sizes", "seconds", "seeds", "timeout", "profile")
    report("versus_split", rows, parameters={k: getattr(options, k) for k in keys}, figures=figures)


if __name__ == "__main__":
    main()
