"""multiprocessing.Pool.imap over two workers, with several chunk sizes."""

import multiprocessing
from collections.abc import Callable
from functools import partial

from benchmarks.pools.work import increment, rate_of
from benchmarks.worker import die_with_parent, obey

# The best of these counts. With 100,000 items the last leaves each worker six chunks.
CHUNK_SIZES = (1, 16, 128, 1024, 8192)


def client(path: str) -> None:
    """Start the workers and measure; the path is not used."""
    with multiprocessing.get_context("spawn").Pool(2, die_with_parent) as pool:

        def whole_map(chunk_size: int, count: int) -> float:
            return rate_of(count, lambda: pool.imap(increment, range(count), chunk_size))

        commands: dict[str, Callable[[int], float]] = {
            f"chunks of {size}": partial(whole_map, size) for size in CHUNK_SIZES
        }
        obey(commands)
