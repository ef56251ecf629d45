"""Where this node is on the network: the address that others are told."""

import errno
import socket
from collections.abc import Sequence

from meshd.discovery.address import is_loopback, is_unspecified
from meshd.discovery.interfaces import read_interfaces
from meshd.errors import UsageError

# Addresses reserved for documentation: a connected UDP socket shows the route, and sends nothing.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
BIND_TRIES = 16


def own_host(bound: str, interfaces: Sequence[str]) -> str:
    """The IP address to tell others, where the sockets are bound to `bound`.

    A definite address is told as it is. For a wildcard: the first address of the named interfaces,
    else the one that the default route starts from, else any that is not loopback, else loopback.
    """
    if not is_unspecified(bound):
        return bound
    version = 6 if ":" in bound else 4
    found = {i.name: i.addresses(version) or i.addresses(4) for i in read_interfaces()}
    for name in interfaces:
        named = found.get(name) or ((name,) if any(name in a for a in found.values()) else ())
        if named:
            return named[0]
    routed = _routed_host(socket.AF_INET6 if version == 6 else socket.AF_INET)
    if routed is not None:
        return routed
    every = [address for addresses in found.values() for address in addresses]
    outside = [address for address in every if not is_loopback(address)]
    return (outside or ["127.0.0.1"])[0]


def _routed_host(family: socket.AddressFamily) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_SOMEWHERE[family], 9))
            host = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if is_unspecified(host) else host


def bind_tcp(host: str, port: int) -> socket.socket:
    """A bound TCP socket beside the UDP one.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.setblocking(False)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def is_taken(error: OSError) -> bool:
    """Whether somebody else has the address."""
    return error.errno == errno.EADDRINUSE


def no_free_port(host: str) -> UsageError:
    """The error where no port is free for both protocols."""
    return UsageError(
        f"found no port on {host} that is free for UDP and TCP in {BIND_TRIES} tries",
        hint="name one: --bind ADDR:PORT",
    )
