"""What can happen in a node's eyes, as values and as JSON."""

import base64
from enum import StrEnum

import msgspec

from meshd.errors import UsageError


class Kind(StrEnum):
    """The types of events."""

    JOINED = "joined"
    ALIVE = "alive"
    SUSPECT = "suspect"
    REFUTED = "refuted"
    DEAD = "dead"
    LEFT = "left"
    RESTARTED = "restarted"
    UPDATED = "updated"
    CONFLICT = "conflict"
    HEALTH = "health"
    EVENT = "event"


LOST = "lost"
"""The type of what a reader is shown in place of events that it missed."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened.

    Attributes:
        seq: 1, 2, 3 ... within one run of the daemon.
        wall_ms: when, in milliseconds since 1970.
        type: one of `Kind`.
        node: whom it is about, in hex; of a user's event, who told it.
        name: that node's name, where it was known.
        incarnation: of the record that it is about.
        reason: in words.
        accuser: whose failed probe stands behind it, in hex, or empty.
        event: of a user's event its name.
        payload: of a user's event, as text; or `payload_base64` where it is no text.
        lamport: of a user's event its Lamport time.
        age_s: of a user's event how long before it was told.
        accuser_name: the accuser's name, where it is known.
        lost: for a reader in whose place `type` is "lost": how many events it missed here.
    """

    seq: int
    wall_ms: int
    type: str
    node: str
    name: str = ""
    incarnation: int | None = None
    reason: str = ""
    accuser: str = ""
    event: str = ""
    payload: str | None = None
    payload_base64: str | None = None
    lamport: int | None = None
    age_s: float | None = None
    accuser_name: str = ""
    lost: int = 0

    @property
    def data(self) -> bytes:
        """The payload of a user's event."""
        return payload_from(self.payload, self.payload_base64)


def payload_shape(payload: bytes) -> dict[str, str]:
    """A payload as JSON: text where it is text, else base64."""
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}


def payload_from(text: str | None, encoded: str | None) -> bytes:
    """The payload that JSON stands for.

    Raises:
        UsageError: both forms are given, or it is no base64.
    """
    if encoded is None:
        return (text or "").encode()
    if text is not None:
        raise UsageError("give payload or payload_base64, not both")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise UsageError(f"payload_base64 is no base64: {error}") from error
