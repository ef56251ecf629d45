"""Who holds a port that a new node wanted."""

from meshd.control import ControlClient, find_sockets, is_live
from meshd.discovery.address import parse_bind
from meshd.errors import MeshError

STATUS_TIMEOUT_S = 1.0


def holder(bind: str) -> str:
    """Who listens on the port of `bind` (checked already), as far as one can tell from here."""
    port = parse_bind(bind).port
    return _daemon_on(port) or _process_on(port) or "another process"


def _daemon_on(port: int) -> str:
    for known in find_sockets():
        try:
            if not is_live(known.path):
                continue
            status = ControlClient(known.path).call("status", {}, STATUS_TIMEOUT_S)
        except MeshError:
            continue
        if str(status.get("address")).rpartition(":")[2] == str(port):
            return f'pid {status.get("pid")} (meshd, node {known.name}, mesh "{known.mesh}")'
    return ""


def _process_on(port: int) -> str:
    import psutil

    try:
        links = psutil.net_connections("inet")
    except (psutil.Error, OSError):
        return ""
    for link in links:
        listens = link.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}
        if link.laddr and link.laddr.port == port and listens and link.pid is not None:
            try:
                return f"pid {link.pid} ({psutil.Process(link.pid).name()})"
            except psutil.Error:
                return f"pid {link.pid}"
    return ""
