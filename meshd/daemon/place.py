"""Where this node is on the network: the address that others are told."""

import errno
import socket
from collections.abc import Sequence

from meshd.discovery.address import is_unspecified
from meshd.discovery.interfaces import VIRTUAL_PREFIXES, Interface, read_interfaces
from meshd.errors import UsageError

# Addresses reserved for documentation: a connected UDP socket shows the route, and sends nothing.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
BIND_TRIES = 16


def own_host(bound: str, wanted: Sequence[str], now: str | None = None) -> str:
    """The IP address to tell others, where the sockets are bound to `bound`; `now` is told so far.

    A definite address is told as it is; for a wildcard see `choose_host`. Blocks for a moment.

    Raises:
        OSError: the system does not list its interfaces.
    """
    if not is_unspecified(bound):
        return bound
    version = 6 if ":" in bound else 4
    routed = _routed_host(socket.AF_INET6 if version == 6 else socket.AF_INET)
    return choose_host(read_interfaces(), wanted, version=version, routed=routed, now=now)


def choose_host(
    interfaces: Sequence[Interface],
    wanted: Sequence[str],
    *,
    version: int,
    routed: str | None,
    now: str | None,
) -> str:
    """The one address of a machine that others shall use.

    The first of the `wanted` interfaces (names or addresses), else the one that the default route
    starts from (`routed`), else any that is not loopback, else loopback. Of equals, the one that is
    told `now` stays. It also stays while there is no network at all: others who were told a
    loopback address would call themselves.
    """
    found = [i for i in interfaces if i.up]
    named = [a for name in wanted for i in found for a in _named(i, name, version)]
    if named:
        return _stay(now, named)
    if routed is not None:
        return routed
    outside = [i for i in found if not i.loopback and _addresses(i, version)]
    # A bridge to containers is where others are only if there is no other network.
    physical = [i for i in outside if not i.name.startswith(VIRTUAL_PREFIXES)]
    hosts = [a for i in physical or outside for a in _addresses(i, version)]
    return _stay(now, hosts) if hosts else now or "127.0.0.1"


def _stay(now: str | None, hosts: Sequence[str]) -> str:
    return now if now is not None and now in hosts else hosts[0]


def _addresses(interface: Interface, version: int) -> tuple[str, ...]:
    return interface.addresses(version) or interface.addresses(4)


def _named(interface: Interface, name: str, version: int) -> tuple[str, ...]:
    """What `--iface NAME` stands for there; an address is a name too."""
    if interface.name == name:
        return _addresses(interface, version)
    return (name,) if name in interface.addresses(4) + interface.addresses(6) else ()


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
