"""Tiny tasks that go to a worker together: each is its own, whatever becomes of the others."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy
import pytest

from asyncipc import (
    EncodeError,
    Fd,
    Pool,
    RemoteError,
    TaskTimeout,
    WorkerDied,
    current_call,
    progress,
)
from asyncipc.pool.ledger import MAX_BUNDLE, SLOT_SIZE
from asyncipc.pool.payload import dump_function
from asyncipc.pool.policy import MAX_AHEAD
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, Watch, in_workers, open_pool
from tests.processes import watched

# Bundles until the function is known to be over in a moment, however long it took at first.
TRIES = 1000

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="untouched")

Call = tuple[Callable[..., Any], *tuple[Any, ...]]

NOTHING: Call = (support.echo, None)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What all calls of these tests go through: a function that is known to be over in a moment."""
    return function(*args)


def start(pool: Pool, calls: Sequence[Call]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(pool.run(call, *each)) for each in calls]


async def ended(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(LIMIT):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def run_together(pool: Pool, calls: Sequence[Call]) -> list[Any]:
    return await ended(start(pool, calls))


async def make_known(pool: Pool) -> None:
    """Have a pool find out that `call` is over in a moment."""
    durations = pool._engine._scheduler._durations
    for _ in range(TRIES):
        await run_together(pool, [NOTHING] * MAX_BUNDLE)
        if durations.ahead(dump_function(call)) == MAX_AHEAD:
            return
    raise AssertionError("they are never over in a moment")


async def begin_bundle(pool: Pool, calls: Sequence[Call]) -> list[asyncio.Task[Any]]:
    """Start calls that go to the one worker of a pool as one bundle, behind one that is alone."""
    await make_known(pool)
    before = pool.statistics().bundled
    _, *tasks = start(pool, [NOTHING, *calls])
    for _ in range(2):
        await asyncio.sleep(0)
    assert pool.statistics().bundled - before == len(calls)
    return tasks


async def bundled(pool: Pool, calls: Sequence[Call]) -> list[Any]:
    return await ended(await begin_bundle(pool, calls))


def note(path: Path, text: str) -> str:
    with path.open("a") as file:
        file.write(f"{text}\n")
    return text


def note_and_fail(path: Path, text: str) -> None:
    note(path, text)
    raise ValueError(text)


# -- outcomes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
async def test_each_gets_what_is_its_own(start_method: str) -> None:
    calls: list[Call] = [
        (support.echo, 1),
        (support.fail, ValueError("of the second")),
        (support.echo, {"text": "x" * 100}),
        (support.make_unpicklable,),
        (support.echo, bytearray(b"abc")),
        (support.add, 1),
        (bytes, 2 * SLOT_SIZE),
        (support.echo, 9),
    ]
    async with open_pool(start_method=start_method) as pool:
        outcomes = await bundled(pool, calls)
        assert outcomes[0] == 1
        assert isinstance(outcomes[1], ValueError)
        assert outcomes[1].args == ("of the second",)
        assert isinstance(outcomes[1].__cause__, RemoteError)
        assert "in fail" in outcomes[1].__cause__.traceback
        assert outcomes[2] == {"text": "x" * 100}
        assert isinstance(outcomes[3], EncodeError)
        assert outcomes[4] == b"abc"
        assert type(outcomes[4]) is bytearray
        assert isinstance(outcomes[5], TypeError)
        assert outcomes[6] == bytes(2 * SLOT_SIZE)
        assert outcomes[7] == 9
        assert [pool.workers[0].number, pool.statistics().workers_died] == [1, 0]


@in_workers
async def test_large_results_leave_on_their_own(tmp_path: Path) -> None:
    calls: list[Call] = [
        (support.echo, 0),
        (numpy.zeros, 5000),
        (support.echo, 1),
        (open, os.devnull, "rb"),
        (support.echo, 2),
        (numpy.ones, 5000),
    ]
    async with open_pool() as pool:
        zero, zeros, one, file, two, ones = await bundled(pool, calls)
        assert (zero, one, two) == (0, 1, 2)
        assert (zeros.sum(), ones.sum()) == (0, 5000)
        with file:
            assert file.read() == b""


@in_workers
async def test_results_that_fill_the_ledger_all_arrive() -> None:
    sizes = [size % 1500 for size in range(0, 100 * MAX_BUNDLE, 100)]
    async with open_pool() as pool:
        assert await bundled(pool, [(bytes, size) for size in sizes]) == [
            bytes(size) for size in sizes
        ]


@in_workers
async def test_what_is_awaited_is_waited_for() -> None:
    calls: list[Call] = [
        (support.echo, 1),
        (support.double_async, 2),
        (support.fail_async, ValueError("later")),
        (support.echo, 3),
    ]
    async with open_pool() as pool:
        one, four, error, three = await bundled(pool, calls)
        assert (one, four, three) == (1, 4, 3)
        assert isinstance(error, ValueError)
        # A function that gives what is to be awaited is none for bundles.
        before = pool.statistics().bundled
        for _ in range(20):
            assert await run_together(pool, [NOTHING] * 10) == [None] * 10
        assert pool.statistics().bundled == before


@in_workers
async def test_large_results_are_not_sent_together_for_long() -> None:
    async with open_pool(2, max_tasks=10_000) as pool:
        for _ in range(20):
            assert (
                await ended([asyncio.create_task(pool.run(bytes, 5000)) for _ in range(100)])
                == [bytes(5000)] * 100
            )
        assert pool.statistics().bundled < 100
        assert sum(worker.tasks_done for worker in pool.workers) == 2000


@in_workers
async def test_one_whose_answer_cannot_be_sent_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    calls: list[Call] = [(note, path, str(number)) for number in range(6)]
    calls[2] = (open_many, 300)
    async with open_pool() as pool:
        outcomes = await bundled(pool, calls)
        assert "file descriptors" in str(outcomes.pop(2))
        assert outcomes == path.read_text().split() == ["0", "1", "3", "4", "5"]


@in_workers
async def test_exceptions_as_odd_as_they_like_disturb_nobody() -> None:
    calls: list[Call] = [
        (support.echo, 0),
        (support.fail, OddError()),
        (fail_with_odd_note,),
        (OddResult,),
        (support.echo, 4),
    ]
    async with open_pool() as pool:
        zero, *odd, four = await bundled(pool, calls)
        assert (zero, four) == (0, 4)
        assert [type(error).__name__ for error in odd] == ["OddError", "RemoteError", "DecodeError"]
        assert odd[1].notes == ("a note",)
        assert await bundled(pool, [NOTHING] * 5) == [None] * 5


@in_workers
async def test_context_variables_and_progress_are_each_task_s() -> None:
    async with open_pool() as pool:
        calls: list[Call] = [(change_variable, number) for number in range(10)]
        assert await bundled(pool, calls) == ["untouched"] * 10
        assert await bundled(pool, [(progress, 1.0), (support.echo, 1)]) == [None, 1]


@in_workers
async def test_those_that_are_listened_to_go_alone() -> None:
    async with open_pool() as pool:
        await begin_bundle(pool, [NOTHING] * 2)
        before = pool.statistics().bundled
        updates: list[Any] = []
        await asyncio.gather(
            *(pool.submit(call, support.echo, 1) for _ in range(5)),
            *(pool.run(call, support.echo, 1, timeout=LIMIT) for _ in range(5)),
            *(pool.run(call, progress, 1, on_progress=updates.append) for _ in range(5)),
            *(pool.run(call, support.echo, "x" * 5000) for _ in range(5)),
        )
        assert pool.statistics().bundled == before
        assert len(updates) == 5


@in_workers
async def test_many_over_several_workers(tmp_path: Path) -> None:
    async with open_pool(3) as pool:
        for _ in range(20):
            results = await run_together(pool, [(support.double, number) for number in range(500)])
            assert results == [2 * number for number in range(500)]
        statistics = pool.statistics()
        assert statistics.bundled > 1000
        assert statistics.running == statistics.queued == 0
        assert statistics.done == sum(worker.tasks_done for worker in pool.workers) == 10_000
        assert min(worker.tasks_done for worker in pool.workers) > 0


@in_workers
async def test_a_worker_gets_no_more_than_it_may_have(reports: Reports) -> None:
    async with open_pool(max_tasks=100, preload=[__name__]) as pool:
        pids: list[int] = []
        for _ in range(20):
            pids += await run_together(pool, [(support.pid,)] * 100)
        assert pool.statistics().bundled > 0
        assert max(pids.count(pid) for pid in set(pids)) <= 100


# -- dying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_death_fails_the_one_task_that_caused_it(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    calls: list[Call] = [(note, path, str(number)) for number in range(20)]
    calls[7] = (support.leave, 3, "these are my last words")
    async with open_pool(start_method=start_method) as pool:
        outcomes = await bundled(pool, calls)
        died = outcomes.pop(7)
        assert isinstance(died, WorkerDied)
        assert (died.exit_code, died.stderr_tail) == (3, "these are my last words")
        assert "test_bundles.call" in str(died)
        assert outcomes == path.read_text().split() == [str(n) for n in range(20) if n != 7]
        statistics = pool.statistics()
        assert (statistics.failed, statistics.moved, statistics.workers_died) == (1, 12, 1)


@in_workers
async def test_one_that_may_be_repeated_is(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with open_pool() as pool:
        await make_known(pool)
        before = pool.statistics()
        calls: list[Call] = [NOTHING, NOTHING, (die_at_first, path), (support.echo, 3)]
        tasks = [asyncio.create_task(pool.run(call, *each, retries=1)) for each in calls]
        assert await ended(tasks) == [None, None, "2nd", 3]
        statistics = pool.statistics()
        assert statistics.bundled - before.bundled >= 3
        assert (statistics.failed, statistics.moved, statistics.workers_died) == (0, 2, 1)


@in_workers
async def test_a_kill_at_any_point_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The worker is killed by a task of a bundle, at each place in it."""
    for place in range(8):
        path = tmp_path / f"ran {place}"
        calls: list[Call] = [(note, path, str(number)) for number in range(8)]
        calls[place] = (support.kill_oneself, signal.SIGKILL)
        async with open_pool() as pool:
            outcomes = await bundled(pool, calls)
            died = outcomes.pop(place)
            assert isinstance(died, WorkerDied)
            assert died.signal == signal.SIGKILL
            assert outcomes == path.read_text().split() == [str(n) for n in range(8) if n != place]


# -- taking long -------------------------------------------------------------------------------


@in_workers
async def test_results_do_not_wait_for_one_that_takes_long(reports: Reports) -> None:
    async with open_pool() as pool:
        calls: list[Call] = [
            (support.echo, 0),
            (support.echo, 1),
            (support.ask, reports.address),
            (support.echo, 3),
        ]
        tasks = await begin_bundle(pool, calls)
        report = await reports.next("started")
        assert await ended(tasks[:2]) == [0, 1]
        assert not tasks[3].done()
        assert pool.workers[0].tasks_running == 2
        reports.answer(report, "go on")
        assert await ended(tasks[2:]) == ["go on", 3]
        assert pool.statistics().moved == 0


@in_workers
async def test_a_death_while_one_takes_long(reports: Reports, tmp_path: Path) -> None:
    async with open_pool() as pool:
        path = tmp_path / "ran"
        calls: list[Call] = [(note, path, str(number)) for number in range(6)]
        calls[2] = (support.ask, reports.address)
        tasks = await begin_bundle(pool, calls)
        report = await reports.next("started")
        assert await ended(tasks[:2]) == ["0", "1"]
        os.kill(report.pid, signal.SIGKILL)
        died, *others = await ended(tasks[2:])
        assert isinstance(died, WorkerDied)
        assert others == ["3", "4", "5"]
        assert path.read_text().split() == ["0", "1", "3", "4", "5"]


@in_workers
async def test_those_that_come_back_are_given_out_before_later_ones(reports: Reports) -> None:
    async with open_pool() as pool:
        calls: list[Call] = [(support.ask, reports.address), *[(support.echo, n) for n in range(5)]]
        tasks = await begin_bundle(pool, calls)
        later = asyncio.create_task(pool.run(support.ask, reports.address, "later"))
        reports.answer(await reports.next("started"), "first")
        assert await ended(tasks) == ["first", 0, 1, 2, 3, 4]
        reports.answer(await reports.next("later"))
        assert await ended([later]) == ["go"]


# -- giving up ---------------------------------------------------------------------------------


@in_workers
async def test_one_that_was_given_up_before_it_began_never_does(
    reports: Reports, tmp_path: Path
) -> None:
    async with open_pool(grace=LIMIT) as pool:
        path = tmp_path / "ran"
        calls: list[Call] = [(note, path, str(number)) for number in range(6)]
        calls[1] = (support.ask, reports.address)
        tasks = await begin_bundle(pool, calls)
        report = await reports.next("started")
        tasks[3].cancel()
        tasks[4].cancel()
        await asyncio.wait([tasks[3], tasks[4]], timeout=LIMIT)
        assert [task.cancelled() for task in tasks] == [False, False, False, True, True, False]
        reports.answer(report)
        assert await ended([tasks[n] for n in (0, 1, 2, 5)]) == ["0", "go", "2", "5"]
        assert path.read_text().split() == ["0", "2", "5"]
        assert pool.workers[0].pid == report.pid
        assert pool.statistics().cancelled == 2


@in_workers
async def test_one_that_looks_sees_that_it_was_given_up(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        calls: list[Call] = [
            (support.echo, 0),
            (support.look_until_cancelled, reports.address),
            (support.echo, 2),
        ]
        tasks = await begin_bundle(pool, calls)
        report = await reports.next("started")
        tasks[1].cancel()
        await reports.next("saw it")
        assert await ended([tasks[0], tasks[2]]) == [0, 2]
        assert pool.workers[0].pid == report.pid


@in_workers
async def test_one_that_is_awaited_is_cancelled_where_it_waits(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        calls: list[Call] = [
            (support.echo, 0),
            (support.ask_async, reports.address),
            (support.echo, 2),
        ]
        tasks = await begin_bundle(pool, calls)
        report = await reports.next("started")
        tasks[1].cancel()
        await reports.next("cancelled")
        assert await ended([tasks[0], tasks[2]]) == [0, 2]
        assert pool.workers[0].pid == report.pid


@in_workers
async def test_a_call_that_has_ended_does_not_take_another_s_end_for_its_own(
    reports: Reports,
) -> None:
    async with open_pool(grace=LIMIT) as pool:
        assert await bundled(pool, [(keep_call,), NOTHING]) == [None, None]
        tasks = await begin_bundle(pool, [(support.look_until_cancelled, reports.address), NOTHING])
        await reports.next("started")
        tasks[0].cancel()
        await reports.next("saw it")
        await ended(tasks)
        assert await pool.run(kept_is_cancelled) is False


@pytest.mark.parametrize("wait_first", [False, True], ids=["at once", "when it was seen to hang"])
@in_workers
async def test_one_that_does_not_stop_is_ended_with_its_worker_and_the_others_go_on(
    wait_first: bool, reports: Reports, tmp_path: Path
) -> None:
    watch = Watch()
    async with open_pool(grace=0.05, **watch.options) as pool:
        path = tmp_path / "ran"
        calls: list[Call] = [(note, path, str(number)) for number in range(6)]
        calls[2] = (support.ask, reports.address)
        tasks = await begin_bundle(pool, calls)
        await reports.next("started")
        if wait_first:
            assert await ended(tasks[:2]) == ["0", "1"]
        tasks[2].cancel()
        outcomes = await ended(tasks)
        assert isinstance(outcomes.pop(2), asyncio.CancelledError)
        assert outcomes == ["0", "1", "3", "4", "5"]
        assert path.read_text().split() == ["0", "1", "3", "4", "5"]
        _, error = await watch.next_died()
        assert isinstance(error, WorkerDied)
        assert pool.statistics().workers_died == 1


@in_workers
async def test_what_waits_behind_one_that_is_ended_is_not_begun_by_the_dying_worker(
    reports: Reports, tmp_path: Path
) -> None:
    """Alone or together: it would run again in the next worker."""
    path = tmp_path / "ran"
    async with open_pool(grace=0.05) as pool:
        await make_known(pool)
        stuck = asyncio.create_task(pool.run(call, support.ask, reports.address, timeout=1.0))
        alone = [
            asyncio.create_task(pool.run(call, note_and_fail, path, str(number), timeout=LIMIT))
            for number in range(8)
        ]
        together = start(pool, [(note_and_fail, path, str(number)) for number in range(8, 16)])
        await reports.next("started")
        outcomes = await ended([stuck, *alone, *together])
        assert isinstance(outcomes.pop(0), TaskTimeout)
        assert [str(error) for error in outcomes] == [str(number) for number in range(16)]
        assert sorted(map(int, path.read_text().split())) == [*range(16)]


@in_workers
async def test_a_bundle_that_nobody_wants_is_not_run(reports: Reports, tmp_path: Path) -> None:
    async with open_pool(grace=LIMIT) as pool:
        path = tmp_path / "ran"
        await begin_bundle(pool, [NOTHING] * 2)
        asking = asyncio.create_task(pool.run(call, support.ask, reports.address))
        tasks = start(pool, [(note, path, str(number)) for number in range(20)])
        report = await reports.next("started")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=LIMIT)
        reports.answer(report)
        assert await ended([asking]) == ["go"]
        assert await pool.run(support.pid) == report.pid
        assert not path.exists()


@in_workers
async def test_leaving_without_draining_ends_a_bundle(reports: Reports) -> None:
    pool = Pool(1, grace=0.05, spawn_timeout=LIMIT, drain=False)
    async with pool:
        tasks = await begin_bundle(pool, [NOTHING, (support.ask, reports.address), NOTHING])
        await reports.next("started")
    first, *others = await ended(tasks)
    assert first is None or isinstance(first, asyncio.CancelledError)  # it may have been told yet
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in others)


# -- odd functions -----------------------------------------------------------------------------


@in_workers
async def test_a_process_that_a_task_forks_has_no_part_in_it(
    reports: Reports, tmp_path: Path
) -> None:
    path = tmp_path / "ran"
    async with open_pool() as pool:
        calls: list[Call] = [
            (fork_and_return, reports.address),
            (note, path, "1"),
            (note, path, "2"),
        ]
        twin, *_ = await bundled(pool, calls)
        twin_s = await reports.next("forked")
        asking, *others = await begin_bundle(pool, [(support.ask, reports.address), *calls[1:]])
        report = await reports.next("started")
        with watched(twin) as process:
            reports.answer(twin_s)  # so that it comes back from its task, too
            await process.ended()
        os.kill(report.pid, signal.SIGKILL)
        died, *results = await ended([asking, *others])
        assert isinstance(died, WorkerDied)
        assert results == ["1", "2"]
        assert path.read_text().split() == ["1", "2"] * 2
        assert pool.statistics().moved == 2


def change_variable(value: int) -> str:
    found = VARIABLE.get()
    VARIABLE.set(str(value))
    return found


def die_at_first(path: Path) -> str:
    if not path.exists():
        path.touch()
        os._exit(1)
    return "2nd"


def fork_and_return(address: bytes) -> int:
    """Returns twice: at once, and in the twin when it is told."""
    twin = os.fork()
    if not twin:
        support.ask(address, "forked")
    return twin


def open_many(count: int) -> list[Fd]:
    """More descriptors than a message may have."""
    return [Fd(os.open(os.devnull, os.O_RDONLY)) for _ in range(count)]


class OddError(Exception):
    """Its description is of no use."""

    def __repr__(self) -> str:
        raise ValueError("no")

    __str__ = __repr__


class OddNote(str):
    """It unpickles as badly as it can."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return support.fail, (ValueError("unpickling a note"),)


class OddResult:
    """It cannot be unpickled, and the error cannot be shown."""

    def __reduce__(self) -> Any:
        return support.fail, (OddError(),)


def fail_with_odd_note() -> None:
    error = ValueError("noted")
    error.add_note(OddNote("a note"))
    raise error


kept: list[Any] = []


def keep_call() -> None:
    kept.append(current_call())


def kept_is_cancelled() -> bool:
    return bool(kept[0].cancelled)
