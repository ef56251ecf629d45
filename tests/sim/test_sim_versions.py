"""What a newer version would send is well-formed, longer, and means the same to this one."""

import msgspec
import pytest

from meshd.errors import DecodeError
from meshd.gossip.codec import decode, encode_body, encode_header, pack_load
from meshd.gossip.messages import BUCKETS
from meshd.model import Load, MeshId, NodeId
from sim.versions import NEW_HEADER_EVERY, NEW_KIND, NEW_KIND_EVERY, Newer, grown, kind_of

MESH = MeshId(b"simulate")
ONE, OTHER = NodeId(b"node-one"), NodeId(b"node-two")
UPDATE = (0, ONE, 1_000, 3, bytes((10, 0, 0, 1, 24, 230)))
DOUBT = (1, *UPDATE[1:], 4, 5, b"", OTHER, OTHER)
BODIES = [
    (1, (7,)), (2, (7, 99)), (3, (7, OTHER)), (4, (7,)),
    (5, ([UPDATE, DOUBT],)),
    (1, (7, [UPDATE], bytes(19))), (6, (7, bytes(64))), (7, (7, bytes(8), UPDATE)),
    (8, (b"", bytes(4 * BUCKETS), [UPDATE])), (9, (bytes(8), True, [UPDATE])),
    (5, ([(*UPDATE, 4, 0, OTHER, b"", b"", (3, [("key", 4, bytes(16), 900)]))],)),
    (10, ((), [(bytes(16), b"\x03")])), (11, (1, [], [(bytes(16), 0, b"document")])),
    (10, ([(ONE, 1_000, 3)],)), (11, (1, [(ONE, 1_000, 0, 2, [("key", 2, b"value")])])),
]  # fmt: skip


def datagram(kind: int, fields: tuple, load: bytes = b"") -> bytes:
    return encode_header(MESH, OTHER, ONE, load) + encode_body(kind, fields)


@pytest.mark.parametrize(("kind", "fields"), BODIES)
@pytest.mark.parametrize("load", [b"", pack_load(Load(slots=3))])
def test_appended_fields_change_nothing_of_what_is_understood(kind, fields, load):
    plain = datagram(kind, fields, load)
    longer = grown(plain, 1_200)
    assert len(longer) > len(plain)
    assert kind_of(plain) == kind_of(longer) == kind
    assert msgspec.json.encode(decode(longer, MESH)) == msgspec.json.encode(decode(plain, MESH))


def test_a_full_datagram_stays_within_its_bound():
    plain = datagram(5, ([UPDATE] * 36,))
    assert len(grown(plain, len(plain) + 20)) <= len(plain) + 20
    assert grown(plain, len(plain)) == plain


def test_now_and_then_a_newer_node_says_what_this_version_must_refuse():
    speak = Newer(1_200)
    plain = datagram(1, (7,))
    said = [speak(plain) for _ in range(NEW_KIND_EVERY * NEW_HEADER_EVERY)]
    extra = [data for each in said for data in each[1:]]
    assert len(extra) == NEW_KIND_EVERY + NEW_HEADER_EVERY
    reasons = set()
    for data in extra:
        with pytest.raises(DecodeError) as caught:
            decode(data, MESH)
        reasons.add(caught.value.message)
    assert reasons == {"unknown_kind", "other_version"}
    assert NEW_KIND in {kind_of(data) for data in extra}
