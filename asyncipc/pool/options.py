"""The options of a pool: what each may be, checked when it is made.

Layer 4, inside the pool.
"""

import math
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal

__all__ = ["check_options", "check_retries", "default_start_method"]

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
}

START_METHODS: Final = ("zygote", "spawn")


def check_options(**options: Any) -> None:
    """Check options of `asyncipc.Pool` by their names.

    :raises TypeError: one is of another type than it should be
    :raises ValueError: one has a value that it cannot have
    """
    for name, value in options.items():
        if name == "preload":
            _check_preload(value)
        elif name == "start_method":
            if value is not None and value not in START_METHODS:
                raise ValueError(f"start_method is one of {START_METHODS}, not {value!r}")
        else:
            _check_number(name, value)


def check_retries(retries: int) -> int:
    """The number of attempts behind the first, if it is one.

    :raises TypeError, ValueError: it is not
    """
    _check_number("retries", retries)
    return retries


def default_start_method() -> Literal["zygote", "spawn"]:
    """How workers come to be where nobody asks: forked, where the kernel has all it takes."""
    has_everything = (
        sys.platform == "linux"
        and hasattr(os, "pidfd_open")
        and hasattr(signal, "pidfd_send_signal")
    )
    return "zygote" if has_everything else "spawn"


def _check_number(name: str, value: Any) -> None:
    kind, lowest, highest, optional, unit = _NUMBERS[name]
    if value is None and optional:
        return
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} is a number of {unit}, not {value!r}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is from {lowest:g} to {highest:g} {unit}, not {value!r}")


def _check_preload(preload: Sequence[Any]) -> None:
    if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
        raise TypeError(f"preload is a list of names of modules, not {preload!r:.60}")
