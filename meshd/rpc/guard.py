"""Keeps web pages in a browser from calling a node: DNS rebinding and cross-site requests.

A page cannot forge `Origin`, and a rebound name still stands in `Host`. So a request with an
`Origin` must come from the very host it goes to, and `Host` must be an address or a known name.
"""

import ipaddress
from functools import lru_cache

KNOWN_NAMES = frozenset({"localhost"})


def browser_refusal(
    host: str | None, origin: str | None, *, names: frozenset[str], check_host: bool
) -> str:
    """Why the request must be refused, or an empty string.

    `host` and `origin` are header values or None; `names` are the host names, in lower case, that
    this node answers to. `check_host` is false on the control socket, where no browser can come.
    """
    if check_host and host and not _is_own_host(host, names):
        return f"Host {host[:80]!r} is neither an IP address nor a name of this node"
    if origin is not None and origin.lower() not in _origins(host):
        return f"a page from {origin[:80]!r} may not call this node"
    return ""


@lru_cache(maxsize=256)
def _is_own_host(host: str, names: frozenset[str]) -> bool:
    name = _strip_port(host).lower().rstrip(".")
    if name in names or name in KNOWN_NAMES:
        return True
    try:
        ipaddress.ip_address(name.replace("%25", "%"))
    except ValueError:
        return False
    return True


def _strip_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _origins(host: str | None) -> tuple[str, ...]:
    return () if not host else (f"http://{host.lower()}", f"https://{host.lower()}")
