"""``ProcessPoolExecutor`` awaited from asyncio: a numpy array as the argument of a call."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter

from benchmarks.peers.multiprocessing_arrays import filled, repeats
from benchmarks.pools.work import size_of
from benchmarks.worker import die_with_parent, obey_async, run


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, die_with_parent) as executor:

        async def copied(size: int) -> float:
            loop, array, times = asyncio.get_running_loop(), filled(size), repeats(size)
            begin = perf_counter()
            for _ in range(times):
                assert await loop.run_in_executor(executor, size_of, array) == size
            return (perf_counter() - begin) / times

        run(obey_async({"copied": copied}))
