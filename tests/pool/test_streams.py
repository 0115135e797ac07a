"""``pool.stream``: generators in workers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from asyncipc import EncodeError, Pool, RemoteError, TaskTimeout, WorkerDied, progress
from tests.pool.support import LIMIT, Reports, ask_async, in_workers, open_pool, tell


def count(until: int) -> Iterator[int]:
    yield from range(until)


async def count_async(until: int) -> AsyncIterator[int]:
    for number in range(until):
        yield number


def endless(address: bytes, size: int = 1) -> Iterator[bytes]:
    """Tells how it ends."""
    given = 0
    try:
        while True:
            given += 1
            yield bytes(size)
    finally:
        tell(address, f"closed after {given}")


async def endless_async(address: bytes) -> AsyncIterator[int]:
    try:
        while True:
            yield 1
            await asyncio.sleep(0)
    finally:
        tell(address, "closed")


def failing(after: int) -> Iterator[int]:
    yield from range(after)
    raise LookupError("no more", after)


async def read_all(items: AsyncIterator[Any]) -> None:
    async for _ in items:
        pass


def process_ids() -> Iterator[int]:
    while True:
        yield os.getpid()


def unpicklable() -> Iterator[Any]:
    yield 1
    yield lambda: 1


def no_items() -> int:
    return 3


def stuck() -> Iterator[int]:
    yield 1
    while True:
        signal.pause()


@pytest.mark.parametrize("function", [count, count_async])
async def test_items_come_in_order_and_all(function: Callable[[int], Any]) -> None:
    async with open_pool() as pool:
        assert [item async for item in pool.stream(function, 5000)] == list(range(5000))
        async with pool.stream(function, 3) as items:
            assert [item async for item in items] == [0, 1, 2]


@in_workers
@pytest.mark.parametrize("function", [endless, endless_async])
async def test_leaving_early_closes_the_generator(
    function: Callable[[bytes], Any], reports: Reports
) -> None:
    async with open_pool(grace=LIMIT) as pool:
        async with pool.stream(function, reports.address) as items:
            await anext(items)
        assert "closed" in (await reports.next()).text
        async for _ in pool.stream(function, reports.address):
            break
        assert "closed" in (await reports.next()).text
        items = pool.stream(function, reports.address)
        await anext(items)
        await items.aclose()
        assert "closed" in (await reports.next()).text
        assert await pool.run(abs, -1) == 1
        assert pool.statistics().workers_died == 0


@in_workers
async def test_a_cancelled_reader_closes_the_generator(reports: Reports) -> None:
    async def read(pool: Pool) -> None:
        async for _ in pool.stream(stuck_behind_one, reports.address):
            pass

    async with open_pool(grace=LIMIT) as pool:
        reader = asyncio.create_task(read(pool))
        await reports.next("waiting")
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await reports.next("closed")


async def stuck_behind_one(address: bytes) -> AsyncIterator[int]:
    yield 1
    try:
        tell(address, "waiting")
        await asyncio.get_running_loop().create_future()
    finally:
        tell(address, "closed")


async def three_of_which_one_waits(address: bytes) -> AsyncIterator[int]:
    yield 1
    await ask_async(address, "waiting")
    yield 2
    yield 3


async def give_up_waiting(items: AsyncIterator[int]) -> None:
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@in_workers
async def test_an_item_that_is_not_waited_for_any_longer_comes_to_the_next_who_asks(
    reports: Reports,
) -> None:
    async with open_pool() as pool, pool.stream(three_of_which_one_waits, reports.address) as items:
        await give_up_waiting(items)  # for a worker
        assert await anext(items) == 1
        report = await reports.next("waiting")
        await give_up_waiting(items)
        reports.answer(report)
        assert [item async for item in items] == [2, 3]
        assert pool.statistics().cancelled == 0


@in_workers
async def test_a_slow_reader_stops_the_generator(reports: Reports) -> None:
    async with open_pool() as pool:
        async with pool.stream(endless, reports.address, 10_000) as items:
            await anext(items)
            # A round trip behind it: what the generator gave by now is all it may.
            for _ in range(20):
                await anext(items)
        closed = (await reports.next()).text
        assert int(closed.rpartition(" ")[2]) < 200, "far more than 256 KiB were given"


async def test_an_error_comes_behind_the_items_before_it() -> None:
    async with open_pool() as pool:
        items = pool.stream(failing, 3)
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LookupError) as caught:
            await anext(items)
        assert caught.value.args == ("no more", 3)
        assert isinstance(caught.value.__cause__, RemoteError)
        assert "failing" in caught.value.__cause__.traceback


@in_workers
async def test_an_item_that_cannot_be_pickled() -> None:
    async with open_pool() as pool:
        items = pool.stream(unpicklable)
        assert await anext(items) == 1
        with pytest.raises(EncodeError, match=r"an item of .*unpicklable, .* cannot be pickled"):
            await anext(items)
        assert await pool.run(abs, -1) == 1


@in_workers
async def test_what_gives_no_items() -> None:
    async with open_pool() as pool:
        with pytest.raises(TypeError, match="gives no items"):
            await anext(pool.stream(no_items))  # type: ignore[arg-type]
        with pytest.raises(EncodeError, match="lambda"):
            pool.stream(lambda: iter(()))


@in_workers
async def test_a_death_is_told_to_the_reader() -> None:
    async with open_pool() as pool, aclosing(pool.stream(process_ids)) as items:
        os.kill(await anext(items), signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            await read_all(items)
        assert caught.value.signal == signal.SIGKILL


@in_workers
async def test_a_timeout_covers_all_of_it_and_ends_what_will_not_stop() -> None:
    async with open_pool() as pool:
        items = pool.stream(stuck, timeout=1)
        assert await anext(items) == 1
        with pytest.raises(TaskTimeout, match="stuck"):
            await anext(items)
        assert await pool.run(abs, -1) == 1


@in_workers
async def test_streams_wait_for_workers_like_tasks(reports: Reports) -> None:
    async with open_pool() as pool:
        async with pool.stream(endless, reports.address) as first:
            await anext(first)
            second = asyncio.create_task(anext(pool.stream(count, 1)))
            assert pool.statistics().queued in (0, 1)
        assert await second == 0


def with_progress() -> Iterator[int]:
    progress(1, total=2)
    yield 1


@in_workers
async def test_progress_in_a_generator_is_no_error() -> None:
    async with open_pool() as pool:
        assert [item async for item in pool.stream(with_progress)] == [1]


def refilled(size: int) -> Iterator[Any]:
    import numpy  # noqa: PLC0415 - in the worker alone

    array = numpy.empty(size, numpy.uint8)
    for number in range(5):
        array[:] = number
        yield array


async def refilled_async(size: int) -> AsyncIterator[Any]:
    for array in refilled(size):
        yield array


@pytest.mark.parametrize("size", [100, 20_000, 1_000_000])
@pytest.mark.parametrize("function", [refilled, refilled_async])
@in_workers
async def test_arrays_that_are_filled_anew(function: Callable[..., Any], size: int) -> None:
    pytest.importorskip("numpy")
    async with open_pool() as pool:
        number = 0
        async for array in pool.stream(function, size):
            assert (array == number).all()
            array[0] = 1
            number += 1
        assert number == 5
