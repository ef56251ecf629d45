"""How busy this machine is, and how many slots it has by default."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import psutil

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_TICKS_MIN = 0.05
"""CPU seconds (over all cores) below which a difference says more of rounding than of load."""
_CPU_WEIGHT = 0.2

logger = logging.getLogger(__name__)


class LoadSampler:
    """Reads CPU and memory use without ever waiting.

    CPU is a moving average of the busy share of the time between two samples (weight 0.2: about
    five samples deep), so that second-long swings do not look like news to the mesh.
    `psutil.cpu_percent` is not used: it remembers the last reading for each thread, and reads 0
    where a node primes it on one thread and samples on another.
    """

    def __init__(self) -> None:
        self._cpu_fraction = 0.0
        self._mem_fraction = 0.0
        self._warned = False
        self._first = True
        self._busy, self._total = self._read_cpu() or (0.0, 0.0)

    def sample(self) -> tuple[float, float]:
        """(cpu, memory), each 0..1. Where the system refuses to say, the last known values."""
        reading = self._read_cpu()
        if reading is not None:
            busy, total = reading
            if total - self._total >= _TICKS_MIN:
                fresh = _clamp((busy - self._busy) / (total - self._total))
                # The first sample counts whole; then noise must not look like a change.
                weight = 1.0 if self._first else _CPU_WEIGHT
                self._cpu_fraction += weight * (fresh - self._cpu_fraction)
                self._busy, self._total, self._first = busy, total, False
        try:
            self._mem_fraction = _clamp(psutil.virtual_memory().percent / 100.0)
        except (OSError, psutil.Error, RuntimeError) as error:
            self._warn(error)
        return self._cpu_fraction, self._mem_fraction

    def _read_cpu(self) -> tuple[float, float] | None:
        try:
            return busy_and_total(psutil.cpu_times())
        except (OSError, psutil.Error, RuntimeError) as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            fields = {"reason": error, "effect": "this node's load is not current"}
            logger.warning("load_unreadable", extra={"fields": fields})


def busy_and_total(times: Any) -> tuple[float, float]:
    """Busy and total CPU seconds of a `psutil.cpu_times()`.

    Waiting for a disk is idle time; guests' time is contained in user and nice already.
    """
    values: dict[str, float] = times._asdict()
    total = sum(values.values()) - values.get("guest", 0.0) - values.get("guest_nice", 0.0)
    return total - values.get("idle", 0.0) - values.get("iowait", 0.0), total


def default_slots() -> int:
    """One slot for each CPU that this process may use: affinity and container quota, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS has no affinity
        count = os.cpu_count() or 1
    try:
        quota = cpu_quota(_CGROUP_CPU_MAX.read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        quota = None
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def cpu_quota(cpu_max: str) -> float | None:
    """CPUs that a cgroup's `cpu.max` grants ("50000 100000" is 0.5); None for no limit."""
    match cpu_max.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
        case _:
            return None


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0
