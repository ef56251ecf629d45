"""A capability's full description (manifest) and the short summary of it that gossip carries."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from meshd.errors import UsageError
from meshd.model import check_name, is_name

DESCRIPTION_CHARS_MAX = 2_000
SUMMARY_DESCRIPTION_CHARS_MAX = 160
TAGS_MAX = 16
TAG_CHARS_MAX = 32
MANIFEST_BYTES_MAX = 65_536
RATE_MAX = 1e6
COST_USD_MAX = 1e6
UNIT_CHARS_MAX = 16
PROFICIENCY_DEFAULT = 0.5
"""Of a capability that says nothing of it: a generalist."""
ATTRIBUTES_MAX = 16
ATTRIBUTE_VALUES_MAX = 64
ATTRIBUTE_CHARS_MAX = 64

Attributes = tuple[tuple[str, tuple[str, ...]], ...]
"""What a capability is good for, by name: `(("warehouse", ("A", "B")),)`."""

CostUsd = Annotated[float, msgspec.Meta(ge=0.0, le=COST_USD_MAX)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one capability that a caller may want to know before it calls.

    `idempotent` says that running it twice does no harm: only then is it retried after an
    indefinite error or hedged. `timeout_s` bounds one run; `concurrency` bounds runs at a time
    within the node's slots (0: no bound of its own), `rate_per_s` how often it begins (0: as often
    as asked). `input_schema` and `output_schema` are JSON Schema documents; where `streaming` is
    set, the latter is that of each partial result, and a caller who asks for the result alone gets
    them all as a list.

    A call costs `cost_usd_per_call`, and `cost_usd_per_unit` for each unit that the answer says it
    took; `unit` names one (`token`, `page`). `proficiency` is how hard the work may be that it is
    good at, 0..1. `attributes` say what it is good for; `where` of a call asks for them.
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
    cost_usd_per_call: float = 0.0
    cost_usd_per_unit: float = 0.0
    unit: str = ""
    proficiency: float = PROFICIENCY_DEFAULT
    attributes: dict[str, str | tuple[str, ...]] = {}


class CapabilitySummary(msgspec.Struct, frozen=True, array_like=True):
    """What every node knows of a capability elsewhere: enough to choose, small enough to gossip.

    The fields from `cost_usd_per_call` on were appended in version 0.2: older nodes pass them over.
    """

    name: str
    version: str
    idempotent: bool
    agent: str
    description: str
    tags: tuple[str, ...]
    digest: bytes
    cost_usd_per_call: CostUsd = 0.0
    cost_usd_per_unit: CostUsd = 0.0
    proficiency: Fraction = PROFICIENCY_DEFAULT
    attributes: Attributes = ()

    def cost_usd(self, units: float = 1.0) -> float:
        """What a call costs that takes so many units."""
        return self.cost_usd_per_call + self.cost_usd_per_unit * units


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
    if type(manifest.concurrency) is not int or manifest.concurrency < 0:
        faults.append("concurrency must be 0 (no own bound) or a whole number above it")
    if not 0 <= manifest.rate_per_s <= RATE_MAX:
        faults.append(f"rate_per_s must be 0 (no bound) to {RATE_MAX:g}")
    faults += [*_cost_faults(manifest), *attribute_faults(manifest.attributes)]
    if not 0.0 <= manifest.proficiency <= 1.0:
        faults.append("proficiency must be 0 to 1")
    if len(encode_manifest(manifest)) > MANIFEST_BYTES_MAX:
        faults.append(f"the whole manifest is larger than {MANIFEST_BYTES_MAX} bytes")
    if faults:
        raise UsageError(f"capability {manifest.name!r}: " + "; ".join(faults))
    return manifest


def _cost_faults(manifest: Manifest) -> list[str]:
    faults = [
        f"{name} must be 0 to {COST_USD_MAX:g}"
        for name in ("cost_usd_per_call", "cost_usd_per_unit")
        if not 0.0 <= getattr(manifest, name) <= COST_USD_MAX
    ]
    if len(manifest.unit) > UNIT_CHARS_MAX:
        faults.append(f"unit is longer than {UNIT_CHARS_MAX} characters")
    return faults


def attribute_faults(attributes: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    """What is wrong with attributes, in sentences; empty if nothing is."""
    faults = []
    if len(attributes) > ATTRIBUTES_MAX:
        faults.append(f"more than {ATTRIBUTES_MAX} attributes")
    for name, given in attributes.items():
        values = values_of(given)
        if not is_name(name):
            faults.append(f"attribute {name[:80]!r} is not a valid name")
        if len(values) > ATTRIBUTE_VALUES_MAX:
            faults.append(f"attribute {name[:80]!r} has more than {ATTRIBUTE_VALUES_MAX} values")
        if not all(0 < len(value) <= ATTRIBUTE_CHARS_MAX for value in values):
            faults.append(
                f"a value of attribute {name[:80]!r} is empty or longer than"
                f" {ATTRIBUTE_CHARS_MAX} characters"
            )
    return faults


def values_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """The values of an attribute, of which one may stand alone."""
    return (given,) if isinstance(given, str) else given


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON (sorted keys): what the digest is taken of.

    Fields that were added later are left out where they say nothing, so that one capability has
    one digest on older nodes, too.
    """
    fields = msgspec.to_builtins(manifest)
    for name in _ADDED:
        if fields[name] == _DEFAULTS[name]:
            del fields[name]
    return msgspec.json.encode(fields, order="sorted")


def told_fields(manifest: Manifest) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON: all versions of a reader take these."""
    fields = msgspec.to_builtins(manifest)
    return {name: value for name, value in fields.items() if value != _DEFAULTS[name]}


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
        cost_usd_per_call=manifest.cost_usd_per_call,
        cost_usd_per_unit=manifest.cost_usd_per_unit,
        proficiency=manifest.proficiency,
        attributes=tuple((name, values_of(each)) for name, each in manifest.attributes.items()),
    )


def encode_summary(summary: CapabilitySummary) -> bytes:
    """It as gossip carries it: without the last fields, as far as they say nothing."""
    fields: list[Any] = msgspec.to_builtins(summary, builtin_types=(bytes,))
    while len(fields) > len(_SUMMARY_DEFAULTS) - len(CapabilitySummary.__struct_defaults__):
        if fields[-1] != _SUMMARY_DEFAULTS[len(fields) - 1]:
            break
        fields.pop()
    return msgspec.msgpack.encode(fields)


_DEFAULTS: dict[str, Any] = msgspec.to_builtins(Manifest(name=""))
_ADDED = ("cost_usd_per_call", "cost_usd_per_unit", "unit", "proficiency", "attributes")
_SUMMARY_DEFAULTS: list[Any] = msgspec.to_builtins(
    CapabilitySummary("", "", False, "", "", (), b""), builtin_types=(bytes,)
)
