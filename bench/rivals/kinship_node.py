"""A node of kinship: prints what it believes, and does what each line of input says.

Run by the Python that has kinship installed; the standard library is all else that it needs.
"""

import asyncio
import sys
from typing import Any

import kinship

EVENTS = {
    "MemberJoined": "alive", "MemberRecovered": "alive", "MemberSuspect": "suspect",
    "MemberDead": "dead", "MemberLeft": "left", "MemberUpdated": "updated",
}  # fmt: skip


def say(what: str, subject: str) -> None:
    print(what, subject, flush=True)


async def orders(cluster: Any) -> None:
    """`update VALUE` changes the metadata, `join ADDRESS` joins another node."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        order, value = line.decode().split()
        if order == "update":
            await cluster.update_meta(version=value)
        else:
            await cluster.join([value])
    await asyncio.Event().wait()


async def events(stream: Any) -> None:
    async for event in stream:
        if (what := EVENTS.get(type(event).__name__)) is not None:
            say(what, event.member.name)
        else:
            print(event, flush=True)


async def main(profile: str, name: str, bind: str, seeds: list[str]) -> None:
    # It binds and joins in one call: "ready" is said right before, so that what its joining takes
    # is seen. Its socket is bound less than a millisecond later.
    config = getattr(kinship.Config, profile)(name=name, bind=bind, insecure_plaintext=True)
    if seeds:
        config = config.replace(seeds=seeds)
    say("ready", name)
    async with kinship.Cluster(config) as cluster:
        stream = cluster.events()
        for member in cluster.members():
            if member.name != name:
                say("alive", member.name)
        await asyncio.gather(events(stream), orders(cluster))


asyncio.run(main(*sys.argv[1:4], seeds=sys.argv[4:]))
