"""A node of kinship: prints what it believes, and does what each line of input says.

Run by the Python that has kinship installed; the standard library is all else that it needs.
"""

import asyncio
import random
import sys
import time
from typing import Any

import kinship

EVENTS = {
    "MemberJoined": "alive", "MemberRecovered": "alive", "MemberSuspect": "suspect",
    "MemberDead": "dead", "MemberLeft": "left", "MemberUpdated": "updated",
}  # fmt: skip
LOADS = "loads"
SAMPLE_INTERVAL_S = 2.0


def say(what: str, subject: str) -> None:
    print(what, subject, flush=True)


async def orders(cluster: Any) -> None:
    """`update VALUE` changes the metadata, `join ADDRESS` joins, `block SECONDS` does that."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        order, value = line.decode().split()
        if order == "update":
            await cluster.update_meta(version=value)
        elif order == "block":
            time.sleep(float(value))
        else:
            await cluster.join([value])
    await asyncio.Event().wait()


async def events(stream: Any, *, with_updates: bool) -> None:
    async for event in stream:
        what = EVENTS.get(type(event).__name__)
        if what is None:
            print(event, flush=True)
        elif what != "updated" or with_updates:
            say(what, event.member.name)


async def change_load(cluster: Any) -> None:
    """Tell another load each second: the time, in hundredths of one, by the machine's clock."""
    await asyncio.sleep(random.random())
    while True:
        await cluster.update_meta(load=str(round(time.monotonic() * 100)))
        await asyncio.sleep(1.0)


async def tell_ages(cluster: Any, own: str) -> None:
    """Say again and again how old the loads are that this node knows."""
    await asyncio.sleep(random.uniform(0.0, SAMPLE_INTERVAL_S))
    while True:
        now = round(time.monotonic() * 100)
        others = [member.meta for member in cluster.members() if member.name != own]
        say("ages", ",".join(str(now - int(meta["load"])) for meta in others if "load" in meta))
        await asyncio.sleep(SAMPLE_INTERVAL_S)


async def main(profile: str, name: str, bind: str, extra: str, *seeds: str) -> None:
    # It binds and joins in one call: "ready" is said right before, so that what its joining takes
    # is seen. Its socket is bound less than a millisecond later.
    config = getattr(kinship.Config, profile)(name=name, bind=bind, insecure_plaintext=True)
    if seeds:
        config = config.replace(seeds=list(seeds))
    say("ready", name)
    async with kinship.Cluster(config) as cluster:
        stream = cluster.events()
        for member in cluster.members():
            if member.name != name:
                say("alive", member.name)
        loads = [change_load(cluster), tell_ages(cluster, name)] if extra == LOADS else []
        await asyncio.gather(events(stream, with_updates=not loads), orders(cluster), *loads)


asyncio.run(main(*sys.argv[1:]))
