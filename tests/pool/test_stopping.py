"""Stopping work: timeouts, cancelled callers and tasks, and the ladder for what will not stop."""

import asyncio
import ctypes
import functools
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from asyncipc import Pool, PoolTask, TaskTimeout, WorkerDied, current_call
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, Watch, in_workers, open_pool
from tests.processes import watched

# Seconds. A task that is to be seen running has begun long before.
TIMEOUT = 0.3


async def by_timeout(pool: Pool, function: Callable[..., Any], reports: Reports) -> None:
    running = asyncio.ensure_future(pool.run(function, reports.address, timeout=TIMEOUT))
    await reports.next("started")
    with pytest.raises(TaskTimeout, match=rf"no result of .* within {TIMEOUT} s"):
        await running


async def by_cancelling_who_waits(
    pool: Pool, function: Callable[..., Any], reports: Reports
) -> None:
    running = asyncio.ensure_future(pool.run(function, reports.address))
    await reports.next("started")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def by_cancelling_the_task(
    pool: Pool, function: Callable[..., Any], reports: Reports
) -> None:
    task = pool.submit(function, reports.address)
    await reports.next("started")
    assert task.cancel()
    assert not task.cancel()
    assert task.cancelled()
    assert repr(task).endswith("ask_async cancelled>") or function is not support.ask_async
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS = (by_timeout, by_cancelling_who_waits, by_cancelling_the_task)
Way = Callable[[Pool, Callable[..., Any], Reports], Any]


# -- asked first -------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_work_that_stops_when_asked_leaves_its_worker_alive(
    start_method: str, reports: Reports
) -> None:
    async with open_pool(start_method=start_method, grace=LIMIT) as pool:
        worker = await pool.run(support.pid)
        for way in WAYS:
            await way(pool, support.ask_async, reports)
            await reports.next("cancelled")
            await way(pool, support.look_until_cancelled, reports)
            await reports.next("saw it")
            assert await pool.run(support.pid) == worker
        statistics = pool.statistics()
        assert (statistics.failed, statistics.cancelled) == (2, 4)
        assert statistics.workers_died == statistics.running == 0


async def test_a_timeout_around_it_does_the_same(reports: Reports) -> None:
    async with open_pool(grace=LIMIT, preload=[support.__name__]) as pool:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(TIMEOUT):
                await pool.run(support.ask_async, reports.address)
        assert not isinstance(caught.value, TaskTimeout)
        await reports.next("started")
        await reports.next("cancelled")


async def test_async_work_is_stopped_alone(reports: Reports) -> None:
    async with open_pool(concurrency=3, grace=LIMIT) as pool:
        tasks = [pool.submit(support.ask_async, reports.address) for _ in range(3)]
        came = [await reports.next("started") for _ in tasks]
        tasks[1].cancel()
        await reports.next("cancelled")
        for report in (came[0], came[2]):
            reports.answer(report)
        assert [await tasks[0], await tasks[2]] == ["go", "go"]


async def test_who_waits_does_not_wait_for_the_work_to_stop(reports: Reports) -> None:
    async with open_pool(2, grace=LIMIT, drain=False) as pool:
        task = pool.submit(clean_up_slowly, reports.address)
        await reports.next("started")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cleaning = await reports.next("cleaning")
        assert pool.statistics().running == 0
        # The worker still counts as busy: its next task would have to wait.
        assert sorted(worker.state for worker in pool.workers) == ["busy", "idle"]
        reports.answer(cleaning)
        await reports.next("clean")


CHILD = """
import os, signal, socket, sys

signals = {signal.SIGTERM, signal.SIGURG}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

def tell(text):
    ours.sendto(f"{os.getpid()} {text}".encode(), bytes.fromhex(sys.argv[1]))

tell("a child")
while True:
    tell(signal.sigwait(signals).name)  # the lower number first
"""


def have_a_child(address: bytes) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, address.hex()])
    try:
        support.ask(address)
    finally:
        child.send_signal(signal.SIGURG)
        support.ask(address, "leaving")


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_the_worker_alone_is_asked_to_end(start_method: str, reports: Reports) -> None:
    async with open_pool(start_method=start_method, grace=1) as pool:
        task = pool.submit(have_a_child, reports.address)
        came = {(await reports.next()).text for _ in range(2)}
        assert came == {"a child", "started"}
        task.cancel()
        came = {(await reports.next()).text for _ in range(2)}
        assert came == {"leaving", "SIGURG"}


async def clean_up_slowly(address: bytes) -> None:
    try:
        support.tell(address, "started")
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.to_thread(support.ask, address, "cleaning")
        support.tell(address, "clean")
        raise


# -- then made to ------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("way", WAYS)
@in_workers
async def test_work_that_does_not_stop_is_ended_with_its_worker(
    way: Way, start_method: str, reports: Reports
) -> None:
    watch = Watch()
    async with open_pool(2, start_method=start_method, **watch.options) as pool:
        started = {(await watch.next_started()).pid for _ in range(2)}
        beside = pool.submit(support.ask, reports.address, "beside")
        other = await reports.next("beside")
        [pid] = started - {other.pid}

        await way(pool, support.ask_and_clean_up, reports)
        await reports.next("cleaned up")  # as SIGTERM lets it
        worker, error = await watch.next_died()
        assert isinstance(error, WorkerDied)
        assert error.signal == signal.SIGTERM
        assert worker.pid == pid
        assert worker.state == "ended"
        replacement = await watch.next_started()
        assert replacement.pid not in started
        assert await pool.run(support.pid) == replacement.pid

        reports.answer(other, "not hurt")
        assert await beside == "not hurt"
        assert pool.statistics().workers_died == 1


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_work_that_ignores_sigterm_is_killed(start_method: str, reports: Reports) -> None:
    watch = Watch()
    async with open_pool(start_method=start_method, **watch.options) as pool:
        for function in (support.ask_deaf, catch_and_go_on, hold_the_interpreter):
            worker = await watch.next_started()
            with watched(worker.pid) as process:
                task = pool.submit(function, reports.address)
                await reports.next("started")
                task.cancel()
                _, error = await watch.next_died()
                assert isinstance(error, WorkerDied)
                assert error.signal == signal.SIGKILL
                await process.ended()
        assert await pool.run(support.add, 1, 2) == 3


def catch_and_go_on(address: bytes) -> None:
    with suppress(SystemExit):
        support.ask(address)
    while True:
        with suppress(SystemExit):
            signal.pause()


def hold_the_interpreter(address: bytes) -> None:
    """Hang in C code and hold the interpreter's lock, so that no signal is ever handled."""
    mutex = ctypes.create_string_buffer(256)
    library = ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    support.tell(address, "started")
    library.pthread_mutex_lock(mutex)


@in_workers
async def test_async_work_that_goes_on_regardless(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(**watch.options) as pool:
        task = pool.submit(resist, reports.address)
        await reports.next("started")
        task.cancel()
        await reports.next("resisting")
        _, error = await watch.next_died()
        assert isinstance(error, WorkerDied)
        assert error.signal == signal.SIGKILL
        assert await pool.run(support.add, 1, 2) == 3


async def resist(address: bytes) -> None:
    support.tell(address, "started")
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            support.tell(address, "resisting")


async def test_a_task_whose_worker_was_ended_for_another_is_repeated_or_fails(
    reports: Reports,
) -> None:
    async with open_pool(concurrency=2) as pool:
        stubborn = pool.submit(resist, reports.address)
        await reports.next("started")
        beside = pool.submit(support.ask_async, reports.address, "beside", retries=1)
        first = await reports.next("beside")
        stubborn.cancel()
        await reports.next("resisting")
        report = await reports.next()
        while report.text != "beside":  # it is told to go with its worker
            report = await reports.next()
        assert report.pid != first.pid
        reports.answer(report, "again")
        assert await beside == "again"


# -- before it began ---------------------------------------------------------------------------


async def test_what_waits_for_a_worker_is_never_begun(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        running = pool.submit(support.ask, reports.address, "first")
        report = await reports.next("first")
        cancelled = pool.submit(support.tell, reports.address, "cancelled")
        late = pool.submit(support.tell, reports.address, "late", timeout=0.05)
        at_once = pool.submit(support.tell, reports.address, "at once", timeout=0)
        last = pool.submit(support.tell, reports.address, "last")
        assert cancelled.cancel()
        with pytest.raises(TaskTimeout):
            await late
        with pytest.raises(TaskTimeout, match="within 0 s"):
            await at_once
        assert pool.statistics().queued == 1
        reports.answer(report)
        assert await running == "go"
        await last
        await reports.next("last")
        assert reports.is_empty
        statistics = pool.statistics()
        assert (statistics.done, statistics.failed, statistics.cancelled) == (2, 2, 1)


async def test_a_thousand_tasks_cancelled_at_once(reports: Reports) -> None:
    async with open_pool(2, grace=LIMIT) as pool:
        running = [pool.submit(support.ask, reports.address) for _ in range(2)]
        came = [await reports.next("started") for _ in running]
        tasks = [pool.submit(support.tell, reports.address, str(i)) for i in range(1000)]
        for task in tasks:
            task.cancel()
        assert pool.statistics().queued == 0
        for report in came:
            reports.answer(report)
        assert [await task for task in running] == ["go", "go"]
        assert await pool.run(support.add, 1, 2) == 3
        assert reports.is_empty
        assert pool.statistics().cancelled == 1000


async def test_tiny_tasks_that_wait_in_a_worker_are_never_begun_either(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        tell = functools.partial(support.tell, reports.address)
        for _ in range(20):
            await pool.run(support.echo, None)  # now it is known to be fast, and may wait there
        tasks: list[PoolTask[Any]] = [pool.submit(support.echo, Telling(reports.address, "first"))]
        report = await reports.next("first")
        tasks += [pool.submit(support.echo, None) for _ in range(10)]
        marked = pool.submit(support.echo, Marking(reports.address))
        for task in (*tasks[1:], marked):
            assert task.cancel()
        reports.answer(report)
        await tasks[0]
        await pool.run(tell, "after")
        await reports.next("after")
        assert reports.is_empty


class Telling:
    """Asks when it is unpickled: before a function that is known to be fast begins."""

    def __init__(self, address: bytes, text: str) -> None:
        self.arguments = address, text

    def __reduce__(self) -> tuple[Any, ...]:
        return support.ask, self.arguments


class Marking:
    def __init__(self, address: bytes) -> None:
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return support.tell, (self.address, "begun")


# -- more time ---------------------------------------------------------------------------------


@in_workers
async def test_a_task_may_ask_for_more_time(reports: Reports) -> None:
    async with open_pool(4, grace=LIMIT, preload=[__name__]) as pool:
        longer = [
            asyncio.ensure_future(pool.run(function, reports.address, timeout=TIMEOUT))
            for function in (extend, extend_async)
        ]
        came = [await reports.next("extended") for _ in longer]
        # This one ends after the time that those had first.
        with pytest.raises(TaskTimeout):
            await pool.run(support.ask_async, reports.address, timeout=2 * TIMEOUT)
        assert not any(task.done() for task in longer)
        for report in came:
            reports.answer(report)
        assert await asyncio.gather(*longer) == ["go", "go"]
        await reports.next("started")
        await reports.next("cancelled")


def extend(address: bytes) -> str:
    current_call().extend_deadline(LIMIT)
    return support.ask(address, "extended")


async def extend_async(address: bytes) -> str:
    current_call().extend_deadline(LIMIT)
    return await support.ask_async(address, "extended")


@in_workers
async def test_a_task_knows_how_long_it_has() -> None:
    async with open_pool() as pool:
        functions: list[Callable[[], Any]] = [remaining, remaining_async]
        for function in functions:
            assert await pool.run(function) is None
            left = await pool.run(function, timeout=LIMIT)
            assert left is not None
            assert 0 < left <= LIMIT


def remaining() -> float | None:
    return current_call().remaining


async def remaining_async() -> float | None:
    return current_call().remaining
