"""The numbers by which a pool decides: pure, so that each rule can be tried without a process.

Layer 4, inside the pool.
"""

import math
import random
from collections.abc import Callable
from typing import Final

__all__ = ["Backoff", "ChunkSizer", "Durations", "Maxima", "task_limit"]

# Seconds of work that may wait in a worker behind what it runs, where all workers are busy. Tiny
# tasks need some, or the worker would idle while its answer travels; what waits there cannot go to
# another worker that becomes free earlier.
AHEAD: Final = 0.001
MAX_AHEAD: Final = 64

# Functions whose durations are remembered.
MAX_FUNCTIONS: Final = 1024

# How much of an old maximum is left after each faster run.
DECAY: Final = 0.9

# Seconds before the second, third ... attempt to start a worker after one that died before it was
# ready: doubled each time.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0

# Seconds of work that make a good chunk: long beside the 0.1 ms that a chunk costs, short enough
# that the last chunks end together.
CHUNK_TIME: Final = 0.004
MAX_CHUNK: Final = 16384

# Bytes of pickled items that a chunk should not exceed. What is under way is memory of the
# application and of the workers.
CHUNK_BYTES: Final = 1024 * 1024

# How fast chunks may grow while little is known.
CHUNK_GROWTH: Final = 128

# Chunks that each worker gets at least, where the number of items is known.
CHUNKS_PER_WORKER: Final = 7

# The most by which limits of tasks differ, so that workers do not all go at once.
JITTER: Final = 0.1


class Maxima:
    """The largest of something that was seen of each function, which fades as less follows."""

    def __init__(self) -> None:
        self._known: dict[bytes, float] = {}

    def note(self, function: bytes, value: float) -> None:
        """A function ran."""
        known = self._known.get(function, 0.0)
        if value < known:
            value = max(value, known * DECAY)
        elif not known and len(self._known) >= MAX_FUNCTIONS:
            self._known.clear()
        self._known[function] = value

    def of(self, function: bytes) -> float | None:
        """What is known; None before it ran."""
        return self._known.get(function)


class Durations(Maxima):
    """How long functions take, in seconds."""

    def ahead(self, function: bytes) -> int:
        """How many of its tasks may wait in a worker; none before it is known to be fast."""
        seconds = self._known.get(function)
        if seconds is None or seconds > AHEAD:
            return 0
        return int(AHEAD / seconds) if seconds > AHEAD / MAX_AHEAD else MAX_AHEAD


class Backoff:
    """When a worker may be started after others died before they were ready.

    The first replacement starts at once.
    """

    def __init__(self) -> None:
        self.failures: int = 0
        self._next = FIRST_PAUSE

    def failed(self) -> float:
        """One more died; seconds to wait before the next."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        pause, self._next = self._next, min(LONGEST_PAUSE, 2 * self._next)
        return pause

    def succeeded(self) -> None:
        """One came up."""
        self.failures = 0
        self._next = FIRST_PAUSE


class ChunkSizer:
    """How many items a chunk should have, from how long earlier ones took and how large they are.

    :param workers: how many share the work
    :param total: how many items there are, if that is known
    """

    def __init__(self, workers: int, total: int | None = None) -> None:
        self._size = 1
        self._most = MAX_CHUNK
        self._light = MAX_CHUNK  # so many are not too many bytes
        self.is_informed: bool = False  # a chunk has come back
        if total is not None:
            self._most = max(1, min(MAX_CHUNK, total // (workers * CHUNKS_PER_WORKER)))

    @property
    def size(self) -> int:
        """For the next chunk."""
        return min(self._size, self._light)

    def weigh(self, items: int, size: int) -> None:
        """A chunk is under way, and has so many bytes."""
        self._light = max(1, items * CHUNK_BYTES // (size + 1))

    def note(self, items: int, seconds: float) -> None:
        """A chunk took so long in its worker."""
        self.is_informed = True
        fitting = items * CHUNK_TIME / seconds if seconds > 0 else math.inf
        self._size = max(1, int(min(fitting, items * CHUNK_GROWTH, self._most)))


def task_limit(max_tasks: int | None, uniform: Callable[[], float] = random.random) -> int | None:
    """How many tasks one worker runs: ``max_tasks``, or up to a tenth fewer."""
    if max_tasks is None:
        return None
    return max_tasks - int(uniform() * JITTER * max_tasks)
