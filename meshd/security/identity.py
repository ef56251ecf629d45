"""A node's Ed25519 key, kept in its state directory, and the ids that are derived from names."""

import base64
import binascii
import contextlib
import hashlib
import logging
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshd.errors import UsageError
from meshd.model import ID_BYTES, MeshId, NodeId
from meshd.security.ed25519 import SEED_BYTES, public_key_of
from meshd.security.files import DamagedError, read_bounded, set_aside, write_atomic

KEY_FILE = "node.key"
KEY_BYTES_MAX = 4096
"""A PEM file with an Ed25519 key has about 120 bytes."""

_OTHERS = 0o077
_PEM_HEAD, _PEM_TAIL = b"-----BEGIN PRIVATE KEY-----\n", b"\n-----END PRIVATE KEY-----\n"
_DER_HEAD = bytes.fromhex("302e020100300506032b657004220420")
"""What stands before the seed in every unencrypted Ed25519 key. Source: RFC 8410, section 7."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key and the node id that follows from it.

    `seed` is the private key, 32 bytes. `kept` is false where the key could not be written: the
    node is somebody new at each start.
    """

    seed: bytes = field(repr=False)
    public_key: bytes
    kept: bool = True

    @property
    def node(self) -> NodeId:
        """The id that others know this node by."""
        return node_id(self.public_key)


def node_id(public_key: bytes) -> NodeId:
    """The id of the node that owns this raw Ed25519 public key: its BLAKE2b, 8 bytes."""
    return NodeId(hashlib.blake2b(public_key, digest_size=ID_BYTES).digest())


def mesh_id(name: str) -> MeshId:
    """The id of an open mesh: BLAKE2b of its name, 8 bytes."""
    return MeshId(hashlib.blake2b(name.encode("utf-8"), digest_size=ID_BYTES).digest())


def load_or_create(state_dir: Path) -> Identity:
    """The identity in `state_dir`, made there if there is none.

    A damaged key is kept aside and replaced. A disk that takes no new key costs a warning and the
    constancy of the identity, not the start.

    Raises:
        UsageError: a key is there and may not be read; nothing changed. To go on with another
            identity without being asked would hide the fault.
    """
    path = state_dir / KEY_FILE
    try:
        data = read_bounded(path, KEY_BYTES_MAX)
        seed = _parse(data)
    except FileNotFoundError:
        return _create(path)
    except DamagedError as error:
        aside = set_aside(path)
        _warn("node_key_damaged", path=path, reason=error, kept_as=aside or "(not kept)")
        return _create(path) if aside else _identity(_new_seed(), kept=False)
    except OSError as error:
        raise UsageError(
            f"cannot read the node's key {path}: {error.strerror}",
            hint="run as the user that owns the file, or give another --state-dir",
        ) from error
    _narrow(path)
    return _identity(seed, kept=True)


def keep(identity: Identity, state_dir: Path) -> Identity:
    """Try again to write a key that the disk did not take at the start; never over another one."""
    path = state_dir / KEY_FILE
    if identity.kept or path.exists():
        return identity
    try:
        write_atomic(path, _pem(identity.seed), mode=0o600)
    except OSError:
        return identity
    logger.info("node_key_kept", extra={"fields": {"path": path}})
    return replace(identity, kept=True)


def _parse(data: bytes) -> bytes:
    """The seed in a PEM file; in one that another tool wrote, too."""
    if data.startswith(_PEM_HEAD) and data.endswith(_PEM_TAIL):
        with contextlib.suppress(binascii.Error):
            body = data[len(_PEM_HEAD) : -len(_PEM_TAIL)]
            der = base64.b64decode(body, validate=True)
            if der.startswith(_DER_HEAD) and len(der) == len(_DER_HEAD) + SEED_BYTES:
                return der[len(_DER_HEAD) :]
    return _parse_foreign(data)


def _parse_foreign(data: bytes) -> bytes:
    # Imported where it is needed alone: it costs 9 MB, and our own files need none of it.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DamagedError("no readable PEM private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DamagedError("a private key, but not an Ed25519 one")
    return key.private_bytes_raw()


def _create(path: Path) -> Identity:
    seed = _new_seed()
    try:
        write_atomic(path, _pem(seed), mode=0o600)
    except OSError as error:
        _warn(
            "node_key_not_kept",
            path=path,
            reason=error.strerror,
            effect="this node gets a new id at each start",
        )
        return _identity(seed, kept=False)
    return _identity(seed, kept=True)


def _new_seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)


def _pem(seed: bytes) -> bytes:
    """PKCS #8, as every tool reads it."""
    return _PEM_HEAD + base64.b64encode(_DER_HEAD + seed) + _PEM_TAIL


def _identity(seed: bytes, *, kept: bool) -> Identity:
    return Identity(seed, public_key_of(seed), kept)


def _narrow(path: Path) -> None:
    """Take away other users' access to a key that was copied carelessly."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if mode & _OTHERS:
            path.chmod(0o600)
            _warn("node_key_was_open", path=path, mode=f"{mode & 0o777:o}", now="600")


def _warn(name: str, **fields: object) -> None:
    logger.warning(name, extra={"fields": fields})
