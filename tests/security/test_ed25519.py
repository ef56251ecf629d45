"""The public key of a seed, against the standard's own vectors and another implementation."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis.strategies import binary

from meshd.security.ed25519 import public_key_of

# RFC 8032, section 7.1: tests 1, 2 and 3
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    ),
]


@pytest.mark.parametrize(("seed", "public_key"), VECTORS)
def test_the_standards_vectors_hold(seed, public_key):
    assert public_key_of(bytes.fromhex(seed)).hex() == public_key


@settings(max_examples=50)
@given(binary(min_size=32, max_size=32))
def test_every_seed_has_the_public_key_that_cryptography_finds(seed):
    other = Ed25519PrivateKey.from_private_bytes(seed)
    assert public_key_of(seed) == other.public_key().public_bytes_raw()


def test_a_seed_of_another_length_is_our_own_bug():
    with pytest.raises(AssertionError, match="32 bytes"):
        public_key_of(b"short")
