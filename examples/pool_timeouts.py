"""Work that will not end, and work that kills its process: neither harms the tasks beside it."""

import asyncio
import os
import signal

import asyncipc


def spin() -> None:
    """Never end, and never look at whether anybody still waits."""
    while True:
        pass


def count_up_to(limit: int) -> int:
    """Work that asks now and then whether it is still wanted, and says how far it is."""
    call = asyncipc.current_call()
    for number in range(limit):
        asyncipc.progress(number, limit)
        if call.cancelled:
            return number
    return limit


def crash() -> None:
    """Die as a segmentation fault would have it."""
    os.kill(os.getpid(), signal.SIGSEGV)


async def main() -> None:
    """Give up three tasks in three ways, lose one, and still have both workers."""
    deaths: list[asyncipc.WorkerDied] = []
    replacements: asyncio.Queue[asyncipc.Worker] = asyncio.Queue()
    async with asyncipc.Pool(
        workers=2, grace=0.1, on_worker_died=lambda _, error: deaths.append(error)
    ) as pool:
        pool.on_worker_started(replacements.put_nowait)

        # Its own timeout. The caller goes on at once; the worker is asked, then ended.
        try:
            await pool.run(spin, timeout=0.2)
        except asyncipc.TaskTimeout as error:
            print("TaskTimeout:", error)
        await replacements.get()

        # A task that is cancelled, as soon as it is known to run. It looks, so its worker stays.
        task = pool.submit(count_up_to, 10**9)
        async for progress in task.progress():
            print("cancelled at", progress.done)
            task.cancel()
            break
        assert task.cancelled()

        # Any timeout around it.
        try:
            async with asyncio.timeout(0.2):
                await pool.run(spin)
        except TimeoutError:
            print("TimeoutError, from the block around the task")
        await replacements.get()

        # A death fails the task that caused it, and nothing else.
        other = pool.submit(sum, range(1_000_000))
        try:
            await pool.run(crash)
        except asyncipc.WorkerDied as error:
            print(f"WorkerDied: {error}")
        assert await other == 499_999_500_000
        await replacements.get()

        asked, crashed = signal.SIGTERM, signal.SIGSEGV
        assert [error.signal for error in deaths] == [asked, asked, crashed]
        assert len(pool.workers) == 2
    print(f"{len(deaths)} workers died, and 2 were there at the end")


if __name__ == "__main__":
    asyncipc.run(main)
