"""Ways for a worker to die, at every point of a task's life.

The rows are those of `docs/faults.md`. What must happen: the task that it had begun fails and says
how the worker ended, nothing else is lost or done twice, and the pool goes on.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncipc import PoolTask, RemoteError, WorkerDied
from asyncipc.wire.framing import HEADER_SIZE
from tests.faults import tasks
from tests.faults.workers import (
    Deaths,
    both_start_methods,
    fifo,
    has_begun,
    on_one_loop,
    watched_pool,
)


async def death_of(task: PoolTask[Any]) -> WorkerDied:
    """How the worker of a task died."""
    with pytest.raises(WorkerDied) as caught:
        async with asyncio.timeout(5):
            await task
    return caught.value


# Row 2: SIGKILL at every point of a task's life


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (tasks.echo, (tasks.DiesOnArrival(),)),
        (tasks.die, ()),
        (tasks.die_async, ()),
        (tasks.departing, ()),
        *((tasks.die_inside_of_the_reply, (n,)) for n in (2, HEADER_SIZE, len(tasks.REPLY) - 1)),
    ],
    ids=[
        "unpickling the arguments",
        "running",
        "awaiting",
        "pickling the result",
        "in the header of the reply",
        "before the body of the reply",
        "before the end of the reply",
    ],
)
@on_one_loop
async def test_row_2_killed_while(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    async with watched_pool(2) as pool:
        with fifo() as (path, release):
            bystander = pool.submit(tasks.read_line, path)
            await has_begun(bystander)
            error = await death_of(pool.submit(function, *arguments))
            assert (error.signal, error.exit_code) == (signal.SIGKILL, None)
            assert f"died while it ran {function.__module__}.{function.__name__}" in str(error)
            assert await pool.run(tasks.echo, 1) == 1
            os.write(release, b"not harmed\n")
            assert await bystander == "not harmed\n"
        assert pool.statistics().workers_died == 1


@both_start_methods
async def test_row_2_killed_in_the_middle_by_somebody_else(start_method: str) -> None:
    async with watched_pool(start_method=start_method) as pool:
        for function in (tasks.spin, tasks.never):
            task = pool.submit(function)
            os.kill(await has_begun(task), signal.SIGKILL)
            assert (await death_of(task)).signal == signal.SIGKILL
        assert await pool.run(tasks.echo, 1) == 1


@both_start_methods
async def test_row_2_killed_while_idle(start_method: str) -> None:
    async with watched_pool(start_method=start_method) as pool:
        deaths = Deaths(pool)
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        assert (await deaths.next()).signal == signal.SIGKILL
        assert await pool.run(tasks.echo, 1) == 1
        assert pool.statistics().failed == 0


@on_one_loop
async def test_row_2_killed_behind_the_reply() -> None:
    """What it had sent counts, whatever is noticed first: its death or its reply."""
    async with watched_pool() as pool:
        deaths = Deaths(pool)
        for number in range(5):
            assert await pool.run(tasks.die_behind_the_reply, number) == number
            assert (await deaths.next()).signal == signal.SIGKILL
        assert await pool.run(tasks.echo, 1) == 1


@on_one_loop
async def test_row_2_killed_with_its_last_task() -> None:
    async with watched_pool(max_tasks=1) as pool:
        assert (await death_of(pool.submit(tasks.die))).signal == signal.SIGKILL
        task = pool.submit(tasks.spin)
        os.kill(await has_begun(task), signal.SIGKILL)
        assert (await death_of(task)).signal == signal.SIGKILL
        assert await pool.run(tasks.echo, 1) == 1


@on_one_loop
async def test_row_2_killed_behind_its_last_task() -> None:
    async with watched_pool(max_tasks=1) as pool:
        for _ in range(3):
            await pool.run(tasks.die_when_recycled)
        assert await pool.run(tasks.echo, 1) == 1
        assert pool.statistics().failed == 0
        assert pool.statistics().workers_died == 0  # it was on its way out


@on_one_loop
async def test_row_2_one_of_many_that_wait_in_the_worker(tmp_path: Path) -> None:
    """Which had begun is known: that one fails, and none is run twice."""
    runs = tmp_path / "runs"
    async with watched_pool() as pool:
        await pool.run(tasks.note_and_die_once, str(runs), -1, 50)  # it is fast: many wait there
        given = [pool.submit(tasks.note_and_die_once, str(runs), n, 50) for n in range(100)]
        outcomes = await asyncio.gather(*given, return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if outcome != n] == [50]
    assert isinstance(outcomes[50], WorkerDied)
    assert Counter(map(int, runs.read_text().split())) == Counter(range(-1, 100))


@on_one_loop
async def test_row_2_tasks_that_may_be_run_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    async with watched_pool() as pool:
        given = [
            pool.submit(tasks.note_and_die_once, str(runs), n, 50, retries=1) for n in range(100)
        ]
        assert await asyncio.gather(*given) == list(range(100))
        assert (await death_of(pool.submit(tasks.die, retries=2))).signal == signal.SIGKILL
        assert pool.statistics().workers_died == 1 + 3
    assert Counter(map(int, runs.read_text().split())) == Counter([*range(100), 50])


@on_one_loop
async def test_row_2_async_tasks_share_the_death_of_their_worker() -> None:
    async with watched_pool(concurrency=4) as pool:
        given = [pool.submit(tasks.never) for _ in range(4)]
        pids = set(await asyncio.gather(*map(has_begun, given)))
        assert len(pids) == 1
        os.kill(pids.pop(), signal.SIGKILL)
        assert {(await death_of(task)).signal for task in given} == {signal.SIGKILL}
        assert await pool.run(tasks.echo_async, 1) == 1


# Row 3: there is no lock between workers


@on_one_loop
async def test_row_3_workers_die_wherever_they_are_and_hold_nobody_up() -> None:
    async with watched_pool(2) as pool:
        with fifo() as (path, release):
            bystander = pool.submit(tasks.read_line, path)
            await has_begun(bystander)
            for _ in range(10):
                # In the middle of whatever: its progress, its log, its start, its reply.
                task = pool.submit(tasks.talk_without_end)
                os.kill(await has_begun(task), signal.SIGKILL)
                assert (await death_of(task)).signal == signal.SIGKILL
            os.write(release, b"not harmed\n")
            assert await bystander == "not harmed\n"
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(pool.run(tasks.echo, n) for n in range(200)))


# Other deaths


DEATHS: list[tuple[Callable[..., Any], tuple[Any, ...], int | None, int | None]] = [
    (tasks.segfault, (), None, signal.SIGSEGV),
    (tasks.die, (signal.SIGABRT,), None, signal.SIGABRT),
    (tasks.exit_at_once, (0,), 0, None),
    (tasks.exit_at_once, (77,), 77, None),
    (tasks.use_memory_unchecked, (), None, signal.SIGSEGV),
]


@both_start_methods
@on_one_loop
async def test_it_is_told_how_the_worker_ended(start_method: str) -> None:
    async with watched_pool(start_method=start_method) as pool:
        for function, arguments, exit_code, number in DEATHS:
            error = await death_of(pool.submit(function, *arguments))
            assert (error.exit_code, error.signal) == (exit_code, number)
        assert await pool.run(tasks.echo, 1) == 1


async def test_last_words_come_with_the_death() -> None:
    async with watched_pool(on_stderr=lambda _: None) as pool:
        error = await death_of(pool.submit(tasks.say_and_exit, "my last words", 3))
        assert error.exit_code == 3
        assert "my last words" in error.stderr_tail
        assert "my last words" in str(error)


# Out of memory


@on_one_loop
async def test_too_much_memory_is_the_tasks_error_alone() -> None:
    async with watched_pool() as pool:
        worker = pool.workers[0].pid
        with pytest.raises(MemoryError):
            await pool.run(tasks.take_too_much)
        assert await pool.run(tasks.pid) == worker


@on_one_loop
async def test_no_memory_to_answer_with() -> None:
    """Whatever comes of the worker, who waits hears of it, and the next task runs."""
    async with watched_pool(on_stderr=lambda _: None) as pool:
        await ends_somehow(pool.submit(tasks.take_everything))
        for _ in range(3):
            await ends_somehow(pool.submit(tasks.pid))
        await pool.resize(1)
        deaths = Deaths(pool)
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        await deaths.next()
        assert await pool.run(tasks.echo, 1) == 1


async def ends_somehow(task: PoolTask[Any]) -> None:
    async with asyncio.timeout(5):
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(outcome, bytes | int | MemoryError | RemoteError | WorkerDied), repr(outcome)
