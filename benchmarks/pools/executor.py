"""concurrent.futures.ProcessPoolExecutor with one worker, awaited by ``run_in_executor``."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.pools.work import ARGUMENT, RESULT, awaited_commands, increment
from benchmarks.worker import die_with_parent, obey_async, run


def client(path: str) -> None:
    """Start the worker and measure; the path is not used."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, die_with_parent) as executor:
            assert await loop.run_in_executor(executor, increment, ARGUMENT) == RESULT
            await obey_async(
                awaited_commands(lambda: loop.run_in_executor(executor, increment, ARGUMENT))
            )

    run(main())
