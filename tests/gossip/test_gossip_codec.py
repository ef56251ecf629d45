"""Datagrams decode to what was encoded, and nothing but DecodeError comes of anything else."""

import math
import random
import struct

import msgpack
import msgspec
import pytest
from fabric import MESH
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import DecodeError
from meshd.gossip import messages
from meshd.gossip.codec import (
    FLAG_LOAD,
    LOAD_SEQUENCES,
    decode,
    encode_body,
    encode_delta,
    encode_header,
    encode_update,
    ids_of,
    is_newer_load,
    load_sequence,
    member_from,
    pack_address,
    pack_load,
    states,
    unpack_address,
    unpack_load,
    update_fields,
)
from meshd.gossip.config import DATAGRAM_BYTES_MAX
from meshd.gossip.messages import (
    BUCKETS,
    Ack,
    Delta,
    DocumentPart,
    Gossip,
    Join,
    Nack,
    Ping,
    PingReq,
    Records,
    StateChange,
    StateDelta,
    StateEntry,
    StatePull,
    Sync,
    Update,
    Wanted,
    WantedDocument,
    Welcome,
)
from meshd.model import Address, Epoch, Incarnation, Load, Member, MemberState, NodeId

HEADER = encode_header(MESH, NodeId(b"destin00"), NodeId(b"source00"))

ids = st.binary(min_size=8, max_size=8)
id_lists = st.lists(ids, max_size=8).map(b"".join)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u53 = st.integers(0, 2**53 - 1)
hosts = st.ip_addresses().filter(
    lambda ip: (
        not (ip.is_multicast or ip.is_unspecified or (ip.version == 4 and ip.packed[0] == 0))
        and not (ip.version == 4 and ip.packed[0] >= 224)
    )
)


def is_plain(ip):
    """Whether it is no IPv4 address in the form of IPv6."""
    return getattr(ip, "ipv4_mapped", None) is None


addresses = st.builds(Address, hosts.filter(is_plain).map(str), st.integers(1, 65_535))
packed_addresses = addresses.map(pack_address)
entries = st.builds(
    StateEntry,
    key=st.text(min_size=1, max_size=72).filter(lambda key: len(key.encode()) <= 72),
    version=st.integers(1, 2**32 - 1),
    value=st.one_of(st.none(), st.binary(max_size=400)),
    size=st.one_of(st.just(0), st.integers(1, 65_536)),
)
updates = st.builds(
    Update,
    state=st.integers(0, 3),
    node=ids,
    epoch=u53,
    incarnation=u32,
    address=packed_addresses,
    state_version=u32,
    lag=st.integers(0, 255),
    digest=st.one_of(st.just(b""), ids),
    accusers=id_lists,
    retracted=id_lists,
    delta=st.one_of(
        st.none(), st.builds(StateChange, u32, st.lists(entries, max_size=1).map(tuple))
    ),
)
riding = st.lists(updates, max_size=2).map(tuple)
load_parts = st.binary(max_size=190)
deltas = st.builds(
    Delta, node=ids, epoch=u53, base=u32, upto=u32,
    entries=st.lists(entries, max_size=2).map(tuple), digest=st.one_of(st.just(b""), ids),
)  # fmt: skip
digests = st.binary(min_size=16, max_size=16)
wanted_documents = st.builds(WantedDocument, digests, st.binary(min_size=1, max_size=16))
document_parts = st.builds(DocumentPart, digests, st.integers(0, 255), st.binary(max_size=100))
hashes = st.binary(min_size=4 * BUCKETS, max_size=4 * BUCKETS)
all_messages = st.one_of(
    st.builds(Ping, u16, riding, load_parts),
    st.builds(Ack, u16, u32, riding, load_parts),
    st.builds(PingReq, u16, ids, riding, load_parts),
    st.builds(Nack, u16, riding, load_parts),
    st.builds(Gossip, riding, load_parts),
    st.builds(Join, u16, st.binary(max_size=64)),
    st.builds(Welcome, u16, ids, updates),
    st.builds(Sync, st.one_of(st.just(b""), ids), hashes, riding),
    st.builds(Records, ids, st.booleans(), riding),
    st.builds(
        StatePull, st.lists(st.builds(Wanted, ids, u53, u32), min_size=1, max_size=40).map(tuple)
    ),
    st.builds(StatePull, st.just(()), st.lists(wanted_documents, max_size=32).map(tuple)),
    st.builds(StateDelta, st.integers(1, 255), st.lists(deltas, max_size=1).map(tuple)),
    st.builds(
        StateDelta,
        st.integers(1, 255),
        st.just(()),
        st.lists(document_parts, max_size=8).map(tuple),
    ),
)


def _fields(message):
    """A message's array as the wire has it, by msgpack alone."""
    return msgpack.packb(_plain(message))


def _plain(value):
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if hasattr(value, "__struct_fields__"):
        tag = value.__struct_config__.tag
        fields = [_plain(getattr(value, name)) for name in value.__struct_fields__]
        return fields if tag is None else [tag, *fields]
    return value


@given(all_messages)
def test_every_message_survives_the_wire(message):
    data = HEADER + _fields(message)
    datagram = decode(data, MESH)
    assert datagram.message == message
    assert (datagram.destination, datagram.source) == (b"destin00", b"source00")


@given(st.binary(max_size=DATAGRAM_BYTES_MAX + 10))
def test_random_bytes_raise_nothing_but_a_decode_error(data):
    for candidate in (data, HEADER + data):
        try:
            decode(candidate, MESH)
        except DecodeError as error:
            assert error.message.isidentifier()  # noqa: PT017  either outcome is right


@given(all_messages, st.randoms(use_true_random=False))
def test_mutated_datagrams_raise_nothing_but_a_decode_error(message, rng: random.Random):
    data = bytearray(HEADER + _fields(message))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    cut = bytes(data[: rng.randint(0, len(data))])
    for candidate in (bytes(data), cut):
        try:
            decode(candidate, MESH)
        except DecodeError as error:
            assert error.message.isidentifier()  # noqa: PT017  either outcome is right


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x91" * 1_300 + b"\xc0", "not_msgpack"),
        (b"\x91" * 500 + b"\xc0", "not_a_message"),
        (b"\xdd\xff\xff\xff\xff", "not_msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not_msgpack"),
        (b"\xdb\xff\xff\xff\xff", "not_msgpack"),
        (b"\xc6\xff\xff\xff\xff", "not_msgpack"),
        (b"\xc9\xff\xff\xff\xff\x01", "not_msgpack"),
        (b"\xc7\x00\x05", "not_msgpack"),
        (b"\xd4\x05\x00", "not_msgpack"),
        (b"\xd6\xff\x00\x00\x00\x00", "not_msgpack"),
        (b"\x92\x01\xc7\x00\x05", "not_msgpack"),
        (msgpack.packb((1, math.nan)), "not_a_message"),
        (msgpack.packb((1, math.inf)), "not_a_message"),
        (msgpack.packb((1, 7.0)), "not_a_message"),
        (msgpack.packb((1, True)), "not_a_message"),
        (msgpack.packb((1, 2**64 - 1)), "not_a_message"),
        (msgpack.packb((1, -1)), "not_a_message"),
        (msgpack.packb((1, 7)) + b"\x01", "not_msgpack"),
        (b"\x92\x01\xa2\xff\xfe", "not_msgpack"),
        (b"\x92\x01", "not_msgpack"),
        (b"\xc1", "not_msgpack"),
        (b"\x80", "not_a_message"),
        (b"\x91\x80", "not_a_message"),
        (b"\x81\x01\x02", "not_msgpack"),
        (b"\x92\x7f\x00", "unknown_kind"),
        (b"\x92\xa1x\x00", "not_a_message"),
        (b"\x90", "not_a_message"),
        (b"\x05", "not_a_message"),
    ],
)
def test_hostile_bodies_are_refused_for_a_stated_reason(body, reason):
    with pytest.raises(DecodeError) as caught:
        decode(HEADER + body, MESH)
    assert caught.value.message == reason


def _header(version=1, flags=0, key=0, mesh=MESH):
    return struct.pack(">BBH8s8s8s", version, flags, key, mesh, bytes(8), b"source00")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too_short"),
        (HEADER, "too_short"),
        (HEADER[:-1], "too_short"),
        (HEADER + bytes(DATAGRAM_BYTES_MAX), "too_large"),
        (_header(version=2) + b"\x92\x01\x01", "other_version"),
        (_header(mesh=b"othermsh") + b"\x92\x01\x01", "other_mesh"),
        (_header(flags=0x08) + b"\x92\x01\x01", "sealed"),
        (_header(key=1) + b"\x92\x01\x01", "sealed"),
        (_header(flags=FLAG_LOAD) + bytes(11), "too_short"),
    ],
)
def test_a_wrong_header_is_refused_before_the_body_is_read(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode(data, MESH)
    assert caught.value.message == reason


def test_fields_that_a_later_version_appends_are_ignored():
    body = msgpack.packb((4, 9, [], b"", "from the future", 1))
    assert decode(HEADER + body, MESH).message == Nack(9)


def test_the_own_load_travels_between_header_and_body():
    load = pack_load(Load(cpu_fraction=1.0, sequence=7))
    header = encode_header(MESH, NodeId(bytes(8)), NodeId(b"source00"), load)
    datagram = decode(header + encode_body(1, (5,)), MESH)
    assert datagram.load == load
    assert datagram.message == Ping(5)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 20])
@pytest.mark.parametrize("loads", [b"", b"l" * 38])
def test_rumours_encoded_once_ride_along_unchanged(count, loads):
    member = Member(
        NodeId(b"12345678"), Epoch(5), Incarnation(6), MemberState.SUSPECT,
        Address("10.0.0.1", 1), 3, 7,
    )  # fmt: skip
    doubt = (b"accuser0accuser1", b"accuser0")
    rumour = encode_update(member, *doubt)
    body = encode_body(2, (1, 2), [rumour] * count, loads)
    message = decode(HEADER + body, MESH).message
    update = Update(*update_fields(member, *doubt))
    assert message == Ack(1, 2, (update,) * count, loads)
    assert member_from(update) == member


def test_ids_that_stand_one_after_the_other_are_read_but_for_a_torn_one():
    assert list(ids_of(b"accuser0accuser1torn")) == [b"accuser0", b"accuser1"]
    assert list(ids_of(b"")) == []


def test_a_delta_is_counted_as_it_is_sent():
    delta = Delta(b"12345678", 1, 0, 2, (StateEntry("a", 1, b"x"), StateEntry("b", 2, None)))
    body = encode_body(11, (3,), [encode_delta(delta)])
    assert decode(HEADER + body, MESH).message == StateDelta(3, (delta,))


@given(addresses)
def test_an_address_survives_packing(address):
    assert unpack_address(pack_address(address)) == address


IPV4, IPV6 = Address("10.0.0.1", 1), Address("fd00::1", 2)


@pytest.mark.parametrize(("ip_version", "used", "other"), [(4, IPV4, IPV6), (6, IPV6, IPV4)])
def test_of_two_addresses_each_node_uses_the_one_that_it_can_and_tells_both_alike(
    ip_version, used, other
):
    told = Member(
        NodeId(b"12345678"), Epoch(5), Incarnation(6), MemberState.ALIVE, IPV6, other=IPV4
    )  # fmt: skip
    update = Update(*update_fields(told))
    member = member_from(update, ip_version)
    assert (member.address, member.other) == (used, other)
    assert update_fields(member) == update_fields(told)
    assert states(update, member)
    alone = Update(*update_fields(msgspec.structs.replace(told, address=IPV6, other=None)))
    assert member_from(alone, ip_version).address == IPV6
    assert not states(alone, member)


def test_a_scope_is_left_out_of_a_packed_address():
    assert unpack_address(pack_address(Address("fe80::1%eth0", 5))) == Address("fe80::1", 5)


@pytest.mark.parametrize(
    "packed",
    [
        bytes((10, 0, 0, 1, 0, 0)),
        bytes((0, 0, 0, 1, 1, 1)),
        bytes((224, 0, 0, 1, 1, 1)),
        bytes((255, 255, 255, 255, 1, 1)),
        bytes((10, 0, 0, 1, 0, 1, 1)),
        bytes(16) + b"\x01\x01",
        b"\xff" * 16 + b"\x01\x01",
        bytes(10) + b"\xff\xff\x0a\x00\x00\x01" + b"\x01\x01",
    ],
)
def test_an_address_where_nobody_can_be_is_refused(packed):
    with pytest.raises(DecodeError, match="bad_address"):
        unpack_address(packed)


fractions = st.floats(0, 1)
loads_made = st.builds(
    Load,
    cpu_fraction=fractions, mem_fraction=fractions, in_flight=st.integers(0, 2**15),
    queue=st.integers(0, 2**15), slots=st.integers(1, 2**12), service_s=st.floats(0, 3_000),
    dispatch_per_s=st.floats(0, 10_000), error_fraction=fractions, lag_s=st.floats(0, 600),
    ready=st.booleans(), full=st.booleans(), draining=st.booleans(),
    sequence=st.integers(0, LOAD_SEQUENCES - 1),
)  # fmt: skip


@given(loads_made)
def test_a_load_survives_packing_within_its_precision(load):
    back = unpack_load(pack_load(load))
    for name in ("cpu_fraction", "mem_fraction", "error_fraction"):
        assert abs(getattr(back, name) - getattr(load, name)) <= 0.5 / 255 + 1e-9
    for name in ("in_flight", "queue", "slots"):
        assert 0 <= getattr(load, name) - getattr(back, name) <= getattr(load, name) / 16
    for name, unit in (("service_s", 1e-6), ("dispatch_per_s", 0.1), ("lag_s", 1e-3)):
        value = getattr(load, name)
        assert abs(value - getattr(back, name)) <= value / 8 + unit
    for name in ("ready", "full", "draining", "sequence"):
        assert getattr(back, name) == getattr(load, name)
    assert load_sequence(pack_load(load)) == load.sequence
    assert unpack_load(pack_load(back)) == back


@given(st.integers(0, 2**20), st.integers(0, 2**20))
def test_more_work_never_packs_as_less(one, other):
    low, high = sorted((one, other))
    packed = [unpack_load(pack_load(Load(queue=n, service_s=n / 1e3))) for n in (low, high)]
    assert packed[0].queue <= packed[1].queue
    assert packed[0].service_s <= packed[1].service_s


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 5.0])
def test_a_fraction_out_of_range_is_packed_as_one_in_range(value):
    assert 0.0 <= unpack_load(pack_load(Load(cpu_fraction=value))).cpu_fraction <= 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_time_that_is_no_number_does_not_break_packing(value):
    packed = pack_load(Load(service_s=value, dispatch_per_s=value, lag_s=value))
    assert unpack_load(packed).service_s >= 0.0


@given(st.binary(min_size=11, max_size=11))
def test_every_pattern_of_bytes_is_a_load(packed):
    assert unpack_load(packed).slots >= 0


@given(st.integers(0, LOAD_SEQUENCES - 1), st.integers(1, LOAD_SEQUENCES // 2 - 1))
def test_a_later_load_is_newer_around_the_circle(sequence, ahead):
    later = (sequence + ahead) % LOAD_SEQUENCES
    assert is_newer_load(later, sequence)
    assert not is_newer_load(sequence, later)
    assert not is_newer_load(sequence, sequence)


def test_each_message_has_a_kind_of_its_own():
    kinds = [kind.__struct_config__.tag for kind in messages.Message.__args__]
    assert sorted(kinds) == list(range(1, 16))
