"""``pool.map``: order, laziness, chunks, failures, and leaving it early."""

import asyncio
import contextlib
import itertools
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from asyncipc import (
    DecodeError,
    EncodeError,
    Pool,
    RemoteError,
    TaskTimeout,
    WorkerDied,
)
from tests.pool import support
from tests.pool.support import START_METHODS, Reports, in_workers, open_pool


async def collected(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


class Counting:
    """An endless iterator that knows how many items were taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


class AsyncCounting(Counting):
    __iter__ = None  # type: ignore[assignment]

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        return next(self)


def in_order_of(reports: Reports) -> Callable[..., str]:
    return partial(ask_at, reports.address)


def ask_at(address: bytes, item: int) -> str:
    return support.ask(address, str(item))


# -- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_results_in_the_order_of_the_items(start_method: str) -> None:
    async with open_pool(2, start_method=start_method) as pool:
        expected = [2 * item for item in range(500)]
        for function in (support.double, support.double_async):
            assert await collected(pool.map(function, range(500))) == expected
            unordered = await collected(pool.map(function, range(500), ordered=False))
            assert sorted(unordered) == expected
        assert pool.statistics().running == 0


async def test_items_of_all_kinds() -> None:
    async with open_pool() as pool:
        for ordered in (True, False):
            kinds: list[Any] = [[], (), iter([]), {}]
            for items in kinds:
                assert await collected(pool.map(support.double, items, ordered=ordered)) == []
            generator = (item for item in [1, 2])
            assert await collected(pool.map(support.double, generator, ordered=ordered)) == [2, 4]
            limited = itertools.islice(Counting(), 3)
            assert await collected(pool.map(support.double, limited, ordered=ordered)) == [0, 2, 4]


def same(item: Any) -> Any:
    return item


def stop_at_five(item: int) -> int:
    return next(iter([item] if item != 5 else []))


@pytest.mark.parametrize("chunk_size", [1, 4, 10, 20])
async def test_a_function_that_raises_stop_iteration_ends_nothing_early(chunk_size: int) -> None:
    async with open_pool() as pool:
        results = pool.map(stop_at_five, range(20), chunk_size=chunk_size)
        assert [await anext(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(RemoteError) as caught:
            await anext(results)
        assert caught.value.type == "StopIteration"


async def test_results_keep_their_types() -> None:
    """Numbers of one kind travel in another form than those of several, or beyond 64 bits."""
    lists: list[list[Any]] = [
        [*range(-30, 30), 2**63 - 1, -(2**63)],
        [*range(60), 2**63],
        [*range(60), True],
        [*range(60), 1.0],
        [*(number / 7 for number in range(60)), float("inf"), -0.0, 5e-324],
        [True] * 60,
        [signal.SIGTERM] * 60,
        [1] * 3,
    ]
    async with open_pool() as pool:
        for items in lists:
            for chunk_size in (None, 64):
                results = await collected(pool.map(same, items, chunk_size=chunk_size))
                assert results == items
                assert list(map(type, results)) == list(map(type, items))
                assert str(results) == str(items)
        [nan] = await collected(pool.map(same, [float("nan")]))
        assert math.isnan(nan)


async def test_unordered_results_come_as_they_are_ready(reports: Reports) -> None:
    async with open_pool(2) as pool:
        results = pool.map(in_order_of(reports), [0, 1], ordered=False, chunk_size=1)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            first = asyncio.ensure_future(anext(results))
            came = {report.text: report for report in [await reports.next(), await reports.next()]}
            reports.answer(came["1"], "one")
            assert await first == "one"
            reports.answer(came["0"], "zero")
            assert await anext(results) == "zero"


async def test_ordered_results_wait_for_their_turn(reports: Reports) -> None:
    async with open_pool(2) as pool:
        results = asyncio.ensure_future(
            collected(pool.map(in_order_of(reports), [0, 1], chunk_size=1))
        )
        came = {report.text: report for report in [await reports.next(), await reports.next()]}
        reports.answer(came["1"], "one")
        reports.answer(came["0"], "zero")
        assert await results == ["zero", "one"]


async def test_two_maps_share_a_pool() -> None:
    async with open_pool(2) as pool:
        one, other = await asyncio.gather(
            collected(pool.map(support.double, range(300))),
            collected(pool.map(support.double_async, range(300, 400))),
        )
        assert one == [2 * item for item in range(300)]
        assert other == [2 * item for item in range(300, 400)]


# -- laziness ----------------------------------------------------------------------------------


async def test_items_are_taken_as_results_are_read() -> None:
    async with open_pool(2) as pool:
        for kind, ordered in itertools.product((Counting, AsyncCounting), (True, False)):
            items = kind()
            results = pool.map(support.double, items, ordered=ordered, chunk_size=5)
            assert items.taken == 0
            async with contextlib.aclosing(results):  # type: ignore[type-var]
                for read in range(1, 200):
                    await anext(results)
                    # Two chunks for each worker, the one that is read, and the one taken for it.
                    assert items.taken <= read + 5 * (2 * 2 + 2)


async def test_a_reader_that_stops_stops_the_source() -> None:
    items = Counting()
    async with open_pool(2) as pool:
        results = pool.map(support.double, items, chunk_size=1)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            await anext(results)
            taken = items.taken
            # Other work goes through the workers meanwhile, the map's own is over long before.
            await asyncio.gather(*(pool.submit(support.pid) for _ in range(50)))
            assert items.taken == taken <= 7


# -- chunks ------------------------------------------------------------------------------------


async def test_tiny_tasks_are_sent_in_chunks() -> None:
    async with open_pool(2) as pool:
        assert len(await collected(pool.map(support.double, iter(range(20_000))))) == 20_000
        assert pool.statistics().submitted < 2_000
        before = pool.statistics().submitted
        await collected(pool.map(support.double, range(8)))
        assert pool.statistics().submitted - before == 8  # a few are shared out evenly


async def test_chunks_of_a_given_size() -> None:
    async with open_pool() as pool:
        for size, chunks in [(1, 10), (3, 4), (10, 1), (99, 1)]:
            before = pool.statistics().submitted
            results = await collected(pool.map(support.double, range(10), chunk_size=size))
            assert results == [2 * item for item in range(10)]
            assert pool.statistics().submitted - before == chunks


async def test_async_functions_with_concurrency_run_side_by_side(reports: Reports) -> None:
    async with open_pool(concurrency=3) as pool:
        results = asyncio.ensure_future(
            collected(pool.map(partial(support.ask_async, reports.address), map(str, range(3))))
        )
        for report in [await reports.next() for _ in range(3)]:
            reports.answer(report, report.text)
        assert await results == ["0", "1", "2"]


# -- failures ----------------------------------------------------------------------------------


async def read_into(read: list[Any], results: AsyncIterator[Any]) -> None:
    async for result in results:
        read.append(result)  # noqa: PERF401 - kept up to a failure


async def test_a_failure_comes_when_it_is_its_turn() -> None:
    async with open_pool(2) as pool:
        for chunk_size in (None, 1, 4, 100):
            read: list[int] = []
            bad_six = partial(support.fail_at, bad=6)
            with pytest.raises(ValueError, match="6 is bad") as caught:
                await read_into(read, pool.map(bad_six, range(20), chunk_size=chunk_size))
            assert read == list(range(6))
            assert isinstance(caught.value.__cause__, RemoteError)
            assert "in fail_at" in caught.value.__cause__.traceback
            assert await pool.run(support.add, 1, 2) == 3


async def test_a_failure_that_is_never_read_is_nobodys() -> None:
    async with open_pool(2) as pool:
        results = pool.map(partial(support.fail_at, bad=1), range(20), chunk_size=1)
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            assert await anext(results) == 0


async def test_what_cannot_travel() -> None:
    async with open_pool() as pool:
        with pytest.raises(EncodeError, match="<lambda> cannot be given"):
            await collected(pool.map(lambda item: item, [1]))
        with pytest.raises(EncodeError, match=r"result of .*make_unpicklable"):
            await collected(pool.map(make_unpicklable_of, [1]))
        with pytest.raises(EncodeError, match=r"arguments for .*echo cannot be pickled"):
            await collected(pool.map(support.echo, [threading.Lock()]))
        with pytest.raises(DecodeError, match=r"arguments for .*echo cannot be unpickled"):
            await collected(pool.map(support.echo, [support.Unloadable()]))
        assert await collected(pool.map(support.echo, "ab")) == ["a", "b"]


def make_unpicklable_of(_: int) -> Any:
    return support.make_unpicklable()


async def test_a_source_that_fails() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("no more to be had")

    async with open_pool() as pool:
        with pytest.raises(OSError, match="no more to be had"):
            await collected(pool.map(support.double, source()))
        assert await pool.run(support.add, 1, 2) == 3


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_worker_that_dies_ends_the_map_and_not_the_pool(ordered: bool) -> None:
    async with open_pool(2) as pool:
        with pytest.raises(WorkerDied) as caught:
            await collected(pool.map(support.leave, [5, 6], ordered=ordered))
        assert caught.value.exit_code in {5, 6}
        assert await pool.run(support.add, 1, 2) == 3


async def test_chunks_are_repeated_if_they_may_be(reports: Reports) -> None:
    async with open_pool() as pool:
        results = asyncio.ensure_future(
            collected(pool.map(partial(support.die_until, reports.address), ["now"], retries=2))
        )
        for answer in ("not yet", "not yet", "now"):
            reports.answer(await reports.next("started"), answer)
        assert await results == ["now"]


async def test_a_chunk_that_takes_too_long(reports: Reports) -> None:
    async with open_pool() as pool:
        with pytest.raises(TaskTimeout, match=r"within 0\.1 s"):
            await collected(pool.map(in_order_of(reports), [0], timeout=0.1))
        assert await pool.run(support.add, 1, 2) == 3


@pytest.mark.parametrize("ordered", [True, False])
async def test_leaving_early_cancels_what_is_under_way(reports: Reports, ordered: bool) -> None:
    async with open_pool(2, concurrency=2) as pool:
        results = pool.map(
            partial(support.ask_async, reports.address),
            map(str, itertools.count()),
            ordered=ordered,
        )
        async with contextlib.aclosing(results):  # type: ignore[type-var]
            first = asyncio.ensure_future(anext(results))
            came = [await reports.next() for _ in range(4)]
            reports.answer(next(report for report in came if report.text == "0"), "zero")
            assert await first == "zero"
            fifth = await reports.next()
            assert int(fifth.text) == 4
        for _ in range(4):
            await reports.next("cancelled")
        assert pool.statistics().running == pool.statistics().queued == 0


async def test_cancelling_who_reads_cancels_what_is_under_way(reports: Reports) -> None:
    async with open_pool() as pool:
        reading = asyncio.ensure_future(
            collected(pool.map(partial(support.ask_async, reports.address), ["started"]))
        )
        await reports.next("started")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await reports.next("cancelled")


# -- using it wrongly --------------------------------------------------------------------------


async def test_bad_options() -> None:
    async with open_pool() as pool:
        for size in (0, -1):
            with pytest.raises(ValueError, match=rf"chunk_size is from 1 .*items, not {size}"):
                pool.map(support.double, [1], chunk_size=size)
        with pytest.raises(TypeError, match="chunk_size is a number of items, not True"):
            pool.map(support.double, [1], chunk_size=True)
        with pytest.raises(ValueError, match="timeout"):
            pool.map(support.double, [1], timeout=-1)
        with pytest.raises(ValueError, match="retries"):
            pool.map(support.double, [1], retries=-1)
        with pytest.raises(TypeError, match="iterable or an async iterable, not 7"):
            await collected(pool.map(support.double, 7))  # type: ignore[arg-type]
        assert pool.statistics().submitted == 0


async def test_a_closed_pool_ends_the_map() -> None:
    pool = Pool(1, drain=False)
    async with pool:
        results = pool.map(support.double, Counting(), chunk_size=1)
        assert await anext(results) == 0
    with pytest.raises((asyncio.CancelledError, Exception), match=r"takes no tasks|^$"):
        await collected(results)
