"""The initializer, plain and async, and callbacks that tell of workers, where they are async."""

import asyncio
import os
import signal
from typing import Any, NoReturn

import pytest

from asyncipc import Pool, PoolError, Worker
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, in_workers, open_pool, tell

_made: dict[str, Any] = {}


async def make(address: bytes) -> None:
    """Make something that belongs to the loop."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.call_soon(ready.set_result, None)
    await ready
    _made["loop"] = loop
    _made["ticker"] = asyncio.create_task(_tick(address))


async def _tick(address: bytes) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        tell(address, "over")


async def runs_in_the_same_loop() -> bool:
    return _made["loop"] is asyncio.get_running_loop() and not _made["ticker"].done()


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_an_async_initializer_is_awaited(start_method: str, reports: Reports) -> None:
    async with open_pool(
        start_method=start_method, initializer=make, initargs=(reports.address,)
    ) as pool:
        assert await pool.run(runs_in_the_same_loop)
    await reports.next("over")


async def _two() -> int:
    return 2


def run_a_loop() -> None:
    _made["two"] = asyncio.run(_two())


def made_two() -> bool:
    return _made == {"two": 2}


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_plain_initializer_may_run_a_loop(start_method: str) -> None:
    async with open_pool(start_method=start_method, initializer=run_a_loop) as pool:
        assert await pool.run(made_two)


class OddError(BaseException):
    """One that is no Exception."""


FAILURES = {
    "Exception": LookupError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "OddError": OddError,
}


def fail(name: str) -> NoReturn:
    error: BaseException = FAILURES[name]("no database")
    raise error


async def fail_async(name: str) -> NoReturn:
    await asyncio.sleep(0)
    fail(name)


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("initializer", [fail, fail_async])
@in_workers
async def test_an_initializer_that_fails_is_tried_once_and_told(
    initializer: Any, name: str
) -> None:
    lines: list[str] = []
    pool = Pool(1, initializer=initializer, initargs=(name,), on_stderr=lines.append)
    shown = "RequestCancelled" if name == "CancelledError" else "no database"
    with pytest.raises(PoolError, match=f"could not get ready: .*{shown}"):
        await pool.start()
    assert pool.statistics().workers_started == 0
    assert lines == []


async def wait_in_vain(address: bytes) -> None:
    try:
        tell(address, "started")
        await asyncio.Event().wait()
    finally:
        tell(address, "given up")


@in_workers
async def test_a_worker_that_gets_ready_ends_at_sigterm(reports: Reports) -> None:
    pool = Pool(1, initializer=wait_in_vain, initargs=(reports.address,), spawn_timeout=LIMIT)
    opening = asyncio.create_task(pool.start())
    first = await reports.next("started")
    os.kill(first.pid, signal.SIGTERM)
    await reports.next("given up")
    await reports.next("started")  # another is tried
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


# -- events ----------------------------------------------------------------------------------------


async def test_async_callbacks_run() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def on_started(worker: Worker) -> None:
        await asyncio.sleep(0)
        seen.put_nowait(f"{worker.number} started")

    async def on_died(worker: Worker, _: Exception) -> None:
        await asyncio.sleep(0)
        seen.put_nowait(f"{worker.number} died")

    async with open_pool(on_worker_started=on_started, on_worker_died=on_died) as pool:
        async with asyncio.timeout(LIMIT):
            assert await seen.get() == "1 started"
            os.kill(pool.workers[0].pid, signal.SIGKILL)
            assert sorted([await seen.get(), await seen.get()]) == ["1 died", "2 started"]


async def test_what_async_callbacks_raise_is_reported() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))

    async def fail_soon(_: Worker) -> None:
        await asyncio.sleep(0)
        raise LookupError("no such worker")

    async with open_pool(on_worker_started=fail_soon) as pool:
        assert await pool.run(support.add, 1, 2) == 3
    assert [str(context["exception"]) for context in reported] == ["no such worker"]


async def test_on_stderr_must_be_plain() -> None:
    async def on_stderr(_: str) -> None: ...

    with pytest.raises(TypeError, match="on_stderr is a plain function"):
        Pool(1, on_stderr=on_stderr)
