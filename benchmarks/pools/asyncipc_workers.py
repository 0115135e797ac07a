"""The workers of an asyncipc.Pool with numpy preloaded: how they come, what they hold, how they go.

The commands answer with one figure each; their argument is not used.
"""

import asyncio
import os
import signal
from time import perf_counter

import asyncipc
from asyncipc.process.usage import private_memory
from benchmarks.worker import obey_async, run


def client(path: str) -> None:
    """Start the pool and measure; the path is not used."""
    run(_main())


async def _main() -> None:
    async with asyncipc.Pool(workers=1, preload=["numpy"]) as pool:
        started: asyncio.Queue[float] = asyncio.Queue()
        pool.on_worker_started(lambda _: started.put_nowait(perf_counter()))

        async def start(_: int) -> float:
            """Milliseconds until one worker more is ready."""
            begin = perf_counter()
            await pool.resize(2)
            seconds = await started.get() - begin
            await _without(pool.workers[0].pid, pool)
            return seconds * 1000

        async def memory(_: int) -> float:
            """MiB that a new worker has for itself alone."""
            await pool.resize(2)
            await started.get()
            size = private_memory(pool.workers[-1].pid)
            assert size is not None
            await _without(pool.workers[0].pid, pool)
            return size / 2**20

        async def death(_: int) -> float:
            """Milliseconds from a SIGKILL until the replacement is ready."""
            begin = perf_counter()
            os.kill(pool.workers[0].pid, signal.SIGKILL)
            return (await started.get() - begin) * 1000

        await obey_async({"start": start, "memory": memory, "death": death})


async def _without(pid: int, pool: asyncipc.Pool) -> None:
    """Have one worker again, and wait until the surplus one, which is the older, is gone."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    process = os.pidfd_open(pid)
    loop.add_reader(process, gone.set)
    try:
        await pool.resize(1)
        await gone.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)
