"""Progress of tasks: in order, before the result, to whoever wants it, never without bound."""

import asyncio
import contextvars
import threading
from time import monotonic

import pytest

from asyncipc import LocalProtocolError, Progress, progress
from asyncipc.pool.jobs import PROGRESS_BURST, PROGRESS_RATE
from asyncipc.pool.task import MAX_KEPT
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, in_workers, open_pool


def steps(total: int) -> list[Progress]:
    return [Progress(done, total, f"step {done}") for done in range(total)]


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_progress_comes_in_order_and_before_the_result(start_method: str) -> None:
    async with open_pool(start_method=start_method) as pool:
        for function in (support.count, support.count_async):
            came: list[Progress] = []
            assert await pool.run(function, 50, on_progress=came.append) == "counted"
            assert came == steps(50)


async def test_progress_comes_while_a_plain_function_runs(reports: Reports) -> None:
    async with open_pool() as pool:
        came: asyncio.Queue[Progress] = asyncio.Queue()
        task = pool.submit(support.report_and_ask, reports.address, 3, on_progress=came.put_nowait)
        for done in range(3):
            async with asyncio.timeout(LIMIT):
                assert await came.get() == Progress(done, 3)
            reports.answer(await reports.next(str(done)))
        assert await task == "counted"


async def test_an_async_on_progress_is_awaited_before_the_result() -> None:
    came = []

    async def on_progress(update: Progress) -> None:
        await asyncio.sleep(0)
        came.append(update)

    async with open_pool() as pool:
        assert await pool.run(support.count, 20, on_progress=on_progress) == "counted"
        assert came == steps(20)


async def test_what_on_progress_raises_ends_the_task(reports: Reports) -> None:
    def on_progress(update: Progress) -> None:
        raise LookupError(f"not {update.done}")

    async def on_progress_async(update: Progress) -> None:
        on_progress(update)

    async with open_pool() as pool:
        for callback in (on_progress, on_progress_async):
            with pytest.raises(LookupError, match="not 0"):
                await pool.run(report_then_ask, reports.address, on_progress=callback)
            await reports.next("started")
            await reports.next("cancelled")
        assert await pool.run(support.add, 1, 2) == 3


async def report_then_ask(address: bytes) -> str:
    progress(0)
    return await support.ask_async(address)


# -- read from the task ------------------------------------------------------------------------


async def test_progress_is_read_from_the_task(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.report_and_ask, reports.address, 3)
        updates = task.progress()
        for done in range(3):
            # From the first on: the task was given to a worker in this turn of the loop.
            assert await anext(updates) == Progress(done, 3)
            reports.answer(await reports.next(str(done)))
        assert [update async for update in updates] == []
        assert await task == "counted"
        assert [update async for update in task.progress()] == []


async def test_who_asks_late_is_told_the_last_progress(reports: Reports) -> None:
    async with open_pool() as pool:
        came: asyncio.Queue[Progress] = asyncio.Queue()
        task = pool.submit(support.report_and_ask, reports.address, 2, on_progress=came.put_nowait)
        result = asyncio.ensure_future(task)
        assert await came.get() == Progress(0, 2)
        updates = task.progress()
        assert await anext(updates) == Progress(0, 2)
        for done in range(2):
            reports.answer(await reports.next(str(done)))
        assert [update async for update in updates] == [Progress(1, 2)]
        assert await result == "counted"


async def test_progress_of_a_task_that_waits_for_a_worker(reports: Reports) -> None:
    async with open_pool() as pool:
        first = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        task = pool.submit(support.count, 20)
        reading = [asyncio.ensure_future(_read(task.progress())) for _ in range(2)]
        await asyncio.sleep(0)  # they have begun
        reports.answer(report)
        assert await asyncio.gather(*reading) == [steps(20)] * 2
        assert [await first, await task] == ["go", "counted"]


async def _read(updates: object) -> list[Progress]:
    return [update async for update in updates]  # type: ignore[attr-defined]


async def test_progress_of_a_task_that_fails_ends() -> None:
    async with open_pool() as pool:
        task = pool.submit(report_and_fail)
        assert [update.done async for update in task.progress()] == [1, 2]
        with pytest.raises(LookupError, match="in the end"):
            await task
        task = pool.submit(report_and_die)
        assert [update.done async for update in task.progress()] == [1]
        with pytest.raises(Exception, match="exit code 4"):
            await task


def report_and_fail() -> None:
    progress(1)
    progress(2)
    raise LookupError("in the end")


def report_and_die() -> None:
    progress(1)
    support.leave(4)


async def test_progress_of_a_task_that_is_cancelled_ends(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(report_then_ask, reports.address)
        updates = task.progress()
        assert await anext(updates) == Progress(0)
        task.cancel()
        assert [update async for update in updates] == []
        await reports.next("started")
        await reports.next("cancelled")


async def test_a_slow_reader_gets_the_oldest_and_the_latest(reports: Reports) -> None:
    total = MAX_KEPT + 100
    async with open_pool() as pool:
        task = pool.submit(count_and_ask, reports.address, total)
        updates = task.progress()
        assert await anext(updates) == Progress(0)
        report = await reports.next("started")
        reports.answer(report)
        await task
        rest = [update.done async for update in updates]
        assert len(rest) <= MAX_KEPT + 1
        assert rest[:100] == list(range(1, 101))
        assert rest[-1] == total - 1
        assert rest == sorted(rest)


def count_and_ask(address: bytes, total: int) -> None:
    for done in range(total):
        progress(done)
    support.ask(address)


# -- the bound ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_chatty_task_cannot_flood_the_application(start_method: str) -> None:
    total = 50_000
    async with open_pool(start_method=start_method) as pool:
        for function in (support.count, support.count_async):
            came: list[float] = []
            began = monotonic()
            task = pool.submit(
                function, total, on_progress=lambda update, came=came: came.append(update.done)
            )
            assert await task == "counted"
            seconds = monotonic() - began
            # Here the time is a little longer than it was there.
            assert 10 < len(came) <= PROGRESS_BURST + PROGRESS_RATE * seconds + 2
            assert came[-1] == total - 1
            assert came == sorted(came)


# -- from where --------------------------------------------------------------------------------


@in_workers
async def test_progress_from_a_thread_of_the_task() -> None:
    async with open_pool() as pool:
        came: list[Progress] = []
        assert await pool.run(count_in_thread, 10, on_progress=came.append) == "counted"
        assert came == steps(10)


async def count_in_thread(total: int) -> str:
    return await asyncio.to_thread(support.count, total)


@in_workers
async def test_progress_from_a_thread_of_a_plain_function() -> None:
    async with open_pool() as pool:
        came: list[Progress] = []
        await pool.run(count_in_thread_of_ones_own, 10, on_progress=came.append)
        assert came[-1] == steps(10)[-1]
        assert came == sorted(came, key=lambda update: update.done)


def count_in_thread_of_ones_own(total: int) -> None:
    thread = threading.Thread(target=contextvars.copy_context().run, args=(support.count, total))
    thread.start()
    thread.join()


async def test_there_is_no_progress_outside_a_task() -> None:
    with pytest.raises(LocalProtocolError, match="no call is being served here"):
        progress(1)
    async with open_pool() as pool:
        with pytest.raises(TypeError, match=r"progress\(\) done must be a number"):
            await pool.run(progress, "half")
        await pool.run(progress, 0.5, 1, "nobody looks")


async def report_and_fall_silent(address: bytes, count: int) -> None:
    for done in range(count):
        progress(done)
    await support.ask_async(address)


@in_workers
async def test_the_latest_of_many_updates_comes_though_nothing_follows_it(reports: Reports) -> None:
    last = asyncio.get_running_loop().create_future()

    def update(progress: Progress) -> None:
        if progress.done == 999 and not last.done():
            last.set_result(None)

    async with open_pool() as pool:
        task = pool.submit(report_and_fall_silent, reports.address, 1000, on_progress=update)
        started = await reports.next("started")
        async with asyncio.timeout(LIMIT):
            await last
        reports.answer(started)
        await task
