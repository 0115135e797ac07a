"""asyncipc.Pool with one worker."""

import asyncipc
from benchmarks.pools.work import ARGUMENT, awaited_commands, increment
from benchmarks.worker import obey_async, run


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""

    async def main() -> None:
        async with asyncipc.Pool(workers=1) as pool:
            await obey_async(awaited_commands(lambda: pool.run(increment, ARGUMENT)))

    run(main())
