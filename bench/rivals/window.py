"""What a cluster sends and uses within a window of time."""

import time
from typing import NamedTuple

from rivals.cluster import Cluster
from rivals.network import Lan


class Window(NamedTuple):
    """Means over the nodes, and the window itself on the monotonic clock.

    Bytes hold the headers of IP, UDP and TCP; `rss_mb` is in units of 10^6 bytes.
    """

    began: float
    ended: float
    udp_packets_per_s: float
    udp_bytes_per_s: float
    tcp_bytes_per_s: float
    cpu_ms_per_s: float
    rss_mb: float

    @property
    def bytes_per_s(self) -> float:
        """All bytes, whatever carries them."""
        return round(self.udp_bytes_per_s + self.tcp_bytes_per_s, 1)


def window(cluster: Cluster, lan: Lan, settle_s: float, window_s: float) -> Window:
    """Let a cluster settle, then look on for `window_s` seconds."""
    time.sleep(settle_s)
    began, sent, used = time.monotonic(), lan.sent(cluster.kind.port), cluster.usage()
    time.sleep(window_s)
    ended, sent_then, used_then = time.monotonic(), lan.sent(cluster.kind.port), cluster.usage()
    share = (ended - began) * len(cluster.nodes)
    rates = {what: (sent_then[what] - sent[what]) / share for what in sent}
    return Window(
        began,
        ended,
        udp_packets_per_s=round(rates["udp_packets"], 2),
        udp_bytes_per_s=round(rates["udp_bytes"], 1),
        tcp_bytes_per_s=round(rates["tcp_bytes"], 1),
        cpu_ms_per_s=round((used_then["cpu_s"] - used["cpu_s"]) * 1_000 / (ended - began), 2),
        rss_mb=round(used_then["rss_bytes"] / 1e6, 1),
    )
