"""What goes wrong around a pool: starts that fail, its zygote's death, threads that end, crowds.

The rows are those of `docs/faults.md`; each was a bug in a library that people trust.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from asyncipc import Pool, PoolError, WorkerDied
from tests.faults import tasks
from tests.faults.workers import (
    Deaths,
    both_start_methods,
    fifo,
    has_begun,
    on_one_loop,
    watched_pool,
)
from tests.processes import parent_of, watched

# Row 19: a worker reaches max_tasks while tasks wait


@both_start_methods
@on_one_loop
async def test_row_19_none_lost_none_doubled(start_method: str, tmp_path: Path) -> None:
    runs, count = tmp_path / "runs", 40
    async with watched_pool(2, start_method=start_method, max_tasks=7) as pool:
        given = [pool.submit(tasks.note_and_die_once, str(runs), n, -1) for n in range(count)]
        async with asyncio.timeout(20):
            assert await asyncio.gather(*given) == list(range(count))
        statistics = pool.statistics()
    assert Counter(map(int, runs.read_text().split())) == Counter(range(count))
    assert statistics.workers_recycled >= count // 7 - 2
    assert (statistics.failed, statistics.workers_died) == (0, 0)


@both_start_methods
@on_one_loop
async def test_row_19_replacements_do_not_add_to_who_is_at_work(start_method: str) -> None:
    started = asyncio.Event()
    async with watched_pool(2, start_method=start_method, max_tasks=1, drain=False) as pool:
        pool.on_worker_started(lambda _: started.set())
        given = [pool.submit(tasks.block) for _ in range(6)]
        async with asyncio.timeout(20):
            await asyncio.gather(has_begun(given[0]), has_begun(given[1]))
            while len(pool.workers) < 4:
                started.clear()
                await started.wait()
        assert (pool.statistics().running, pool.statistics().queued) == (2, 4)


# Row 20: workers crash at start


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "nothing to initialize"),
        ("exit", r"exit code 7(?s:.*)my last words"),
        ("kill", "killed by SIGKILL"),
        (
            "hang",
            (
                r"(?s)within spawn_timeout \(3 s\): worker \d was running the initializer "
                r"tests\.faults\.tasks\.start_badly; .*on stderr:\nwaiting for ever$"
            ),
        ),
    ],
)
@both_start_methods
@on_one_loop
async def test_row_20_the_pool_says_why_in_time(
    start_method: str, how: str, why: str, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    pool = Pool(
        2,
        start_method=start_method,  # type: ignore[arg-type] # a parameter of the test
        initializer=tasks.start_badly,
        initargs=(str(starts), how),
        spawn_timeout=3,
        grace=0.1,
        on_stderr=lambda _: None,
    )
    began = monotonic()
    with pytest.raises(PoolError, match=why):
        await pool.start()
    assert monotonic() - began < 5
    assert len(starts.read_text().split()) <= 8


@on_one_loop
async def test_row_20_workers_that_come_up_no_more(tmp_path: Path) -> None:
    """Tasks are told, and nobody starts processes as fast as they die."""
    starts = tmp_path / "starts"
    starts.write_text("good\n")
    async with watched_pool(
        initializer=tasks.start_badly, initargs=(str(starts), "later"), spawn_timeout=1
    ) as pool:
        assert await pool.run(tasks.echo, 1) == 1
        starts.write_text("bad\n")
        with pytest.raises(WorkerDied):
            await pool.run(tasks.die)
        began = monotonic()
        with pytest.raises(PoolError, match=r"workers don't come up: .*SIGKILL") as caught:
            async with asyncio.timeout(5):
                await pool.run(tasks.echo, 1)
        assert not isinstance(caught.value, WorkerDied)
        assert monotonic() - began < 3
        assert len(starts.read_text().split()) <= 8
        starts.write_text("good\n")
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(PoolError):
                    assert await pool.run(tasks.echo, 1) == 1
                    break


# Row 24: a worker holds nothing of another's


@both_start_methods
@on_one_loop
async def test_row_24_workers_hold_nothing_of_each_other(start_method: str) -> None:
    async with (
        watched_pool(2, start_method=start_method) as pool,
        watched_pool(1, start_method=start_method) as beside,
    ):
        with pytest.raises(WorkerDied):
            await pool.run(tasks.die)
        await pool.resize(3)  # which are forked while the others run
        workers = [worker.pid for worker in (*pool.workers, *beside.workers)]
        assert len(workers) == 4
        held = [connections(pid) for pid in workers]
        for number, names in enumerate(held):
            assert any("socket:" in name for name in names)
            others = set().union(*held[:number], *held[number + 1 :])
            assert not names & others
            # The application's own ends; of a pipe both ends have one name.
            assert not {name for name in names & connections(os.getpid()) if "socket:" in name}
            if start_method == "zygote":
                assert not names & connections(parent_of(workers[number]))


def connections(pid: int) -> set[str]:
    """The sockets, pipes and processes that a process has, but for its standard streams."""
    found = set()
    folder = Path(f"/proc/{pid}/fd")
    for entry in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # what listing it opened
            if int(entry) > 2:
                found.add(os.readlink(folder / entry))
    return {name for name in found if name.startswith(("socket:", "pipe:"))}


# Crowds


@pytest.mark.parametrize("function", [tasks.pid, tasks.never])
async def test_a_thousand_tasks_cancelled_at_once(function: Callable[[], Any]) -> None:
    async with watched_pool(2, concurrency=400) as pool:
        given = [pool.submit(function) for _ in range(1000)]
        if function is tasks.never:
            await has_begun(given[0])
        for task in given:
            task.cancel()
        outcomes = await asyncio.gather(*given, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError | int) for outcome in outcomes)
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(pool.run(tasks.echo, n) for n in range(10)))
        statistics = pool.statistics()
        assert statistics.done + statistics.cancelled == 1010
        assert (statistics.running, statistics.queued, statistics.failed) == (0, 0, 0)


# Threads


@both_start_methods
def test_row_12_the_end_of_a_thread_is_not_the_end_of_its_workers(start_method: str) -> None:
    loop = asyncio.new_event_loop()
    pool = Pool(2, start_method=start_method)  # type: ignore[arg-type] # a parameter of the test

    async def start() -> int:
        await pool.start()
        return await pool.run(tasks.pid)

    async def use() -> None:
        async with asyncio.timeout(10):
            assert pid in {worker.pid for worker in pool.workers}
            assert pool.statistics().workers_died == 0
            with pytest.raises(WorkerDied):
                await pool.run(tasks.die)
            assert await asyncio.gather(*(pool.run(tasks.echo, n) for n in range(10)))
            await pool.aclose()

    try:
        pids: list[int] = []
        thread = threading.Thread(
            target=lambda: pids.append(loop.run_until_complete(start())),
        )
        thread.start()
        thread.join()
        (pid,) = pids
        loop.run_until_complete(use())
    finally:
        loop.close()


@both_start_methods
def test_pools_in_threads_that_end(start_method: str) -> None:
    answers: list[list[int]] = []

    async def use() -> None:
        async with watched_pool(2, start_method=start_method) as pool:
            given = [pool.run(tasks.echo, n) for n in range(20)]
            answers.append(await asyncio.gather(*given))

    threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [list(range(20))] * 3


# Two pools side by side


@both_start_methods
@on_one_loop
async def test_two_pools_side_by_side(start_method: str) -> None:
    async with (
        watched_pool(1, start_method=start_method) as first,
        watched_pool(1, start_method=start_method, preload=["wave"]) as second,
    ):
        for pool, other in ((first, second), (second, first)):
            with fifo() as (path, release):
                bystander = other.submit(tasks.read_line, path)
                await has_begun(bystander)
                with pytest.raises(WorkerDied):
                    await pool.run(tasks.die)
                assert await pool.run(tasks.echo, 1) == 1
                os.write(release, b"not harmed\n")
                assert await bystander == "not harmed\n"
            assert other.statistics().workers_died == (other is first)
        await first.aclose()
        assert await second.run(tasks.echo, 1) == 1


# The zygote


@on_one_loop
async def test_the_zygote_is_killed() -> None:
    async with watched_pool(2) as pool:
        deaths = Deaths(pool)
        with fifo() as (path, release):
            running = pool.submit(tasks.read_line, path)
            worker = await has_begun(running)
            zygote = await kill_zygote_of(worker)
            assert await pool.run(tasks.echo, 1) == 1
            idle = next(each for each in pool.workers if each.pid != worker)
            os.kill(idle.pid, signal.SIGKILL)
            death = await deaths.next()
            # Who would have reaped it is dead: nobody knows unless the kernel tells.
            assert death.signal in (signal.SIGKILL, None)
            assert death.exit_code is None
            replacement = await pool.run(tasks.pid)
            assert parent_of(parent_of(replacement)) == os.getpid()
            assert parent_of(replacement) != zygote
            os.write(release, b"not harmed\n")
            assert await running == "not harmed\n"
        assert pool.statistics().failed == 0


@on_one_loop
async def test_the_zygote_is_killed_again_and_again() -> None:
    async with watched_pool(2) as pool:
        deaths = Deaths(pool)
        for _ in range(4):
            youngest = pool.workers[-1].pid  # the others may have lost their zygote before
            await kill_zygote_of(youngest)
            os.kill(youngest, signal.SIGKILL)
            await deaths.next()
            async with asyncio.timeout(5):
                await pool.resize(2)
        assert await pool.run(tasks.echo, 1) == 1


@on_one_loop
async def test_a_task_dies_when_the_zygote_is_dead() -> None:
    async with watched_pool() as pool:
        task = pool.submit(tasks.block)
        worker = await has_begun(task)
        await kill_zygote_of(worker)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            async with asyncio.timeout(5):
                await task
        assert caught.value.signal in (signal.SIGKILL, None)
        assert await pool.run(tasks.echo, 1) == 1


@on_one_loop
async def test_the_zygote_dies_while_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    began = monotonic()
    with pytest.raises(PoolError, match=r"zygote died.*killed by SIGSEGV|SIGSEGV|-11"):
        async with Pool(1, preload=["deadly"], start_method="zygote"):
            pass
    assert monotonic() - began < 5


async def kill_zygote_of(worker: int) -> int:
    """Kill the parent of a worker; returns its process id."""
    zygote = parent_of(worker)
    assert parent_of(zygote) == os.getpid()
    with watched(zygote) as process:
        os.kill(zygote, signal.SIGKILL)
        await process.ended(2)
    return zygote
