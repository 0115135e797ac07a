"""How many workers there are: recycling, resizing and pausing, and what of them may be at work."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from asyncipc import Pool
from asyncipc.pool.policy import JITTER
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, Watch, in_workers, open_pool
from tests.processes import watched

MIB = 1024 * 1024


# -- recycling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tasks", [1, 2])
async def test_replacements_work_when_their_predecessors_do_not(
    max_tasks: int, reports: Reports
) -> None:
    watch = Watch()
    async with open_pool(2, max_tasks=max_tasks, **watch.options) as pool:
        tasks = [pool.submit(support.ask, reports.address) for _ in range(8)]
        for first in range(0, 8, 2):
            came = [await reports.next("started") for _ in range(2)]
            while len(pool.workers) < 4:  # two that may go after this, and two to follow them
                await watch.next_started()
            assert pool.statistics().running == 2
            assert sum(worker.tasks_running for worker in pool.workers) == 2
            assert reports.is_empty
            for report in came:
                reports.answer(report)
            await asyncio.gather(*tasks[first : first + 2])
        assert pool.statistics().workers_died == 0


async def test_async_functions_do_not_pass_their_bound_by_recycling(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(1, concurrency=3, max_tasks=2, **watch.options) as pool:
        tasks = [pool.submit(support.ask_async, reports.address) for _ in range(4)]
        came = [await reports.next("started") for _ in range(2)]
        for _ in range(2):
            await watch.next_started()  # itself and its replacement
        assert (pool.statistics().running, pool.statistics().queued) == (2, 2)
        assert reports.is_empty
        for report in came:
            reports.answer(report)
        for _ in range(2):
            reports.answer(await reports.next("started"))
        await asyncio.gather(*tasks)


async def test_workers_are_replaced_after_max_tasks() -> None:
    async with open_pool(2, max_tasks=5) as pool:
        pids = await asyncio.gather(*(pool.submit(support.pid) for _ in range(50)))
        counts = [pids.count(pid) for pid in set(pids)]
        assert max(counts) <= 5
        statistics = pool.statistics()
        assert statistics.done == 50
        assert statistics.workers_died == statistics.moved == 0
        assert statistics.workers_recycled >= len(counts) - 2


async def test_limits_of_tasks_differ_between_workers() -> None:
    watch = Watch()
    async with open_pool(max_tasks=100, **watch.options) as pool:
        limits = []
        for _ in range(4):
            worker = await watch.next_started()
            count = 0
            while await pool.run(support.pid) == worker.pid:
                count += 1
            limits.append(count)
        assert all(100 * (1 - JITTER) - 1 <= limit <= 100 for limit in limits)


@in_workers
async def test_the_replacement_is_warm_before_its_predecessor_goes(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(max_tasks=1, **watch.options) as pool:
        first = await watch.next_started()
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        replacement = await watch.next_started()  # while the first is at its last task
        assert first.state == "retiring"
        assert {worker.pid for worker in pool.workers} == {first.pid, replacement.pid}
        with watched(first.pid) as process:
            reports.answer(report, "done")
            assert await task == "done"
            await process.ended()
        assert first.state == "ended"
        assert watch.died.empty()


_hoard: list[bytes] = []


def hoard(size: int) -> None:
    _hoard.append(b"x" * size)


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_worker_with_too_much_memory_is_replaced(start_method: str) -> None:
    watch = Watch()
    async with open_pool(max_rss=100 * MIB, start_method=start_method, **watch.options) as pool:
        first = await watch.next_started()
        with watched(first.pid) as process:
            await pool.run(hoard, 150 * MIB)
            for _ in range(1000):  # it is looked at after a task, and not after every one
                if await pool.run(support.pid) != first.pid:
                    break
            await process.ended()
        assert (await watch.next_started()).pid != first.pid
        assert pool.statistics().workers_recycled == 1
        assert watch.died.empty()


class Hoarder:
    async def keep(self, size: int) -> None:
        hoard(size)

    def keep_plainly(self, size: int) -> None:
        hoard(size)

    def __handlers__(self) -> Iterator[Any]:
        for function in (self.keep, self.keep_plainly, support.pid):
            yield "request", function.__name__, function, {}


def hoard_in_pieces(size: int) -> Iterator[int]:
    for _ in range(3):
        hoard(size // 3)
        yield size


async def hoard_by_request(pool: Pool) -> None:
    await pool.request("keep", [150 * MIB])


async def hoard_by_plain_request(pool: Pool) -> None:
    await pool.request("keep_plainly", [150 * MIB])


async def hoard_by_stream(pool: Pool) -> None:
    assert len([size async for size in pool.stream(hoard_in_pieces, 150 * MIB)]) == 3


@pytest.mark.parametrize(
    "way", [hoard_by_request, hoard_by_plain_request, hoard_by_stream], ids=lambda way: way.__name__
)
@in_workers
async def test_what_requests_and_streams_keep_counts_as_well(
    way: Callable[[Pool], Awaitable[None]],
) -> None:
    async with open_pool(max_rss=100 * MIB, service=Hoarder) as pool:
        [first] = pool.workers
        with watched(first.pid) as process:
            await way(pool)
            for _ in range(5000):  # it is looked at now and then
                if way is hoard_by_stream:
                    assert [none async for none in pool.stream(give, [None])] == [None]
                elif await pool.request("pid") != first.pid:
                    break
                if first.state == "ended":
                    break
            await process.ended()
        assert pool.statistics().workers_recycled == 1


def give(items: list[Any]) -> list[Any]:
    return items


# -- resizing ----------------------------------------------------------------------------------


async def test_more_workers_are_ready_when_resize_returns() -> None:
    async with open_pool(1) as pool:
        await pool.resize(3)
        assert len(pool.workers) == pool.statistics().workers == 3
        assert pool.statistics().idle == 3
        await pool.resize(3)
        assert len(pool.workers) == 3
        with pytest.raises(ValueError, match="workers is from 1"):
            await pool.resize(0)


async def test_surplus_workers_end_their_tasks_first(reports: Reports) -> None:
    async with open_pool(3) as pool:
        tasks = [pool.submit(support.ask, reports.address) for _ in range(3)]
        came = [await reports.next("started") for _ in tasks]
        with watched(came[0].pid) as one, watched(came[1].pid) as two, watched(came[2].pid) as last:
            await pool.resize(1)
            retiring = {worker.pid for worker in pool.workers if worker.state == "retiring"}
            assert len(retiring) == 2
            waiting = pool.submit(support.pid)
            for report in came:
                reports.answer(report)
            assert [await task for task in tasks] == ["go"] * 3
            for process in (one, two, last):
                if process.pid in retiring:
                    await process.ended()
            assert [worker.pid for worker in pool.workers] == [await waiting]
            assert pool.statistics().workers_died == 0


async def test_idle_workers_go_first(reports: Reports) -> None:
    async with open_pool(2) as pool:
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        await pool.resize(1)
        assert [worker.pid for worker in pool.workers] == [report.pid]
        reports.answer(report)
        await task


async def test_resizing_down_and_up_again_keeps_the_workers(reports: Reports) -> None:
    async with open_pool(2) as pool:
        tasks = [pool.submit(support.ask, reports.address) for _ in range(6)]
        came = [await reports.next("started") for _ in range(2)]
        for _ in range(4):
            await pool.resize(1)
            states = sorted(worker.state for worker in pool.workers)
            assert states == ["busy", "retiring"]
            with pytest.raises(ValueError, match="a worker that is retiring cannot be resumed"):
                next(each for each in pool.workers if each.state == "retiring").resume()
            await pool.resize(2)
            assert [worker.state for worker in pool.workers] == ["busy", "busy"]
        statistics = pool.statistics()
        assert (statistics.workers_started, statistics.workers_recycled) == (2, 0)
        assert (statistics.running, statistics.queued) == (2, 4)
        assert reports.is_empty
        for report in came:
            reports.answer(report)
        for _ in range(4):
            reports.answer(await reports.next("started"))
        await asyncio.gather(*tasks)


async def test_fewer_workers_are_fewer_tasks_at_once(reports: Reports) -> None:
    async with open_pool(2) as pool:
        tasks = [pool.submit(support.ask, reports.address) for _ in range(3)]
        came = [await reports.next("started") for _ in range(2)]
        await pool.resize(1)
        stays = next(worker.pid for worker in pool.workers if worker.state == "busy")
        came.sort(key=lambda report: report.pid != stays)
        reports.answer(came[0])
        first_done = asyncio.Event()
        for task in tasks:
            task.add_done_callback(lambda _: first_done.set())
        await first_done.wait()
        assert (pool.statistics().running, pool.statistics().queued) == (1, 1)
        reports.answer(came[1])
        last = await reports.next("started")
        assert last.pid == stays
        reports.answer(last)
        await asyncio.gather(*tasks)


# -- pausing -----------------------------------------------------------------------------------


async def test_a_paused_worker_gets_nothing_until_it_goes_on(reports: Reports) -> None:
    async with open_pool(2) as pool:
        one, other = pool.workers
        one.pause()
        assert one.state == "paused"
        assert {await pool.run(support.pid) for _ in range(10)} == {other.pid}
        other.pause()
        waiting = pool.submit(support.pid)
        with pytest.raises(ValueError, match="a worker that is paused cannot become paused"):
            one.pause()
        one.resume()
        assert await waiting == one.pid
        with pytest.raises(ValueError, match="a worker that is ready cannot become ready"):
            one.resume()


async def test_what_a_paused_worker_has_goes_on(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        [worker] = pool.workers
        worker.pause()
        reports.answer(report)
        assert await task == "go"
        assert worker.state == "paused"
        worker.resume()
        assert worker.state == "idle"


@pytest.mark.parametrize("function", [support.pid, support.pid_async])
async def test_a_pool_that_is_to_finish_needs_its_paused_workers(function: Any) -> None:
    async with open_pool(2) as pool:
        for worker in pool.workers:
            worker.pause()
        tasks = [pool.submit(function) for _ in range(4)]
        async with asyncio.timeout(LIMIT):
            await pool.aclose()
        assert all(task.done() and not task.cancelled() for task in tasks)
