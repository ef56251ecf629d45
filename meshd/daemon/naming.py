"""Which node a name means. Names are labels: two nodes may bear one, and an id decides."""

import socket
import sys
from pathlib import Path

from meshd.errors import NoCandidateError, UsageError
from meshd.model import Address, MemberState
from meshd.view import ClusterView, Peer


def the_one(view: ClusterView, text: str) -> Peer:
    """The one member of that name or id.

    Raises:
        NoCandidateError: none.
        UsageError: several; the hint tells their ids.
    """
    found = view.named(text)
    # A node that lost its key came back as somebody new: its old self is not meant.
    found = tuple(p for p in found if p.state <= MemberState.SUSPECT) or found
    if len(found) > 1:
        ids = ", ".join(f"{p.node.hex()} ({p.address})" for p in found)
        raise UsageError(f"{len(found)} nodes are named {text!r}", hint=f"use an id: {ids}")
    if not found:
        raise NoCandidateError(f"no node {text!r} is known", hint="see meshd peers")
    return found[0]


def refuse_ambiguous(view: ClusterView, text: str) -> None:
    """Say that a name means several nodes; of one that means none routing knows more to say.

    Raises:
        UsageError: as `the_one` does.
    """
    if view.named(text):
        the_one(view, text)


def clash_notes(view: ClusterView) -> list[str]:
    """A sentence for each name that several living nodes bear."""
    return [
        f"{len(peers)} nodes are named {name}: "
        + ", ".join(f"{p.node.hex()} at {p.address}" for p in peers)
        for name, peers in view.clashes.items()
    ]


def address_at(view: ClusterView, node: str, host: str) -> Address | None:
    """Where the node of this id (hex) is, if the mesh knows it at this host.

    Anybody at that host can claim the id: whoever is to rely on it asks at that address.
    """
    peer = next((p for p in view.peers if p.node.hex() == node), None)
    if peer is None:
        return None
    hosts = {each.host for each in (peer.address, peer.other) if each is not None}
    return peer.address if host in hosts else None


def program_name() -> str:
    """`program-host`, in the letters that names may have."""
    program = Path(sys.argv[0] or "python").stem or "python"
    text = f"{program}-{socket.gethostname().partition('.')[0]}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)[:64]
