"""asyncipc.Pool.map over two workers, which chooses its chunks itself."""

from time import perf_counter

import asyncipc
from benchmarks.pools.work import increment
from benchmarks.worker import obey_async, run


def client(path: str) -> None:
    """Start the workers and measure; the path is not used."""

    async def main() -> None:
        async with asyncipc.Pool(workers=2) as pool:

            async def whole_map(count: int) -> float:
                begin, total = perf_counter(), 0
                async for result in pool.map(increment, range(count)):
                    total += result
                if total != count * (count + 1) // 2:
                    raise AssertionError("these are not the results")
                return count / (perf_counter() - begin)

            await obey_async({"by itself": whole_map})

    run(main())
