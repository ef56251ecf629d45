"""A million hostile datagrams to a node of a small mesh: nothing may break, nothing be believed.

Random, spoilt and well-formed ones with hostile values. With `--coverage`, and atheris
installed, what is reached of the code guides the search as well.
"""

import argparse
import sys
import time
from collections import Counter

from mesh_processes import progress, report

from meshd.model import Address
from sim.fuzz import ROUND_DATAGRAMS, Finding, Fuzzed, fuzz

QUICK = 20_000


def guided(seconds: int) -> None:
    """Let atheris look for inputs that reach new code, for so long; it ends the process itself."""
    try:
        import atheris
    except ImportError:
        sys.exit("--coverage needs atheris, which is not installed: pip install atheris")
    with atheris.instrument_imports(include=["meshd.gossip", "msgspec", "msgpack"]):
        from sim.fuzz import Fuzzed
    mesh = Fuzzed(0)
    header = mesh.pool.recorded[0][:28]
    members = mesh.pool.members

    def one(data: bytes) -> None:
        source, address = members[len(data) % len(members)]
        mesh.feed(header[:20] + source + data, address)
        if mesh.findings:
            raise AssertionError(str(mesh.findings[-1]))

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=1372"], one)
    atheris.Fuzz()


def replay(text: str, source: str, seed: int, number: int) -> None:
    """Lead a mesh to where a finding was made, and give it the datagram that was."""
    mesh = Fuzzed(seed)
    mesh.run(number - 1)
    mesh.findings.clear()
    host, _, port = source.rpartition(":")
    mesh.feed(bytes.fromhex(text), Address(host.strip("[]"), int(port)))
    print("\n".join(map(str, mesh.findings)) or "nothing was found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="Datagrams.")
    parser.add_argument("--seed", type=int, default=0, help="Of the first mesh.")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} datagrams.")
    parser.add_argument("--coverage", type=int, metavar="SECONDS", help="By atheris, for so long.")
    parser.add_argument("--replay", metavar="HEX", help="A finding's datagram.")
    parser.add_argument("--source", default="192.0.2.1:6374", help="Where that came from.")
    parser.add_argument("--number", type=int, default=1, help="Its number in its mesh.")
    options = parser.parse_args()
    if options.coverage:
        guided(options.coverage)
    if options.replay is not None:
        replay(options.replay, options.source, options.seed, options.number)
        return
    count = QUICK if options.quick else options.count
    began_s = time.monotonic()

    def on_round(fed: int, mesh: Fuzzed) -> None:
        per_s = fed / (time.monotonic() - began_s)
        progress(f"{fed:,} of {count:,}, {per_s:,.0f} a second, {len(mesh.findings)} found here")
        for finding in mesh.findings[:3]:
            print(finding, flush=True)

    fed, findings, refused = fuzz(count, options.seed, on_round)
    rows = [{"refused": reason, "times": times} for reason, times in refused.most_common()]
    figures = {
        "datagrams": fed,
        "findings": len(findings),
        "kinds": dict(_kinds(findings)),
        "took_s": round(time.monotonic() - began_s, 1),
    }
    parameters = {"count": count, "seed": options.seed, "round": ROUND_DATAGRAMS}
    report("fuzz_gossip", rows, parameters=parameters, figures=figures)
    sys.exit(bool(findings))


def _kinds(findings: list[Finding]) -> Counter[str]:
    return Counter(finding.text for finding in findings)


if __name__ == "__main__":
    main()
