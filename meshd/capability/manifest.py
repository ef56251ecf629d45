"""A capability's full description (manifest) and the short summary of it that gossip carries."""

import hashlib
from typing import Any

import msgspec

from meshd.errors import UsageError
from meshd.model import check_name

DESCRIPTION_CHARS_MAX = 2_000
SUMMARY_DESCRIPTION_CHARS_MAX = 160
TAGS_MAX = 16
TAG_CHARS_MAX = 32
MANIFEST_BYTES_MAX = 65_536
RATE_MAX = 1e6


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one capability that a caller may want to know before it calls.

    `idempotent` says that running it twice does no harm: only then is it retried after an
    indefinite error or hedged. `timeout_s` bounds one run; `concurrency` bounds runs at a time
    within the node's slots (0: no bound of its own), `rate_per_s` how often it begins (0: as often
    as asked). `input_schema` and `output_schema` are JSON Schema documents; where `streaming` is
    set, the latter is that of each partial result, and a caller who asks for the result alone gets
    them all as a list.
    """

    name: str
    version: str = "1.0.0"
    description: str = ""
    agent: str = ""
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    idempotent: bool = False
    timeout_s: float = 300.0
    concurrency: int = 0
    rate_per_s: float = 0.0
    streaming: bool = False


class CapabilitySummary(msgspec.Struct, frozen=True, array_like=True):
    """What every node knows of a capability elsewhere: enough to choose, small enough to gossip."""

    name: str
    version: str
    idempotent: bool
    agent: str
    description: str
    tags: tuple[str, ...]
    digest: bytes


def check_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest if every field is within its bounds.

    Raises:
        UsageError: a field is not; the message names it.
    """
    check_name(manifest.name, "capability")
    faults = []
    if len(manifest.description) > DESCRIPTION_CHARS_MAX:
        faults.append(f"description is longer than {DESCRIPTION_CHARS_MAX} characters")
    if len(manifest.tags) > TAGS_MAX or any(len(t) > TAG_CHARS_MAX for t in manifest.tags):
        faults.append(f"more than {TAGS_MAX} tags, or one longer than {TAG_CHARS_MAX} characters")
    if not manifest.timeout_s > 0:
        faults.append("timeout_s must be above 0")
    if manifest.concurrency < 0:
        faults.append("concurrency must be 0 (no own bound) or more")
    if not 0 <= manifest.rate_per_s <= RATE_MAX:
        faults.append(f"rate_per_s must be 0 (no bound) to {RATE_MAX:g}")
    if len(encode_manifest(manifest)) > MANIFEST_BYTES_MAX:
        faults.append(f"the whole manifest is larger than {MANIFEST_BYTES_MAX} bytes")
    if faults:
        raise UsageError(f"capability {manifest.name!r}: " + "; ".join(faults))
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON (sorted keys): what the digest is taken of."""
    return msgspec.json.encode(manifest, order="sorted")


def decode_manifest(body: bytes) -> Manifest:
    """What `encode_manifest` wrote, here or in a later version: unknown fields are passed over.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is no manifest.
    """
    fields = msgspec.json.decode(body, type=dict[str, Any])
    known = {name: fields[name] for name in Manifest.__struct_fields__ if name in fields}
    return msgspec.convert(known, Manifest)


def digest_of(manifest: Manifest) -> bytes:
    """8 bytes that stand for the whole manifest in its summary."""
    return body_digest(encode_manifest(manifest))


def body_digest(body: bytes) -> bytes:
    """The same, of a manifest as it was written."""
    return hashlib.blake2b(body, digest_size=8).digest()


def summarise(manifest: Manifest) -> CapabilitySummary:
    """The summary that gossip carries. Long descriptions are cut; the manifest has them whole."""
    description = " ".join(manifest.description.split())
    if len(description) > SUMMARY_DESCRIPTION_CHARS_MAX:
        description = description[: SUMMARY_DESCRIPTION_CHARS_MAX - 1] + "…"
    return CapabilitySummary(
        name=manifest.name,
        version=manifest.version,
        idempotent=manifest.idempotent,
        agent=manifest.agent,
        description=description,
        tags=manifest.tags,
        digest=digest_of(manifest),
    )
