"""Plain functions run outside of the worker's event loop, and can run one of their own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvloop

from asyncipc import current_call, progress
from tests.pool.support import LIMIT, Reports, Watch, in_workers, open_pool, tell

ON_ASYNCIO = "tests.pool.asyncio_module"

both_loops = pytest.mark.parametrize("preload", [(), (ON_ASYNCIO,)], ids=["uvloop", "asyncio"])


def loop_of_worker(preload: tuple[str, ...]) -> str:
    return "_UnixSelectorEventLoop" if preload else "Loop"


async def kind_of_loop() -> str:
    task = asyncio.current_task()
    assert task is not None
    return type(task.get_loop()).__name__


def looks_for_a_loop(*_: object) -> str:
    try:
        return repr(asyncio.get_running_loop())
    except RuntimeError as error:
        return str(error)


def runs_a_loop(run: str, value: int) -> int:
    return {"asyncio": asyncio.run, "uvloop": uvloop.run}[run](_plus_one(value))


async def _plus_one(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


def runs_loops(*values: int) -> Iterator[int]:
    for value in values:
        yield runs_a_loop("asyncio", value)


def runs_a_loop_at_once(*values: int) -> list[int]:
    return [runs_a_loop("asyncio", value) for value in values]


class RunsLoops:
    """An iterator and its making, both of which run loops; and a pickle that does."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __iter__(self) -> Iterator[int]:
        return runs_loops(runs_a_loop("asyncio", self.value))

    def __reduce__(self) -> tuple[Any, ...]:
        return RunsLoops, (runs_a_loop("asyncio", self.value),)


async def closes_well(address: bytes) -> None:
    tell(address, "closed")


def runs_a_loop_when_closed(address: bytes) -> Iterator[int]:
    try:
        yield 1
        yield 2
    finally:
        asyncio.run(closes_well(address))


@both_loops
@in_workers
async def test_a_plain_function_runs_a_loop(preload: tuple[str, ...]) -> None:
    async with open_pool(preload=preload) as pool:
        for run in ("asyncio", "uvloop", "asyncio"):
            assert await pool.run(runs_a_loop, run, 1) == 2
            assert await pool.run(kind_of_loop) == loop_of_worker(preload)
        assert await pool.run(looks_for_a_loop) == "no running event loop"


@both_loops
@in_workers
async def test_map_and_streams_run_loops(preload: tuple[str, ...]) -> None:
    async with open_pool(preload=preload) as pool:
        found = [result async for result in pool.map(looks_for_a_loop, range(9), chunk_size=3)]
        assert found == ["no running event loop"] * 9
        for function in (runs_loops, runs_a_loop_at_once):
            assert [item async for item in pool.stream(function, 1, 2)] == [2, 3]
        assert [item async for item in pool.stream(RunsLoops, 1)] == [3]
        loops = [item async for item in pool.stream(kind_of_loop_async)]
        assert loops == [loop_of_worker(preload)] * 2


async def kind_of_loop_async() -> AsyncIterator[str]:
    for _ in range(2):
        yield await kind_of_loop()


@in_workers
async def test_a_generator_runs_a_loop_when_it_is_closed(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        async for _ in pool.stream(runs_a_loop_when_closed, reports.address):
            break
        await reports.next("closed")


@in_workers
async def test_arguments_and_results_may_run_loops_to_be_pickled() -> None:
    async with open_pool() as pool:
        assert (await pool.run(RunsLoops, 1)).value == 2


# -- what a call can do from a loop of its own ---------------------------------------------------


def reports_and_looks(address: bytes, depth: int) -> bool:
    async def chat() -> bool:
        progress(1, 2)
        await current_call().progress(2, 2)
        tell(address, "started")
        while not current_call().cancelled:
            pass
        tell(address, looks_for_a_loop())
        return current_call().cancelled

    if depth:
        return asyncio.run(chat())
    progress(1, 2)
    progress(2, 2)
    tell(address, "started")
    while not current_call().cancelled:
        pass
    tell(address, looks_for_a_loop())
    return True


@both_loops
@pytest.mark.parametrize("depth", [0, 1])
@in_workers
async def test_progress_and_cancelling(
    depth: int, preload: tuple[str, ...], reports: Reports
) -> None:
    seen: list[float] = []
    async with open_pool(grace=LIMIT, preload=preload) as pool:
        task = pool.submit(
            reports_and_looks, reports.address, depth, on_progress=lambda one: seen.append(one.done)
        )
        await reports.next("started")
        task.cancel()
        found = await reports.next()
        # The one it had, which is none or its own.
        assert (found.text == "no running event loop") == (depth == 0)
        assert await pool.run(kind_of_loop) == loop_of_worker(preload)
        assert pool.statistics().workers_died == 0
    assert seen == [1, 2]


@both_loops
@pytest.mark.parametrize("run", ["asyncio", "uvloop"])
@in_workers
async def test_sigterm_is_seen_after_a_loop_was_run(run: str, preload: tuple[str, ...]) -> None:
    watch = Watch()
    async with open_pool(preload=preload, **watch.options) as pool:
        worker = await watch.next_started()
        assert await pool.run(runs_a_loop, run, 1) == 2
        os.kill(worker.pid, signal.SIGTERM)
        died, _ = await watch.next_died()
        assert died.pid == worker.pid


async def sleeps_forever(address: bytes) -> None:
    try:
        tell(address, "started")
        await asyncio.Event().wait()
    finally:
        tell(address, "cleaned up")


def runs_for_ever(address: bytes) -> None:
    asyncio.run(sleeps_forever(address))


@both_loops
@in_workers
async def test_a_loop_that_does_not_end_is_ended_with_its_worker(
    preload: tuple[str, ...], reports: Reports
) -> None:
    async with open_pool(preload=preload) as pool:
        task = pool.submit(runs_for_ever, reports.address)
        await reports.next("started")
        task.cancel()
        await reports.next("cleaned up")
        assert await pool.run(runs_a_loop, "asyncio", 1) == 2


# -- callables that are async and do not go by their name ------------------------------------------


class Counted:
    """An async callable that counts how often it was unpickled in this process."""

    unpickled = 0

    async def __call__(self) -> int:
        return Counted.unpickled

    def __setstate__(self, _: object) -> None:
        Counted.unpickled += 1

    def __getstate__(self) -> str:
        return "something"


@in_workers
async def test_a_callable_is_unpickled_once_for_a_call() -> None:
    async with open_pool() as pool:
        assert [await pool.run(Counted()) for _ in range(3)] == [1, 2, 3]
