"""Every number of the gossip protocol, with its meaning, formula and range."""

import msgspec

from meshd.errors import UsageError
from meshd.gossip.messages import ACCUSERS_MAX

DATAGRAM_BYTES_MIN = 640
"""The smallest in which each record that may exist still fits: a state entry of full size."""
DATAGRAM_BYTES_MAX = 1_400


class GossipConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The protocol's parameters. Build one with `profile()`; defaults are the lan profile.

    Attributes:
        probe_interval_s: T, one probe round per node (SWIM section 3). 0.05 .. 60. Lower finds the
            dead sooner and costs packets in proportion.
        probe_timeout_s: how long a direct ack may take before helpers are asked. Below T; SWIM
            asks for at least the usual round trip.
        indirect_probes: k helpers of a ping-req (SWIM section 3.1). 0 .. 8.
        nack_fraction: share of the helper's window after which it answers "no ack yet"
            (Lifeguard section IV-A: 80 %, so that the nack itself arrives in time).
        suspicion_mult: alpha of Lifeguard: T_min = alpha * T with verifiers, and
            alpha * max(1, log10 n) * T without.
        suspicion_max_mult: beta of Lifeguard: T_max = beta * T_min.
        suspicion_confirmations: K independent confirmations that bring T_max down to T_min.
        verifiers: members that probe a suspect at once, chosen by rank so that all know which:
            K + 1, so that one may fail itself. 0 .. 8; 0 leaves confirmations to chance.
        health_max: largest local health score (Lifeguard section IV-A): 0 .. health_max.
        gossip_interval_s: pause between two rounds of pure gossip while rumours wait. A fresh
            rumour leaves at once, up to ten rounds ahead.
        gossip_fanout: members that one round of gossip goes to.
        transmit_mult: lambda: a rumour is sent lambda * ceil(log10(n + 1)) times by each node
            (SWIM section 5; memberlist's LAN profile uses 4).
        datagram_bytes_max: size of the largest datagram sent; 640 .. 1400. Larger ones that arrive
            (over 1400) are refused before decoding.
        load_interval_s: shortest time between two rumours of one's own load, less a tenth: who
            samples so often tells each sample.
        load_transmit_limit: how often each node passes on one load rumour; lossy on purpose.
        load_bytes_per_s: budget that stretches the load period in large meshes.
        document_bytes_per_s: budget for fetching the documents of others; a node hands out eight
            times as many. At least 16 KiB, which is one question.
        reconnect_interval_s: how often one member that is not alive is pinged.
        tombstone_s: how long the dead and the left are remembered.
        sync_interval_s: shortest time between two syncs because a view hash differs, in a settled
            mesh; after a join or a heal they begin at 0.03 of it, and the pauses double.
        quiet_s: a differing view hash counts once the own table has been still for this long, or
            for the present pause between syncs if that is shorter.
        members_max: rows that the table may hold.
        leave_linger_s: how long a leaving node goes on answering: one probe interval, at most this.
    """

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    indirect_probes: int = 3
    nack_fraction: float = 0.8
    suspicion_mult: float = 3.0
    suspicion_max_mult: float = 6.0
    suspicion_confirmations: int = 3
    verifiers: int = 4
    health_max: int = 8
    gossip_interval_s: float = 0.2
    gossip_fanout: int = 3
    transmit_mult: int = 4
    datagram_bytes_max: int = 1_200
    load_interval_s: float = 1.0
    load_transmit_limit: int = 3
    load_bytes_per_s: float = 8_192.0
    document_bytes_per_s: float = 131_072.0
    reconnect_interval_s: float = 1.0
    tombstone_s: float = 86_400.0
    sync_interval_s: float = 5.0
    quiet_s: float = 2.0
    members_max: int = 16_384
    leave_linger_s: float = 3.0

    def __post_init__(self) -> None:
        """Refuse numbers under which the protocol cannot work.

        Raises:
            UsageError: naming every field that is out of range.
        """
        faults = [
            text
            for wrong, text in (
                (not 0.05 <= self.probe_interval_s <= 60, "probe_interval_s must be 0.05 .. 60"),
                (
                    not 0 < self.probe_timeout_s < self.probe_interval_s,
                    "probe_timeout_s must be above 0 and below probe_interval_s",
                ),
                (not 0 <= self.indirect_probes <= 8, "indirect_probes must be 0 .. 8"),
                (not 0 < self.nack_fraction < 1, "nack_fraction must lie between 0 and 1"),
                (self.suspicion_mult < 1, "suspicion_mult must be 1 or more"),
                (self.suspicion_max_mult < 1, "suspicion_max_mult must be 1 or more"),
                (self.suspicion_confirmations < 0, "suspicion_confirmations must be 0 or more"),
                (not 0 <= self.verifiers <= ACCUSERS_MAX, "verifiers must be 0 .. 8"),
                (self.health_max < 0, "health_max must be 0 or more"),
                (self.gossip_interval_s <= 0, "gossip_interval_s must be above 0"),
                (not 1 <= self.gossip_fanout <= 16, "gossip_fanout must be 1 .. 16"),
                (not 1 <= self.transmit_mult <= 30, "transmit_mult must be 1 .. 30"),
                (
                    not DATAGRAM_BYTES_MIN <= self.datagram_bytes_max <= DATAGRAM_BYTES_MAX,
                    f"datagram_bytes_max must be {DATAGRAM_BYTES_MIN} .. {DATAGRAM_BYTES_MAX}",
                ),
                (self.members_max < 2, "members_max must be 2 or more"),
            )
            if wrong
        ]
        if faults:
            raise UsageError("gossip configuration: " + "; ".join(faults))


_PROFILES = {
    # One machine or a quiet rack: everything five times as fast, for tests and demos.
    "local": GossipConfig(
        probe_interval_s=0.2,
        probe_timeout_s=0.1,
        gossip_interval_s=0.05,
        reconnect_interval_s=0.5,
        sync_interval_s=1.0,
        quiet_s=0.5,
        load_interval_s=0.5,
        document_bytes_per_s=1_048_576.0,
        leave_linger_s=1.0,
    ),
    # memberlist's LAN intervals, which the field knows; T_min = 3 T instead of its 4 log10(n) T.
    "lan": GossipConfig(),
    # Round trips of up to a second or two, and little bandwidth.
    "wan": GossipConfig(
        probe_interval_s=5.0,
        probe_timeout_s=3.0,
        gossip_interval_s=0.5,
        gossip_fanout=4,
        load_interval_s=5.0,
        document_bytes_per_s=65_536.0,
        sync_interval_s=15.0,
        leave_linger_s=6.0,
    ),
}

PROFILES = tuple(_PROFILES)


def profile(name: str) -> GossipConfig:
    """The named set of defaults: local, lan or wan.

    Raises:
        UsageError: there is no such profile.
    """
    found = _PROFILES.get(name)
    if found is None:
        raise UsageError(f"no profile {name!r}", hint="profiles are " + ", ".join(PROFILES))
    return found
