"""What the tests of the pool's faults share: a pool that is seen to leave no process behind."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncipc import Pool, PoolTask, Worker, WorkerDied
from tests.processes import Watched, watched

__all__ = [
    "Deaths",
    "both_start_methods",
    "fifo",
    "has_begun",
    "on_one_loop",
    "watched_pool",
]

# What one loop shows about other processes the other would show as well.
on_one_loop = pytest.mark.asyncio(loop_factories=["uvloop"])

both_start_methods = pytest.mark.parametrize("start_method", ["zygote", "spawn"])


@contextlib.asynccontextmanager
async def watched_pool(workers: int = 1, **options: Any) -> AsyncIterator[Pool]:
    """A pool of impatient workers, all of which are gone when it is."""
    processes: list[Watched] = []
    with contextlib.ExitStack() as stack:

        def watch(worker: Worker) -> None:
            with contextlib.suppress(ProcessLookupError):
                processes.append(stack.enter_context(watched(worker.pid)))

        options = {"grace": 0.1, "on_worker_started": watch, **options}
        async with Pool(workers, **options) as pool:
            yield pool
        for process in processes:
            await process.ended(2)


class Deaths:
    """The workers that die, one after the other."""

    def __init__(self, pool: Pool) -> None:
        self._deaths: asyncio.Queue[WorkerDied] = asyncio.Queue()
        pool.on_worker_died(lambda _, error: self._deaths.put_nowait(error))

    async def next(self) -> WorkerDied:
        async with asyncio.timeout(5):
            return await self._deaths.get()


async def has_begun(task: PoolTask[Any]) -> int:
    """Wait for the first progress of a task, which tells the process id of its worker."""
    async for update in task.progress():
        return int(update.message or 0)
    raise AssertionError(f"it is over: {task!r}")


@contextlib.contextmanager
def fifo() -> Iterator[tuple[str, int]]:
    """A fifo for a task to read from: its path, and a descriptor to write to."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "fifo"))
        os.mkfifo(path)
        descriptor = os.open(path, os.O_RDWR)  # which waits for nobody
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
