"""What the daemons of these tests offer: to say on which host they run."""

from meshd import capability


@capability("where", description="Say the addresses of this host.")
def where() -> list[str]:
    """The IPv4 addresses of the host's interface, as it has them now."""
    import psutil

    return [a.address for a in psutil.net_if_addrs().get("e0", []) if a.family.name == "AF_INET"]
