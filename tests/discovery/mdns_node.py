"""One mDNS source in a process of its own: prints its status, then its hints, one JSON a line."""

import asyncio
import json
import random
import sys
import time

from meshd.discovery.mdns import MdnsSettings, MdnsSource
from meshd.model import Address, NodeId
from meshd.security.identity import mesh_id
from meshd.telemetry.log import configure


class SystemClock:
    """The machine's clocks."""

    def now(self):
        return time.monotonic()

    def wall_ms(self):
        return time.time_ns() // 1_000_000


def say(**values):
    """Print one line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def main(number, iface, bound):
    """Run until standard input ends."""
    configure(level="info")
    settings = MdnsSettings(
        node=NodeId(bytes([number]) * 8),
        mesh=mesh_id("test"),
        name=f"n{number}",
        bound=Address(bound, 6374),  # announced, not bound
        interfaces=(iface,),
        poll_s=0.2,
        settle_s=0.1,
    )
    source = MdnsSource(
        settings,
        clock=SystemClock(),
        is_alone=lambda: False,
        is_alive=lambda _: False,
        rng=random.Random(number),
    )
    await source.start(lambda h: say(node=h.node.hex(), host=h.address.host, port=h.address.port))
    status = source.status()
    say(state=status.state, detail=status.detail)
    await asyncio.to_thread(sys.stdin.read)
    await source.stop()
    say(stopped=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
