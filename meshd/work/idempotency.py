"""A bounded memory of first results, so that a repeated request is answered and not run again."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from meshd.clock import Instant, Seconds
from meshd.errors import UsageError

KEYS_MAX = 1_024
BYTES_MAX = 32 * 1024 * 1024
KEPT_S = 600.0
KEY_CHARS_MAX = 128
UNKNOWN_KEY = "unknown_key"
"""The `reason` in the data of the refusal to begin what was only to be joined."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Remembered(Generic[ValueT]):
    """A first result, the digest of the input that led to it, and its size in bytes."""

    value: ValueT
    digest: bytes
    size: int
    at: Instant


class Memory(Generic[ValueT]):
    """First results by capability and key: bounded by number, bytes and age, oldest dropped."""

    def __init__(
        self,
        *,
        keys_max: int = KEYS_MAX,
        bytes_max: int = BYTES_MAX,
        kept_s: Seconds = KEPT_S,
    ) -> None:
        self._keys_max: Final = keys_max
        self._bytes_max: Final = bytes_max
        self._kept_s: Final = kept_s
        self._kept: OrderedDict[tuple[str, str], Remembered[ValueT]] = OrderedDict()
        self.bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: tuple[str, str], now: Instant) -> Remembered[ValueT] | None:
        """The first result under this key, unless it was dropped or grew too old."""
        while self._kept and now - next(iter(self._kept.values())).at > self._kept_s:
            self._drop_oldest()
        return self._kept.get(key)

    def put(
        self, key: tuple[str, str], value: ValueT, *, digest: bytes, size: int, now: Instant
    ) -> None:
        """Remember a first result of about `size` bytes, if it is not too large to be kept at all.

        A second one under the key is ignored.
        """
        if key in self._kept:
            return
        if size > self._bytes_max:
            self.dropped += 1
            return
        self._kept[key] = Remembered(value, digest, size, now)
        self.bytes += size
        while len(self._kept) > self._keys_max or self.bytes > self._bytes_max:
            self._drop_oldest()
            self.dropped += 1

    def _drop_oldest(self) -> None:
        _, old = self._kept.popitem(last=False)
        self.bytes -= old.size


def check_key(key: str) -> str:
    """The same idempotency key, if it can be one.

    Raises:
        UsageError: it cannot.
    """
    if not 1 <= len(key) <= KEY_CHARS_MAX:
        raise UsageError(f"an idempotency key has 1 to {KEY_CHARS_MAX} characters, not {len(key)}")
    return key
