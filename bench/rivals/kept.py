"""Results that outlive a run: a JSON line each, so that a run that was cut off can go on."""

import json
import os
import time
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class Kept:
    """What is in a file of results, and the means to add to it.

    A result's key is the bench, the profile, the case (size, seconds of a split and so on), the
    kind and the number of the round. Whoever changes what is measured takes another file.

    Args:
        path: the file; None keeps results in memory alone.
        bench: the name under which this bench's lines stand; others' are left alone.
        profile: of all kinds.
    """

    def __init__(self, path: Path | None, bench: str, profile: str) -> None:
        self._path = path
        self._fixed = {"bench": bench, "profile": profile}
        self._results: dict[str, Result] = {}
        self._is_torn = False
        if path is not None and path.exists():
            text = path.read_text("utf-8")
            self._is_torn = text[-1:] not in {"", "\n"}
            for line in text.splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            told = json.loads(line)
        except json.JSONDecodeError:  # the run was cut off while it wrote this
            return
        if all(told.get(name) == value for name, value in self._fixed.items()):
            key = self._key(told["case"], told["kind"], told["run"])
            self._results[key] = told["result"]

    @staticmethod
    def _key(case: Result, kind: str, run: int) -> str:
        return json.dumps([case, kind, run], sort_keys=True)

    def get(self, case: Result, kind: str, run: int) -> Result | None:
        """A round's result, if it is there."""
        return self._results.get(self._key(case, kind, run))

    def put(self, case: Result, kind: str, run: int, result: Result) -> None:
        """Keep a round's result, on disk before this returns."""
        self._results[self._key(case, kind, run)] = result
        if self._path is None:
            return
        line = {
            **self._fixed, "case": case, "kind": kind, "run": run, "result": result,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_torn + json.dumps(line) + "\n")
        self._is_torn = False
