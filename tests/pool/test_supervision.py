"""Supervision: deaths, repetition, workers that cannot start, and what can be seen of it."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from asyncipc import PoolError, Progress, Worker, WorkerDied, progress
from asyncipc.pool.roster import WorkerState
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
    sys.stderr.write("waiting for the licence\n")
    sys.stderr.flush()
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
        (
            {"initializer": hang_at_start, "spawn_timeout": 3},
            (
                r"(?s)spawn_timeout \(3 s\): worker 1 was running the initializer "
                r"tests\.pool\.test_supervision\.hang_at_start; .*stderr:\nwaiting for the licence$"
            ),
        ),
        (
            {"preload": ["tests.pool.hanging_module"], "spawn_timeout": 3},
            (
                r"(?s)spawn_timeout \(3 s\): (the zygote|worker 1) was preloading "
                r"'tests\.pool\.hanging_module'; .*stderr:\nthe module waits$"
            ),
        ),
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


@in_workers
async def test_a_zygote_that_hangs_is_replaced_by_another(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose workers do not come any more, which has to be started again meanwhile."""
    monkeypatch.setenv("ASYNCIPC_TEST_REPORTS", reports.address[1:].decode())
    opening = asyncio.create_task(open_and_replace(["tests.pool.asking_module"]))
    first = await reports.next("imported")
    reports.answer(first)
    second = await reports.next("imported")  # which waits, and is given up
    third = await reports.next("imported")
    reports.answer(third)
    assert len({first.pid, second.pid, third.pid}) == 3
    assert await opening == third.pid


async def open_and_replace(preload: list[str]) -> int:
    """Kill a worker and its zygote; returns the process id of the zygote that comes up."""
    async with open_pool(preload=preload, spawn_timeout=2) as pool:
        zygote = await pool.run(support.parent)
        with watched(zygote) as process:
            os.kill(zygote, signal.SIGKILL)
            await process.ended()
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        while True:
            try:
                return await pool.run(support.parent)
            except PoolError:
                continue


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
            if sys.platform == "linux":
                assert await pool.run(os.sched_getscheduler, 0) == os.SCHED_BATCH
            worker_task = pool.submit(support.leave, 1)
            with pytest.raises(WorkerDied):
                await worker_task


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


@pytest.mark.parametrize(
    ("state", "returncode"), [(WorkerState.ENDED, None), (WorkerState.RETIRING, -9)]
)
def test_nothing_is_told_of_a_process_that_may_be_anothers(
    state: WorkerState, returncode: int | None
) -> None:
    link = Mock()
    link.seat.state, link.process.returncode, link.process.pid = state, returncode, os.getpid()
    worker = Worker(link, lambda: None)
    assert worker.pid == os.getpid()
    assert worker.rss is worker.cpu_time is None


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
