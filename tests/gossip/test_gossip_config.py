"""Numbers under which the protocol cannot work are refused, all at once."""

import pytest

from meshd.errors import UsageError
from meshd.gossip.config import PROFILES, GossipConfig, profile


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_within_the_ranges(name):
    assert profile(name).probe_timeout_s < profile(name).probe_interval_s


def test_an_unknown_profile_is_named_with_those_that_exist():
    with pytest.raises(UsageError) as caught:
        profile("moon")
    assert "moon" in str(caught.value)
    assert "lan" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probe_interval_s", 0.01), ("probe_timeout_s", 1.0), ("indirect_probes", 9),
        ("nack_fraction", 1.0), ("suspicion_mult", 0.5), ("suspicion_max_mult", 0.5),
        ("suspicion_confirmations", -1), ("health_max", -1), ("gossip_interval_s", 0.0),
        ("gossip_fanout", 0), ("transmit_mult", 0), ("datagram_bytes_max", 600),
        ("datagram_bytes_max", 1_500), ("members_max", 1),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        GossipConfig(**{field: value})


def test_one_error_lists_every_fault():
    with pytest.raises(UsageError) as caught:
        GossipConfig(health_max=-1, gossip_fanout=0)
    assert "health_max" in str(caught.value)
    assert "gossip_fanout" in str(caught.value)
