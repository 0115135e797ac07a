"""concurrent.futures.ProcessPoolExecutor.map over two workers, each item by itself."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.pools.work import increment, rate_of
from benchmarks.worker import die_with_parent, obey


def client(path: str) -> None:
    """Start the workers and measure; the path is not used."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, die_with_parent) as executor:

        def whole_map(count: int) -> float:
            return rate_of(count, lambda: executor.map(increment, range(count)))

        whole_map(100)  # it starts its workers when they are needed
        obey({"chunks of 1": whole_map})
