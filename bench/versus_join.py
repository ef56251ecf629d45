"""How long a crowd that starts at once behind one address takes until all see all, by one seed."""

from mesh_processes import progress, report
from rivals.cluster import Cluster
from rivals.kinds import Make
from rivals.network import Network
from rivals.side_by_side import Result, collected, kinds, network, parse, parser, ratios, shown


def join(make: Make, place: Network, size: int, timeout_s: float) -> Result:
    """Start a cluster anew. "Start" is a bound socket."""
    with Cluster(make, place, is_one_address=True) as cluster:
        cluster.start(size)
        last_start = max(node.ready_at for node in cluster.nodes)
        first_start = min(node.ready_at for node in cluster.nodes[1:])
        result = {"starts_took_s": round(last_start - first_start, 3)}
        try:
            seen_s = cluster.wait_all_alive(last_start, timeout_s)
        except TimeoutError as error:
            return {"failed": str(error)}
        return {**result, "all_see_all_s": round(seen_s, 3)}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument("--runs", type=int, default=30)
    made.add_argument("--timeout", type=float, default=90.0, help="Seconds until a run failed.")
    options = parse(made)
    if options.quick:
        options.sizes, options.runs = [5], 1
    makes = kinds(options)
    figures, rows = {}, []
    with network(1, is_lan_needed=False) as place:
        for size in options.sizes:
            results: dict[str, list[Result]] = {name: [] for name in makes}
            for number in range(1, options.runs + 1):
                for name, make in makes.items():
                    results[name].append(join(make, place, size, options.timeout))
                    told = shown(results[name][-1])
                    progress(f"N={size}, {number} of {options.runs}, {name}: {told}")
            some, found = collected(results, [])
            rows += [{"N": size, **row} for row in some]
            seen = {name: each.get("all_see_all_s", {}) for name, each in found.items()}
            figures[f"n{size}"] = {**found, "ratio_p50": ratios(seen, "p50")}
    keys = ("sizes", "runs", "timeout", "profile")
    report("versus_join", rows, parameters={k: getattr(options, k) for k in keys}, figures=figures)


if __name__ == "__main__":
    main()
