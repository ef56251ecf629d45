"""Addresses as people write them, and which of those that strangers send us we may try. Pure."""

import ipaddress
from collections.abc import Collection

import msgspec

from meshd.errors import UsageError
from meshd.model import Address

DEFAULT_PORT = 6374
"""M-E-S-H on a phone's keypad: unassigned at IANA, below the ephemeral range."""

PORT_MAX = 65_535
HOST_CHARS_MAX = 253
"""RFC 1035, section 2.3.4, without the root's dot."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")
)
"""Where clouds serve credentials to whoever asks from inside."""

_HOST_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


class Seed(msgspec.Struct, frozen=True, order=True):
    """A place to try, as given: a host name or an IP address, and a port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return str(Address(self.host, self.port))


def parse_seed(text: str) -> Seed:
    """Read `host[:port]`, `[v6]:port`, `[v6]` or a bare IPv6 address.

    Raises:
        UsageError: it is none of these; the message quotes it.
    """
    host, port = _split(text.strip(), text)
    if not host:
        raise _fault(text, "there is no host before the colon")
    if port == 0:
        raise _fault(text, "port 0 cannot be called")
    return Seed(_check_host(host, text), DEFAULT_PORT if port is None else port)


def parse_bind(text: str) -> Address:
    """Read `address[:port]` or `:port` (all IPv4 addresses); port 0 picks a free one.

    Raises:
        UsageError: it is none of these, or a host name: a name may have several addresses.
    """
    host, port = _split(text.strip(), text)
    host = {"": "0.0.0.0", "*": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104  # what an operator means by no host
    address = _ip(host)
    if address is None:
        raise _fault(text, f"{host!r} is not an IP address of this machine")
    if address.is_multicast:
        raise _fault(text, "a multicast address cannot be bound")
    return Address(str(address), DEFAULT_PORT if port is None else port)


def parse_advertise(text: str, port: int) -> tuple[Address, ...]:
    """Read the `address[:port]` under which others reach us; `port` where none is given.

    Two may be given, separated by a comma: one IPv4, one IPv6. The answer has IPv4 first.

    Raises:
        UsageError: it is no IP address, or one that nobody can call, or they are of one version.
    """
    found = [_advertised(part, port) for part in text.split(",")]
    if len({":" in address.host for address in found}) < len(found):
        raise _fault(text, "of two addresses one must be IPv4 and one IPv6")
    return tuple(sorted(found, key=lambda address: ":" in address.host))


def _advertised(text: str, port: int) -> Address:
    host, given = _split(text.strip(), text)
    address = _ip(host)
    if address is None:
        raise _fault(text, f"{host!r} is not an IP address")
    if address.is_unspecified or address.is_multicast:
        raise _fault(text, "nobody can call this address")
    if given == 0:
        raise _fault(text, "port 0 cannot be called")
    return Address(str(address), port if given is None else given)


def literal(host: str) -> str | None:
    """The canonical text of an IP address; None if `host` is a name."""
    address = _ip(host)
    return None if address is None else str(address)


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address."""
    address = _ip(host)
    return address is not None and address.is_loopback


def is_unspecified(host: str) -> bool:
    """Whether `host` stands for all addresses of the machine."""
    address = _ip(host)
    return address is not None and address.is_unspecified


def is_usable(
    address: Address,
    *,
    own: Collection[Address],
    networks: Collection[IPNetwork],
    loopback: bool,
) -> bool:
    """Whether an address that a stranger announced may be tried.

    Never tried: what no host can have (unspecified, multicast, broadcast, reserved), ourselves,
    the clouds' metadata services, IPv6 link-local without a scope. Loopback only where we run on
    loopback ourselves. Public addresses only if they are on one of our own links (`networks`):
    whoever can shout on a LAN must not aim us at the internet.
    """
    if not 0 < address.port <= PORT_MAX or address in own:
        return False
    ip = _ip(address.host)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip is None or ip in _METADATA or ip.is_unspecified or ip.is_multicast:
        return False
    if ip.is_loopback:
        return loopback and Address(str(ip), address.port) not in own
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local:
        return False
    on_link = any(ip in network for network in networks)
    return not _is_reserved(ip) and (on_link or ip.is_private)


def _is_reserved(ip: IPAddress) -> bool:
    """240.0.0.0/4 with the broadcast address; 0.0.0.0/8; IPv6 space that is not handed out."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_reserved or ip.packed[0] == 0
    return ip.is_reserved


def _ip(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _split(text: str, given: str) -> tuple[str, int | None]:
    """Host and port as written; no port is None."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _fault(given, "write an IPv6 address with a port as [address]:port")
        if not isinstance(_ip(host), ipaddress.IPv6Address):
            raise _fault(given, f"{host!r} in brackets is not an IPv6 address")
        return host, _port(rest[1:], given) if rest else None
    if text.count(":") > 1:
        if _ip(text) is None:
            raise _fault(given, "not an IPv6 address; with a port write [address]:port")
        return text, None
    host, colon, port = text.partition(":")
    return host, _port(port, given) if colon else None


def _port(text: str, given: str) -> int:
    # Five digits at most: int() refuses absurdly long numbers with an error of its own.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= PORT_MAX):
        raise _fault(given, f"port {text[:20]!r} is not a number from 0 to {PORT_MAX}")
    return int(text)


def _check_host(host: str, given: str) -> str:
    address = _ip(host)
    if address is not None:
        if address.is_unspecified or address.is_multicast:
            raise _fault(given, "nobody answers at this address")
        return str(address)
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if (
        len(name) > HOST_CHARS_MAX
        or not _HOST_CHARS.issuperset(name)
        or any(not 0 < len(label) <= 63 for label in labels)
        or labels[-1].isdigit()
    ):
        raise _fault(given, f"{host[:80]!r} is neither a host name nor an IP address")
    return name


def _fault(given: str, why: str) -> UsageError:
    return UsageError(
        f"{given[:80]!r} is not an address: {why}",
        hint=f"write it like 192.168.1.17:{DEFAULT_PORT} or [fd00::17]:{DEFAULT_PORT}",
    )
