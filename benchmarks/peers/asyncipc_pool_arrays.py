"""asyncipc.Pool with one worker: a numpy array as the argument of a call."""

from time import perf_counter

import asyncipc
from benchmarks.peers.multiprocessing_arrays import filled, repeats
from benchmarks.pools.work import size_of
from benchmarks.worker import obey_async, run


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""

    async def main() -> None:
        async with asyncipc.Pool(workers=1, preload=["numpy"]) as pool:

            async def copied(size: int) -> float:
                array, times = filled(size), repeats(size)
                begin = perf_counter()
                for _ in range(times):
                    assert await pool.run(size_of, array) == size
                return (perf_counter() - begin) / times

            await obey_async({"copied": copied})

    run(main())
