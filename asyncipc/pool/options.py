"""The options of a pool: what each may be, checked when it is made.

Layer 4, inside the pool. Below: payload.
"""

import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

from asyncipc.pool.payload import is_async

__all__ = ["PoolOptions", "StartMethod", "check_count", "default_start_method"]

StartMethod: TypeAlias = Literal["zygote", "spawn"]

# name: type, lowest, highest, whether None is allowed, unit.
_NUMBERS: Final[dict[str, tuple[type, float, float, bool, str]]] = {
    "workers": (int, 1, 4096, False, "workers"),
    "concurrency": (int, 1, 2**20, False, "async functions"),
    "max_tasks": (int, 1, 2**62, True, "tasks"),
    "max_rss": (int, 1, 2**62, True, "bytes"),
    "max_queued": (int, 0, 2**62, False, "tasks"),
    "spawn_timeout": (float, 0, math.inf, False, "seconds"),
    "grace": (float, 0, math.inf, False, "seconds"),
    "niceness": (int, -20, 19, False, "steps"),
    "retries": (int, 0, 2**31, False, "attempts"),
    "chunk_size": (int, 1, 2**31, True, "items"),
}

START_METHODS: Final = ("zygote", "spawn")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What a pool was made with; see `asyncipc.Pool`.

    :raises TypeError: one is of another type than it should be
    :raises ValueError: one has a value that it cannot have
    """

    workers: int
    preload: Sequence[str]
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    service: Any
    concurrency: int
    max_tasks: int | None
    max_rss: int | None
    max_queued: int
    spawn_timeout: float
    grace: float
    niceness: int
    start_method: StartMethod | None
    drain: bool
    on_stderr: Callable[[str], object]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in _NUMBERS:
                check_count(field.name, getattr(self, field.name))
        names = self.preload
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"preload is a list of names of modules, not {names!r:.60}")
        if self.start_method is not None and self.start_method not in START_METHODS:
            raise ValueError(f"start_method is one of {START_METHODS}, not {self.start_method!r}")
        if self.initializer is not None and not callable(self.initializer):
            raise TypeError(f"initializer is a function, not {self.initializer!r:.60}")
        if is_async(self.on_stderr):
            raise TypeError(f"on_stderr is a plain function, not async: {self.on_stderr!r:.60}")


def check_count(name: str, value: Any) -> None:
    """Check a number by the name under which it is given.

    :raises TypeError, ValueError: as `PoolOptions`
    """
    kind, lowest, highest, optional, unit = _NUMBERS[name]
    if value is None and optional:
        return
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} is a number of {unit}, not {value!r}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is from {lowest:g} to {highest:g} {unit}, not {value!r}")


def default_start_method() -> StartMethod:
    """How workers come to be where nobody asks: forked, where the kernel has all it takes."""
    has_pidfds = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")
    return "zygote" if sys.platform == "linux" and has_pidfds else "spawn"
