"""Which network interfaces mDNS runs on. The choice is pure; reading the machine is one call."""

import ipaddress
import socket
from collections.abc import Sequence

import msgspec
import psutil

from meshd.discovery.address import IPNetwork

VIRTUAL_PREFIXES = ("docker", "veth", "br-", "virbr", "tailscale")
"""Containers and tunnels: never chosen by themselves; `--iface` still takes them."""

INTERFACES_MAX = 16
"""Each costs a socket, and each query a datagram."""


class Interface(msgspec.Struct, frozen=True, order=True):
    """One network interface. `networks` are its addresses with their prefix lengths.

    They stand in the system's order: of several in one network, packets leave from the first.
    """

    name: str
    up: bool
    multicast: bool
    loopback: bool
    networks: tuple[str, ...] = ()

    def addresses(self, version: int) -> tuple[str, ...]:
        """Its addresses of IP version 4 or 6, without link-local IPv6."""
        parsed = (ipaddress.ip_interface(text).ip for text in self.networks)
        return tuple(
            str(ip)
            for ip in parsed
            if ip.version == version and not (version == 6 and ip.is_link_local)
        )

    def multicasters(self, versions: Sequence[int]) -> tuple[str, ...]:
        """From which addresses to multicast in these IP versions.

        All IPv4 ones; of IPv6 one, for groups are joined by interface there; on loopback IPv4 alone
        if it is there, for hardly any machine lets IPv6 multicast loop.
        """
        own4 = self.addresses(4) if 4 in versions else ()
        own6 = self.addresses(6)[:1] if 6 in versions and not (own4 and self.loopback) else ()
        return own4 + own6


class Choice(msgspec.Struct, frozen=True):
    """The chosen interfaces, and why others that were asked for are not among them."""

    interfaces: tuple[Interface, ...] = ()
    problems: tuple[str, ...] = ()
    makeshift: bool = False
    """Whether it is the loopback interface only because no other would do."""

    @property
    def loopback(self) -> bool:
        """Whether we speak to this machine alone."""
        return bool(self.interfaces) and all(i.loopback for i in self.interfaces)

    @property
    def names(self) -> str:
        """Their names, for people."""
        return ",".join(i.name for i in self.interfaces)


def choose(
    interfaces: Sequence[Interface],
    wanted: Sequence[str],
    *,
    loopback_only: bool,
    versions: Sequence[int] = (4,),
) -> Choice:
    """The interfaces named in `wanted`; where none is, all fit ones.

    Fit means up, multicast, with an address of an IP version that the node speaks (`versions`: 4,
    or 4 and 6), and not virtual. Where none is fit, or the node
    is bound to loopback (`loopback_only`), the loopback interface: several nodes on one machine
    find each other without a network.
    """
    if wanted:
        return _named(interfaces, wanted, versions)
    loopback = tuple(i for i in interfaces if i.loopback and i.up and i.multicasters(versions))[:1]
    if loopback_only:
        return Choice(loopback, () if loopback else ("the loopback interface is not up",))
    fit = tuple(
        i
        for i in sorted(interfaces)
        if not i.loopback and not i.name.startswith(VIRTUAL_PREFIXES) and not _fault(i, versions)
    )[:INTERFACES_MAX]
    if fit:
        return Choice(fit)
    problem = f"no network interface is up with multicast and an {_called(versions)} address"
    return Choice(loopback, (problem,), makeshift=True)


def _named(
    interfaces: Sequence[Interface], wanted: Sequence[str], versions: Sequence[int]
) -> Choice:
    by_name = {i.name: i for i in interfaces}
    chosen: list[Interface] = []
    problems: list[str] = []
    for name in dict.fromkeys(wanted):
        interface = by_name.get(name)
        fault = "there is no such interface" if interface is None else _fault(interface, versions)
        if interface is None or fault:
            problems.append(f"{name}: {fault}")
        else:
            chosen.append(interface)
    return Choice(tuple(chosen[:INTERFACES_MAX]), tuple(problems))


def _fault(interface: Interface, versions: Sequence[int]) -> str:
    if not interface.up:
        return "it is down"
    if not interface.multicasters(versions):
        return f"it has no {_called(versions)} address"
    # Linux's lo has no multicast flag, and multicast on it works all the same.
    if not interface.multicast and not interface.loopback:
        return "it has no multicast"
    return ""


def _called(versions: Sequence[int]) -> str:
    return " or ".join(f"IPv{version}" for version in versions)


def networks_of(interfaces: Sequence[Interface]) -> tuple[IPNetwork, ...]:
    """The networks that these interfaces are on."""
    return tuple(ipaddress.ip_interface(text).network for i in interfaces for text in i.networks)


def read_interfaces() -> tuple[Interface, ...]:
    """The machine's interfaces, sorted by name. Blocks for a moment: run it in a thread.

    Raises:
        OSError: the system refuses to say.
    """
    stats = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        stat = stats.get(name)
        if stat is None:
            continue  # it vanished between the two calls
        flags = stat.flags.split(",")
        networks = [
            network
            for entry in addresses
            if entry.family in {socket.AF_INET, socket.AF_INET6}
            and (network := _network(entry.address, entry.netmask))
        ]
        found.append(
            Interface(
                name,
                up=stat.isup,
                multicast="multicast" in flags,
                loopback="loopback" in flags,
                networks=tuple(networks),
            )
        )
    return tuple(found)


def _network(address: str, netmask: str | None) -> str:
    """`address/length`; an empty string for what cannot be read as one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
        full = (1 << ip.max_prefixlen) - 1
        mask = full if netmask is None else int(ipaddress.ip_address(netmask))
    except ValueError:
        return ""
    return f"{ip}/{mask.bit_count()}"
