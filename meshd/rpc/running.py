"""The calls of the other side that run at one end of a channel."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from meshd.rpc.messages import Id

_Call = TypeVar("_Call")


class RunningCalls(Generic[_Call]):
    """Each with its id and the bytes that its request takes; found by id without a search.

    Ids are the other side's, so that several may be alike. 1 and 1.0 are not; a notification has
    None, by which nothing is found.
    """

    def __init__(self) -> None:
        self._calls: dict[_Call, tuple[Id, int]] = {}
        self._by_id: dict[object, tuple[_Call, ...]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[_Call]:
        return iter(self._calls)

    def __contains__(self, call: object) -> bool:
        return call in self._calls

    def add(self, call: _Call, call_id: Id, size: int) -> None:
        """It begins."""
        self._calls[call] = call_id, size
        if call_id is not None:
            key = _key(call_id)
            self._by_id[key] = (*self._by_id.get(key, ()), call)

    def remove(self, call: _Call) -> int:
        """It has ended; returns the size of its request."""
        call_id, size = self._calls.pop(call)
        if call_id is not None:
            key = _key(call_id)
            alike = self._by_id.pop(key)
            if len(alike) > 1:
                self._by_id[key] = tuple(each for each in alike if each is not call)
        return size

    def called(self, call_id: object) -> tuple[_Call, ...]:
        """Those with this id; any value may be asked for."""
        if not isinstance(call_id, str | int | float) or isinstance(call_id, bool):
            return ()
        return self._by_id.get(_key(call_id), ())


def _key(call_id: Id) -> object:
    return call_id if type(call_id) is not float else (float, call_id)
