"""`PoolTask` as a future: what is done with those of asyncio and concurrent.futures."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator

import pytest

from asyncipc import EncodeError, PoolTask
from tests.pool import support
from tests.pool.support import LIMIT, Reports, in_workers, open_pool


@in_workers
async def test_waiting_for_the_first(reports: Reports) -> None:
    async with open_pool(2) as pool:
        slow = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        fast = pool.submit(support.double, 1)
        done, pending = await asyncio.wait(
            [slow, fast],  # type: ignore[type-var]
            timeout=LIMIT,
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert (done, pending) == ({fast}, {slow})
        reports.answer(report)
        done, pending = await asyncio.wait([slow, fast], timeout=LIMIT)  # type: ignore[type-var]
        assert (done, pending) == ({fast, slow}, set())
        assert (fast.result(), slow.result()) == (2, "go")


async def test_waiting_for_the_first_that_fails() -> None:
    async with open_pool() as pool:
        bad: PoolTask[None] = pool.submit(support.fail, LookupError("none"))
        good = pool.submit(support.double, 1)
        done, _ = await asyncio.wait(
            [bad, good],  # type: ignore[type-var]
            timeout=LIMIT,
            return_when=asyncio.FIRST_EXCEPTION,
        )
        assert bad in done


async def test_what_takes_awaitables_takes_tasks() -> None:
    async with open_pool(2) as pool:
        given = [pool.submit(support.double, number) for number in range(4)]
        assert await asyncio.gather(*given) == [0, 2, 4, 6]
        given = [pool.submit(support.double, number) for number in range(4)]
        found = [await result for result in asyncio.as_completed(given, timeout=LIMIT)]
        assert sorted(found) == [0, 2, 4, 6]
        assert await asyncio.wait_for(pool.submit(support.double, 1), LIMIT) == 2
        assert await asyncio.shield(pool.submit(support.double, 1)) == 2


@in_workers
async def test_results_and_errors_without_waiting(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.ask, reports.address)
        for ask in (task.result, task.exception):
            with pytest.raises(asyncio.InvalidStateError, match=r"a task that is over.*await it"):
                ask()
        assert not task.done()
        assert task.get_loop() is asyncio.get_running_loop()
        reports.answer(await reports.next("started"))
        assert await task == "go"
        assert (task.result(), task.exception()) == ("go", None)

        failing: PoolTask[None] = pool.submit(support.fail, LookupError("none"))
        await asyncio.wait([failing], timeout=LIMIT)  # type: ignore[type-var]
        assert isinstance(failing.exception(), LookupError)
        with pytest.raises(LookupError, match="none"):
            failing.result()

        cancelled = pool.submit(support.double, 1)
        assert cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            cancelled.result()
        with pytest.raises(asyncio.CancelledError):
            cancelled.exception()


async def test_callbacks_can_be_taken_off_and_have_a_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    context.run(variable.set, "as given")
    seen: list[object] = []

    def see(task: PoolTask[int]) -> None:
        seen.append((task, variable.get("unset")))

    async with open_pool() as pool:
        task = pool.submit(support.double, 1)
        task.add_done_callback(seen.append)
        task.add_done_callback(seen.append)
        task.add_done_callback(see, context=context)
        assert task.remove_done_callback(seen.append) == 2
        assert task.remove_done_callback(seen.append) == 0
        await task
        late = asyncio.Event()
        task.add_done_callback(lambda _: late.set())
        async with asyncio.timeout(LIMIT):
            await late.wait()
    assert seen == [(task, "as given")]


def give_items() -> Iterator[int]:
    yield 1


async def give_items_async() -> AsyncIterator[int]:
    yield 1


@in_workers
async def test_a_generator_that_is_run_is_told_of_streams() -> None:
    async with open_pool() as pool:
        for function in (give_items, give_items_async):
            with pytest.raises(EncodeError, match=r"generator.*to be had with pool\.stream\(\)"):
                await pool.run(function)
