"""Where this node is on the network: the address that others are told."""

import errno
import socket
from collections.abc import Mapping, Sequence

from meshd.discovery.address import is_unspecified
from meshd.discovery.interfaces import VIRTUAL_PREFIXES, Interface, read_interfaces
from meshd.errors import UsageError

# Addresses reserved for documentation: a connected UDP socket shows the route, and sends nothing.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
BIND_TRIES = 16


def own_hosts(bound: str, wanted: Sequence[str], now: Sequence[str] = ()) -> tuple[str, ...]:
    """The IP addresses to tell others, with sockets bound to `bound`; `now` are told so far.

    A definite address is told as it is; for a wildcard see `choose_hosts`. The IPv6 one hears both
    versions. Blocks for a moment.

    Raises:
        OSError: the system does not list its interfaces.
    """
    if not is_unspecified(bound):
        return (bound,)
    versions = (4, 6) if ":" in bound else (4,)
    routed = {version: _routed_host(_FAMILIES[version]) for version in versions}
    hosts = tuple(host for host in routed.values() if host is not None)
    if len(hosts) == len(versions) and not wanted:
        return hosts  # the interfaces would change nothing, and take twice as long to read
    return choose_hosts(read_interfaces(), wanted, routed=routed, now=now)


def choose_hosts(
    interfaces: Sequence[Interface],
    wanted: Sequence[str],
    *,
    routed: Mapping[int, str | None],
    now: Sequence[str],
) -> tuple[str, ...]:
    """One address for each IP version that `routed` asks for and the machine has, in that order.

    While it has no network at all, those that are told `now` stay, and loopback is told if there
    are none: others who were told a loopback address would call themselves.
    """
    found = []
    for version, host in routed.items():
        told = next((each for each in now if (":" in each) == (version == 6)), None)
        chosen = choose_host(interfaces, wanted, version=version, routed=host, now=told)
        if chosen is not None:
            found.append(chosen)
    return tuple(found) or tuple(now) or ("127.0.0.1",)


def choose_host(
    interfaces: Sequence[Interface],
    wanted: Sequence[str],
    *,
    version: int,
    routed: str | None,
    now: str | None,
) -> str | None:
    """The one address of a machine and an IP version that others shall use; None if there is none.

    The first of the `wanted` interfaces (names or addresses), else the one that the default route
    starts from (`routed`), else any that is not loopback. Of equals, the one that is told `now`
    stays.
    """
    found = [i for i in interfaces if i.up]
    named = [a for name in wanted for i in found for a in _named(i, name, version)]
    if named:
        return _stay(now, named)
    if routed is not None:
        return routed
    outside = [i for i in found if not i.loopback and i.addresses(version)]
    # A bridge to containers is where others are only if there is no other network.
    physical = [i for i in outside if not i.name.startswith(VIRTUAL_PREFIXES)]
    hosts = [a for i in physical or outside for a in i.addresses(version)]
    return _stay(now, hosts) if hosts else None


def _stay(now: str | None, hosts: Sequence[str]) -> str:
    return now if now is not None and now in hosts else hosts[0]


def _named(interface: Interface, name: str, version: int) -> tuple[str, ...]:
    """What `--iface NAME` stands for there; an address is a name too."""
    if interface.name == name:
        return interface.addresses(version)
    return (name,) if name in interface.addresses(version) else ()


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
