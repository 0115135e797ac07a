"""What a process holds: memory, descriptors, tasks, children, threads, objects."""

import asyncio
import gc
import os
import resource
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Census", "allow_descriptors", "private_kib"]


def private_kib() -> int:
    """KiB of memory that this process shares with no other, after a garbage collection."""
    gc.collect()
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    )
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


def allow_descriptors() -> None:
    """Raise the limit of open descriptors as far as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Census:
    """What is there at one moment, garbage collected before; call it in the loop's thread."""

    descriptors: int
    tasks: int
    children: int
    threads: int
    objects: int
    private_kib: int
    types: dict[str, int]

    @classmethod
    def take(cls) -> "Census":
        """Count. Children include those that are dead and not reaped."""
        private = private_kib()
        found = gc.get_objects()
        types = Counter(f"{type(item).__module__}.{type(item).__qualname__}" for item in found)
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")) - 1,  # the one that lists them
            tasks=len(asyncio.all_tasks()),
            children=len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
            threads=threading.active_count(),
            objects=len(found),
            private_kib=private,
            types=dict(types),
        )
