"""Supervision: deaths, repetition, replacement, recycling, resizing, and what can be seen of it."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from asyncipc import PoolError, Progress, Worker, WorkerDied, progress
from asyncipc.pool.policy import JITTER
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, Watch, in_workers, open_pool
from tests.processes import watched
from tests.session.support import loop_errors

MIB = 1024 * 1024


# -- deaths ------------------------------------------------------------------------------------


def read_nowhere() -> None:
    """Segfault for real."""
    ctypes.string_at(0)


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_death_fails_its_own_task_and_says_how(start_method: str, reports: Reports) -> None:
    deaths: list[tuple[Callable[..., None], tuple[Any, ...], int | None, int | None]] = [
        (support.leave, (3,), 3, None),
        (support.leave, (0,), 0, None),
        (support.kill_oneself, (signal.SIGKILL,), None, signal.SIGKILL),
        (read_nowhere, (), None, signal.SIGSEGV),
    ]
    watch = Watch()
    options = {**watch.options, "on_stderr": lambda _: None}
    async with open_pool(2, start_method=start_method, **options) as pool:
        pids = {(await watch.next_started()).pid for _ in range(2)}
        beside = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        for number, (function, arguments, exit_code, killer) in enumerate(deaths, 1):
            with pytest.raises(WorkerDied, match=r"\(pid \d+\) died while it ran .*\.") as caught:
                await pool.run(function, *arguments)
            assert (caught.value.exit_code, caught.value.signal) == (exit_code, killer)
            worker, error = await watch.next_died()
            assert isinstance(error, WorkerDied)
            assert (error.exit_code, error.signal) == (exit_code, killer)
            assert worker.pid in pids - {report.pid}
            pids.add((await watch.next_started()).pid)
            assert pool.statistics().workers_died == number
        reports.answer(report, "not hurt")
        assert await beside == "not hurt"
        assert pool.statistics().workers == 2
        assert pool.statistics().workers_started == 2 + len(deaths)


async def test_the_last_words_of_a_worker_are_kept_and_passed_on() -> None:
    lines: list[str] = []
    async with open_pool(on_stderr=lines.append) as pool:
        with pytest.raises(WorkerDied, match=r"(?s)exit code 3\).*\nlast words") as caught:
            await pool.run(support.leave, 3, "first\nlast words\n")
        assert caught.value.stderr_tail == "first\nlast words\n"
        assert lines == ["first", "last words"]


async def test_what_workers_write_to_stderr_appears_there(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with open_pool() as pool:
        with pytest.raises(WorkerDied):
            await pool.run(support.leave, 0, "from a worker\n")
    assert capfd.readouterr().err == "from a worker\n"


async def test_an_idle_worker_that_dies_is_replaced() -> None:
    watch = Watch()
    async with open_pool(**watch.options) as pool:
        first = await watch.next_started()
        os.kill(first.pid, signal.SIGKILL)
        worker, error = await watch.next_died()
        assert worker.pid == first.pid
        assert isinstance(error, WorkerDied)
        assert error.signal == signal.SIGKILL
        replacement = await watch.next_started()
        assert replacement.number > first.number
        assert await pool.run(support.pid) == replacement.pid


async def test_tasks_behind_the_one_that_dies_are_moved(reports: Reports) -> None:
    async with open_pool() as pool:
        for _ in range(20):
            await pool.run(support.echo, None)  # so that some may wait in the worker
        dying = pool.submit(support.echo, Dying(reports.address))
        behind = [pool.submit(support.echo, number) for number in range(100)]
        reports.answer(await reports.next("started"))
        with pytest.raises(WorkerDied):
            await dying
        assert await asyncio.gather(*behind) == list(range(100))
        statistics = pool.statistics()
        assert statistics.failed == 1
        assert 0 <= statistics.moved <= 100


class Dying:
    """Asks, and dies, where it is unpickled."""

    def __init__(self, address: bytes) -> None:
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return support.die_until, (self.address, "never")


async def test_async_functions_in_one_worker_share_its_death(reports: Reports) -> None:
    async with open_pool(concurrency=3) as pool:
        tasks = [pool.submit(support.ask_async, reports.address) for _ in range(2)]
        came = [await reports.next("started") for _ in tasks]
        os.kill(came[0].pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(WorkerDied):
                await task
        assert await pool.run(support.add, 1, 2) == 3


# -- repetition --------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_task_is_repeated_as_often_as_it_may_be(
    start_method: str, reports: Reports
) -> None:
    async with open_pool(start_method=start_method) as pool:
        task = pool.submit(support.die_until, reports.address, "now", retries=2)
        pids = set()
        for answer in ("not yet", "not yet", "now"):
            report = await reports.next("started")
            pids.add(report.pid)
            reports.answer(report, answer)
        assert await task == "now"
        assert len(pids) == 3
        assert pool.statistics().moved == 2

        task = pool.submit(support.die_until, reports.address, "never", retries=1)
        for _ in range(2):
            reports.answer(await reports.next("started"))
        with pytest.raises(WorkerDied):
            await task
        assert await pool.run(support.add, 1, 2) == 3
        assert reports.is_empty


async def test_what_may_not_be_repeated_is_run_once(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.die_until, reports.address, "never")
        reports.answer(await reports.next("started"))
        with pytest.raises(WorkerDied):
            await task
        assert await pool.run(support.add, 1, 2) == 3
        assert reports.is_empty


async def test_a_failure_is_no_death_and_not_repeated(reports: Reports) -> None:
    async with open_pool() as pool:
        with pytest.raises(LookupError):
            await pool.run(tell_and_fail, reports.address, retries=5)
        await reports.next("began")
        assert await pool.run(support.add, 1, 2) == 3
        assert reports.is_empty


def tell_and_fail(address: bytes) -> None:
    support.tell(address, "began")
    raise LookupError("not here")


async def test_progress_of_a_repeated_task_goes_on(reports: Reports) -> None:
    came: list[Progress] = []
    async with open_pool() as pool:
        task = pool.submit(
            report_and_die_until, reports.address, "now", retries=1, on_progress=came.append
        )
        for answer in ("not yet", "now"):
            reports.answer(await reports.next("started"), answer)
        assert await task == "now"
        assert came == [Progress(0), Progress(0)]


def report_and_die_until(address: bytes, answer: str) -> str:
    progress(0)
    return support.die_until(address, answer)


# -- workers that cannot start -----------------------------------------------------------------


def fail_to_start() -> None:
    raise LookupError("there is no database")


def die_at_start() -> None:
    support.leave(7, "no licence\n")


def hang_at_start() -> None:
    signal.pause()


def exit_at_start() -> None:
    raise SystemExit("not today")


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"initializer": fail_to_start}, r"could not get ready.*no database"),
        ({"initializer": exit_at_start}, r"could not get ready.*not today"),
        ({"initializer": die_at_start}, r"(?s)exit code 7.*no licence"),
        ({"initializer": hang_at_start, "spawn_timeout": 0.3}, r"spawn_timeout \(0\.3 s\)"),
        ({"service": fail_to_start}, r"could not get ready.*no database"),
        (
            {"initializer": support.echo, "initargs": (support.Unloadable(),)},
            r"cannot unpickle the initializer or service",
        ),
        ({"preload": ["there_is_no_such_module"]}, r"there_is_no_such_module"),
        ({"preload": ["tests.pool.failing_module"]}, r"tests\.pool\.failing_module"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@in_workers
async def test_a_pool_whose_workers_cannot_start_says_why(
    options: dict[str, Any], text: str, start_method: str
) -> None:
    began = asyncio.get_running_loop().time()
    options = {"on_stderr": lambda _: None, "start_method": start_method, **options}
    with pytest.raises(PoolError, match=text):
        async with open_pool(**options):
            raise AssertionError("it is open")
    assert asyncio.get_running_loop().time() - began < LIMIT


@in_workers
async def test_workers_that_no_longer_come_up_fail_what_waits(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    answering = asyncio.create_task(answer(reports, "live", *["die"] * 100))
    options = {"initializer": support.die_until, "initargs": (reports.address, "live")}
    async with open_pool(**options, on_stderr=lambda _: None) as pool:
        with pytest.raises(WorkerDied):
            await pool.run(support.leave, 1)
        with pytest.raises(PoolError, match=r"workers don't come up: .*exit code 1"):
            await pool.run(support.pid)
        assert "did not come up (1 in a row)" in caplog.text
        answering.cancel()
        # It goes on trying, ever more slowly, and recovers.
        answering = asyncio.create_task(answer(reports, *["live"] * 100))
        assert await pool.run(support.add, 1, 2) == 3
        answering.cancel()


async def answer(reports: Reports, *texts: str) -> None:
    for text in texts:
        reports.answer(await reports.next("started"), text)


# -- the initializer ---------------------------------------------------------------------------

_initialized: list[tuple[Any, ...]] = []


def initialize(*arguments: Any) -> None:
    _initialized.append((os.getpid(), *arguments))


def initialized() -> list[tuple[Any, ...]]:
    return _initialized


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_the_initializer_runs_once_in_each_worker(start_method: str) -> None:
    watch = Watch()
    async with open_pool(
        start_method=start_method,
        initializer=initialize,
        initargs=(1, "two"),
        niceness=3,
        **watch.options,
    ) as pool:
        for _ in range(2):
            worker = await watch.next_started()
            assert await pool.run(initialized) == [(worker.pid, 1, "two")]
            assert await pool.run(os.nice, 0) == os.nice(0) + 3
            worker_task = pool.submit(support.leave, 1)
            with pytest.raises(WorkerDied):
                await worker_task


# -- recycling ---------------------------------------------------------------------------------


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


def hoard(size: int) -> None:
    _initialized.append((b"x" * size,))


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


# -- what can be seen --------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_workers_can_be_looked_at(start_method: str, reports: Reports) -> None:
    async with open_pool(2, start_method=start_method) as pool:
        assert [worker.number for worker in pool.workers] == [1, 2]
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        states = {worker.pid: worker.state for worker in pool.workers}
        assert states.pop(report.pid) == "busy"
        assert list(states.values()) == ["idle"]
        busy = next(worker for worker in pool.workers if worker.pid == report.pid)
        assert busy.tasks_running == 1
        assert busy.tasks_done == 0
        assert busy.rss is not None
        assert 5 * MIB < busy.rss < 1024 * MIB
        assert busy.cpu_time is not None
        assert 0 <= busy.cpu_time < LIMIT
        assert repr(busy) == f"<Worker {busy.number} pid {busy.pid} busy>"
        statistics = pool.statistics()
        assert (statistics.workers, statistics.idle, statistics.running) == (2, 1, 1)
        reports.answer(report)
        await task
        assert busy.state == "idle"
        assert busy.tasks_done == 1
    assert busy.state == "ended"
    assert busy.rss is busy.cpu_time is None


async def test_callbacks_can_be_added_later_and_may_fail() -> None:
    watch = Watch()

    def fail(*_: object) -> None:
        raise LookupError("in a callback")

    with loop_errors() as errors:
        async with open_pool(on_worker_started=fail) as pool:
            pool.on_worker_started(watch.on_started)
            pool.on_worker_died(fail)
            pool.on_worker_died(watch.on_died)
            with pytest.raises(WorkerDied):
                await pool.run(support.leave, 1)
            worker, _ = await watch.next_died()
            assert isinstance(worker, Worker)
            await watch.next_started()
        assert [str(context["exception"]) for context in errors] == ["in a callback"] * 3


# -- the zygote --------------------------------------------------------------------------------


async def test_a_zygote_that_is_killed_hurts_no_worker_and_is_replaced(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(2, **watch.options) as pool:
        for _ in range(2):
            await watch.next_started()
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        zygote = await pool.run(support.parent)
        with watched(zygote) as process:
            os.kill(zygote, signal.SIGKILL)
            await process.ended()
        assert await pool.run(support.add, 1, 2) == 3
        reports.answer(report, "not hurt")
        assert await task == "not hurt"
        assert pool.statistics().workers_died == 0

        await pool.resize(3)
        started = await watch.next_started()
        assert watch.died.empty()
        for worker in pool.workers:
            if worker.pid != started.pid:
                worker.pause()
        assert await pool.run(support.parent) not in {zygote, os.getpid()}


async def test_a_worker_that_outlives_its_zygote_dies_like_any_other(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(**watch.options) as pool:
        await watch.next_started()
        zygote = await pool.run(support.parent)
        with watched(zygote) as process:
            os.kill(zygote, signal.SIGKILL)
            await process.ended()
        with pytest.raises(WorkerDied) as caught:
            await pool.run(support.leave, 3, "and no zygote\n")
        # Who reaps it is not ours; newer kernels tell all the same.
        assert caught.value.exit_code in {3, None}
        assert caught.value.stderr_tail == "and no zygote\n"
        replacement = await watch.next_started()
        assert await pool.run(support.pid) == replacement.pid
