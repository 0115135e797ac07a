"""What tasks do to their workers, and raise, short of dying.

The rows are those of `docs/faults.md`; each was a bug in a library that people trust.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asyncipc import DecodeError, EncodeError, RemoteError, TaskTimeout, WorkerDied
from tests.faults import tasks
from tests.faults.workers import (
    Deaths,
    both_start_methods,
    has_begun,
    on_one_loop,
    watched_pool,
)
from tests.processes import parent_of, watched

# Those that cannot be raised here: they would end something else, or cannot travel.
DESCRIBED = tasks.EXCEPTIONS.keys() - {"Unprintable", "ExitsWhenPrinted"}

RAISED = (RemoteError, tasks.Unprintable, tasks.ExitsWhenPrinted)


# Row 18: exceptions that resist, and those that are meant to kill


@pytest.mark.parametrize("function", [tasks.fail, tasks.fail_async])
async def test_row_18_the_caller_gets_what_was_raised(function: Callable[[str], Any]) -> None:
    async with watched_pool() as pool:
        worker = pool.workers[0].pid
        for name in tasks.EXCEPTIONS:
            for failing in (pool.run(function, name), first_of(pool.map(function, [name] * 10))):
                with pytest.raises(RAISED) as caught:
                    await failing
                error: Any = caught.value
                report = error if isinstance(error, RemoteError) else error.__cause__
                assert report.type.rpartition(".")[2] == name
                assert isinstance(error, RemoteError) is (name in DESCRIBED)
                assert await pool.run(tasks.pid) == worker


async def first_of(results: AsyncIterator[Any]) -> Any:
    async for result in results:
        return result
    raise AssertionError("there is none")


@both_start_methods
@on_one_loop
async def test_row_18_sigterm_still_ends_the_worker(start_method: str) -> None:
    async with watched_pool(start_method=start_method) as pool:
        deaths = Deaths(pool)
        for name in ("SystemExit", "KeyboardInterrupt"):
            worker = pool.workers[0].pid
            with watched(worker) as process:
                for function in (tasks.fail, tasks.fail_async):
                    with pytest.raises(RemoteError):
                        await pool.run(function, name)
                os.kill(worker, signal.SIGTERM)
                await process.ended(2)
            assert (await deaths.next()).signal == signal.SIGTERM
            assert await pool.run(tasks.pid) != worker


@pytest.mark.parametrize("function", [tasks.block, tasks.never])
@on_one_loop
async def test_row_18_sigterm_ends_a_worker_that_is_busy(function: Any) -> None:
    async with watched_pool() as pool:
        task = pool.submit(function)
        os.kill(await has_begun(task), signal.SIGTERM)
        with pytest.raises(WorkerDied) as caught:
            async with asyncio.timeout(5):
                await task
        assert caught.value.signal == signal.SIGTERM
        assert await pool.run(tasks.echo, 1) == 1


@on_one_loop
async def test_row_18_a_task_that_swallows_sigterm_is_killed() -> None:
    async with watched_pool() as pool:
        deaths = Deaths(pool)
        task = pool.submit(tasks.swallow_everything)
        await has_begun(task)
        task.cancel()
        assert (await deaths.next()).signal == signal.SIGKILL
        assert await pool.run(tasks.echo, 1) == 1


# What cannot be pickled here, or unpickled there


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
@on_one_loop
async def test_an_argument_that_fails_to_unpickle(error: BaseException) -> None:
    async with watched_pool() as pool:
        worker = pool.workers[0].pid
        with pytest.raises((ValueError, RemoteError)):
            await pool.run(tasks.echo, tasks.Resisting(error))
        assert await pool.run(tasks.pid) == worker


@on_one_loop
async def test_a_result_that_fails_to_unpickle() -> None:
    async with watched_pool() as pool:
        worker = pool.workers[0].pid
        with pytest.raises(DecodeError, match=r"result of tests.*resisting.*not here"):
            await pool.run(tasks.resisting, ValueError("not here"))
        with pytest.raises(DecodeError, match="result of"):
            async for _ in pool.map(tasks.resisting, [ValueError("not here")] * 10):
                pass
        assert await pool.run(tasks.pid) == worker


@pytest.mark.parametrize("function", [tasks.exits_when_pickled, tasks.exits_when_pickled_async])
@on_one_loop
async def test_a_result_that_exits_when_it_is_pickled(function: Any) -> None:
    async with watched_pool() as pool:
        worker = pool.workers[0].pid
        with pytest.raises((EncodeError, RemoteError), match="cannot be pickled"):
            await pool.run(function)
        assert await pool.run(tasks.pid) == worker


# What a task does to its worker's descriptors


@pytest.mark.parametrize("then", ["return", "spin"])
@both_start_methods
@on_one_loop
async def test_a_task_that_closes_its_own_sockets(start_method: str, then: str) -> None:
    async with watched_pool(start_method=start_method, on_stderr=lambda _: None) as pool:
        with watched(pool.workers[0].pid) as process:
            with pytest.raises(WorkerDied):
                async with asyncio.timeout(5):
                    await pool.run(tasks.close_everything, then)
            await process.ended(2)
        assert await pool.run(tasks.echo, 1) == 1


@both_start_methods
@on_one_loop
async def test_a_worker_that_forks(start_method: str) -> None:
    """Its child holds an end of everything that the worker has, and ends with it."""
    async with watched_pool(start_method=start_method) as pool:
        deaths = Deaths(pool)
        worker = pool.workers[0].pid
        with watched(await pool.run(tasks.fork, "stays")) as first:
            assert parent_of(first.pid) == worker
            assert await pool.run(tasks.pid) == worker  # which is unhurt
            task = pool.submit(tasks.block)
            os.kill(await has_begun(task), signal.SIGKILL)
            assert (await deaths.next()).signal == signal.SIGKILL
            with pytest.raises(WorkerDied):
                await task
            await first.ended(2)
        last = await pool.run(tasks.fork, "stays")
        with watched(last) as second:
            async with asyncio.timeout(5):
                await pool.aclose()
            await second.ended(2)


@both_start_methods
@on_one_loop
async def test_a_forked_child_that_comes_back_from_the_task(start_method: str) -> None:
    """The answer is the worker's, and nothing that its twin says is taken for one."""
    async with watched_pool(start_method=start_method, on_stderr=lambda _: None) as pool:
        worker = pool.workers[0].pid
        for _ in range(5):
            twin = await pool.run(tasks.fork, "returns")
            assert twin not in (0, worker)
            assert await pool.run(tasks.pid) == worker


# SIGSTOP


@contextlib.asynccontextmanager
async def stopped_worker(**options: Any) -> AsyncIterator[Any]:
    """A pool whose only worker is stopped, and replaced at last."""
    async with watched_pool(**options) as pool:
        worker = pool.workers[0].pid
        os.kill(worker, signal.SIGSTOP)
        async with asyncio.timeout(5):
            yield pool
            assert await pool.run(tasks.pid) != worker


# Only a part of it leaves: it is given up before the worker can have begun it.
LARGE = bytes(2**25)


@both_start_methods
async def test_a_stopped_worker_and_timeouts(start_method: str) -> None:
    async with stopped_worker(start_method=start_method) as pool:
        for argument in (LARGE, b""):
            with pytest.raises(TaskTimeout):
                await pool.run(tasks.echo, argument, timeout=0.05)


@both_start_methods
async def test_a_stopped_worker_and_cancels(start_method: str) -> None:
    async with stopped_worker(start_method=start_method) as pool:
        for argument in (LARGE, b""):
            waiting = asyncio.ensure_future(pool.run(tasks.echo, argument))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


@on_one_loop
async def test_a_worker_that_is_stopped_in_the_middle_of_a_task() -> None:
    async with watched_pool() as pool:
        for function in (tasks.spin, tasks.never):
            task = pool.submit(function, timeout=0.3)
            worker = await has_begun(task)
            os.kill(worker, signal.SIGSTOP)
            async with asyncio.timeout(5):
                with pytest.raises(TaskTimeout):
                    await task
                assert await pool.run(tasks.pid) != worker


@pytest.mark.parametrize("drain", [True, False])
@both_start_methods
@on_one_loop
async def test_a_pool_ends_whose_workers_are_stopped(start_method: str, drain: bool) -> None:
    async with watched_pool(3, start_method=start_method) as pool:
        task = pool.submit(tasks.never, timeout=0.1)
        await has_begun(task)
        for worker in pool.workers:
            os.kill(worker.pid, signal.SIGSTOP)
        async with asyncio.timeout(5):
            await pool.aclose(drain=drain)
        assert task.done()
        with contextlib.suppress(asyncio.CancelledError, TaskTimeout):
            await task
