"""A node's key and the ids that follow from it."""

import errno
import hashlib
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from meshd.errors import UsageError
from meshd.security import files
from meshd.security.identity import KEY_BYTES_MAX, keep, load_or_create, mesh_id


def test_a_first_start_makes_a_key_that_the_second_start_finds(tmp_path):
    first = load_or_create(tmp_path)
    second = load_or_create(tmp_path)
    assert first.node == second.node
    assert first.kept
    assert second.kept
    assert first.public_key == second.public_key


def test_node_id_is_blake2b_of_the_raw_public_key(tmp_path):
    identity = load_or_create(tmp_path)
    assert identity.node == hashlib.blake2b(identity.public_key, digest_size=8).digest()
    assert len(identity.public_key) == 32


def test_mesh_id_is_blake2b_of_the_name():
    assert mesh_id("default") == hashlib.blake2b(b"default", digest_size=8).digest()
    assert mesh_id("default") != mesh_id("Default")


def test_the_key_file_is_private_and_no_other_file_stays(tmp_path):
    load_or_create(tmp_path)
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["node.key"]


def test_the_private_key_is_not_in_the_repr(tmp_path):
    identity = load_or_create(tmp_path)
    assert "seed" not in repr(identity)
    assert repr(identity.seed) not in repr(identity)


def test_a_key_that_others_can_read_is_narrowed(tmp_path, caplog):
    load_or_create(tmp_path)
    (tmp_path / "node.key").chmod(0o644)
    load_or_create(tmp_path)
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert "node_key_was_open" in caplog.text


def _pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_the_key_file_is_the_one_that_cryptography_writes(tmp_path):
    identity = load_or_create(tmp_path)
    written = (tmp_path / "node.key").read_bytes()
    key = load_pem_private_key(written, password=None)
    assert _pem(key) == written
    assert key.public_key().public_bytes_raw() == identity.public_key
    assert key.private_bytes_raw() == identity.seed


@pytest.mark.parametrize(
    "retouch",
    [bytes, lambda pem: pem.replace(b"\n", b"\r\n"), lambda pem: b"# my node\n" + pem],
    ids=["as-we-write-it", "other-line-ends", "with-a-comment"],
)
def test_a_key_that_another_tool_wrote_is_taken(tmp_path, retouch):
    key = Ed25519PrivateKey.generate()
    (tmp_path / "node.key").write_bytes(retouch(_pem(key)))
    assert load_or_create(tmp_path).public_key == key.public_key().public_bytes_raw()


def _foreign_key():
    return _pem(X25519PrivateKey.generate())


_NOT_BASE64 = b"-----BEGIN PRIVATE KEY-----\n%%%\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n",
        _foreign_key(),
        _NOT_BASE64,
    ],
    ids=["empty", "text", "binary", "cut", "other-algorithm", "not-base64"],
)
def test_a_damaged_key_is_kept_aside_and_replaced(tmp_path, caplog, content):
    (tmp_path / "node.key").write_bytes(content)
    identity = load_or_create(tmp_path)
    assert identity.kept
    assert (tmp_path / "node.key.damaged-1").read_bytes() == content
    assert load_or_create(tmp_path).node == identity.node
    assert "node_key_damaged" in caplog.text


def test_each_damaged_key_is_kept_under_its_own_number(tmp_path):
    for number in (1, 2):
        (tmp_path / "node.key").write_bytes(b"x" * number)
        load_or_create(tmp_path)
    assert (tmp_path / "node.key.damaged-1").read_bytes() == b"x"
    assert (tmp_path / "node.key.damaged-2").read_bytes() == b"xx"


def test_an_oversized_key_file_is_damaged_not_read(tmp_path):
    (tmp_path / "node.key").write_bytes(b"x" * (KEY_BYTES_MAX + 1))
    assert load_or_create(tmp_path).kept
    assert (tmp_path / "node.key.damaged-1").exists()


def test_a_full_disk_costs_the_constancy_and_not_the_start(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    identity = load_or_create(tmp_path)
    assert not identity.kept
    assert len(identity.node) == 8
    assert list(tmp_path.iterdir()) == []
    assert "node_key_not_kept" in caplog.text


def test_a_key_is_kept_later_once_the_disk_takes_it(tmp_path, caplog):
    place = tmp_path / "later"
    identity = load_or_create(place)
    assert keep(identity, place) is identity
    place.mkdir()
    kept = keep(identity, place)
    assert kept.kept
    assert keep(kept, place) is kept
    assert load_or_create(place).node == identity.node
    # Whatever stands there now is somebody's: it is not overwritten.
    assert keep(load_or_create(tmp_path / "absent"), place).kept is False
    assert load_or_create(place).node == identity.node


def test_a_missing_directory_costs_a_warning(tmp_path, caplog):
    assert not load_or_create(tmp_path / "absent").kept
    assert "node_key_not_kept" in caplog.text


def test_a_key_that_is_there_but_unreadable_is_an_error_not_a_new_identity(tmp_path):
    (tmp_path / "node.key").mkdir()
    with pytest.raises(UsageError, match="cannot read the node's key"):
        load_or_create(tmp_path)


def test_a_damaged_key_that_cannot_be_set_aside_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "node.key").write_bytes(b"precious?")
    monkeypatch.setattr(files.Path, "replace", _denied)
    identity = load_or_create(tmp_path)
    assert not identity.kept
    assert (tmp_path / "node.key").read_bytes() == b"precious?"


def _denied(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_the_hundredth_damaged_copy_is_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ASIDE_MAX", 2)
    for content in (b"1", b"2", b"3"):
        (tmp_path / "f").write_bytes(content)
        assert files.set_aside(tmp_path / "f") is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.damaged-1", "f.damaged-2"]
    assert (tmp_path / "f.damaged-2").read_bytes() == b"3"
