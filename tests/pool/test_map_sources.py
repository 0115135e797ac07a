"""The items of ``pool.map``: sources that fail or are slow, items that are large or odd."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, Self

import pytest

from asyncipc import EncodeError, Pool, PoolClosed
from asyncipc.pool.sources import MAX_STEP, TURN, source_of
from tests.pool import support
from tests.pool.support import LIMIT, in_workers, open_pool


async def read_into(read: list[Any], results: AsyncIterator[Any]) -> None:
    async with asyncio.timeout(LIMIT):
        async for result in results:
            read.append(result)  # noqa: PERF401 - kept up to a failure


def plain(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, BaseException):
            raise item
        yield item


async def asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        if isinstance(item, BaseException):
            raise item
        yield item


both_kinds = pytest.mark.parametrize("kind", [plain, asynchronous])
both_orders = pytest.mark.parametrize("ordered", [True, False])

Kind = Callable[[Iterable[Any]], Any]


# -- failures come in their turn -------------------------------------------------------------------


@both_kinds
@both_orders
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 4, 5, 100])
@in_workers
async def test_an_item_that_cannot_be_pickled_comes_in_its_turn(
    chunk_size: int | None, ordered: bool, kind: Kind
) -> None:
    items = [1, 2, 3, threading.Lock(), 5, 6]
    read: list[int] = []
    async with open_pool(2) as pool:
        results = pool.map(support.double, kind(items), chunk_size=chunk_size, ordered=ordered)
        with pytest.raises(EncodeError, match=r"arguments for .*double cannot be pickled"):
            await read_into(read, results)
        assert sorted(read) == [2, 4, 6]
        assert await pool.run(support.add, 1, 2) == 3


@both_kinds
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100])
@pytest.mark.parametrize("error", [OSError("none left"), RuntimeError("broken")])
async def test_what_a_source_raises_comes_in_its_turn(
    error: Exception, chunk_size: int | None, kind: Kind
) -> None:
    read: list[int] = []
    async with open_pool() as pool:
        with pytest.raises(type(error), match=str(error)):
            await read_into(
                read, pool.map(support.double, kind([1, 2, 3, error]), chunk_size=chunk_size)
            )
        assert read == [2, 4, 6]


@both_orders
async def test_an_async_source_that_was_cancelled(ordered: bool) -> None:
    read: list[int] = []
    async with open_pool() as pool:
        items = asynchronous([1, 2, asyncio.CancelledError()])
        with pytest.raises(asyncio.CancelledError):
            await read_into(read, pool.map(support.double, items, ordered=ordered))
        assert read == [2, 4]
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()


@both_kinds
@in_workers
async def test_a_pool_that_closes_while_items_are_taken(kind: Kind) -> None:
    pool = Pool(1, drain=False)
    closing: list[asyncio.Task[None]] = []

    def items() -> Iterator[int]:
        yield 1
        closing.append(asyncio.create_task(pool.aclose()))
        while pool.statistics().submitted:
            yield 2

    async with pool:
        with pytest.raises((PoolClosed, asyncio.CancelledError)):
            await read_into([], pool.map(support.double, kind(items()), chunk_size=2))
        await closing[0]


# -- slow sources ----------------------------------------------------------------------------------


class Turns:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._again)

    def _again(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._again)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()


def spin(seconds: float) -> None:
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


def slow(turns: Turns, seen: Counter[int], count: int) -> Iterator[int]:
    for item in range(count):
        spin(0.001)
        seen[turns.count] += 1
        yield item


@pytest.mark.parametrize("chunk_size", [None, 7, 1000])
async def test_a_slow_source_leaves_the_loop_its_turns(chunk_size: int | None) -> None:
    seen: Counter[int] = Counter()
    read: list[int] = []
    async with open_pool(2) as pool:
        with Turns() as turns:
            items = slow(turns, seen, 100)
            await read_into(read, pool.map(support.double, items, chunk_size=chunk_size))
        if chunk_size is not None:
            assert pool.statistics().submitted == -(-100 // chunk_size)
    assert read == [2 * item for item in range(100)]
    # Two milliseconds: two items, and the one in which they are over.
    assert max(seen.values()) <= 3


def test_a_source_that_becomes_slow_is_noticed_after_a_few_items() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken
            if taken > 50_000:
                spin(0.0001)

    source = source_of(items(), exact=False)
    while not (source.is_slow and taken > 50_000):  # where it is not, the machine was
        source.take(10_000, perf_counter() + TURN)
    assert taken <= 60_000 + MAX_STEP
    taken_so_far = taken
    source.take(10_000, perf_counter() + TURN)
    assert source.is_slow
    assert taken - taken_so_far <= 2 * 20 + 1


def test_all_items_are_taken_whatever_the_counts() -> None:
    for exact in (True, False):
        for kind in (list, range):
            items: Any = range(1000) if kind is range else list(range(1000))
            source, count = source_of(items, exact=exact), 0
            found: list[int] = []
            while not source.is_over:
                count += 1
                found += source.take(count, perf_counter() + TURN)
            assert found == list(range(1000))
            assert source.failure is None


# -- large items -----------------------------------------------------------------------------------


class Blocks:
    """An endless iterator of large items."""

    def __init__(self, size: int) -> None:
        self.taken = 0
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.taken += 1
        return bytes(self._size)  # another each time: a pickle holds an object once


@pytest.mark.parametrize("size", [300_000, 3_000_000])
@in_workers
async def test_what_is_ahead_is_bounded_in_bytes(size: int) -> None:
    items = Blocks(size)
    async with open_pool(2) as pool:
        results = pool.map(len, items)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            for read in range(1, 100):
                assert await anext(results) == size
                # Six chunks of a MiB, or one item, each.
                assert items.taken <= read + 6 * max(1, 2**20 // size)
