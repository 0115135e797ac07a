"""Rows 21 and 25 of `docs/faults.md`: sessions that are closed anywhere, and leave nothing.

The rows are those of the list that this library was built against; each was a bug in one that
people trust. More of it is in ``tests/session/test_closing.py``.
"""

import asyncio
import contextlib
import gc
import os
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from asyncipc import Peer, RemoteError, Session
from tests.child import CHILD
from tests.session.support import TRANSPORTS, Hold, failure, holding, joined, settled, until

# Row 21: session.aclose() from another task, twice, from within a handler, while cancelled


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_21_from_another_task(over: str) -> None:
    peer, hold = holding()
    async with joined(Peer(), peer, over) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        # One task opened it, a second waits for an answer, these close it, several at a time.
        async with asyncio.timeout(2):
            await asyncio.gather(*(asyncio.create_task(session.aclose()) for _ in range(3)))
        await failure(task)
        assert session.closed
        await other.wait_closed()


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_21_twice(over: str) -> None:
    async with joined(Peer(), Peer(), over) as (session, other):
        async with asyncio.timeout(2):
            await session.aclose()
            await session.aclose()
            await other.aclose()
            await other.aclose()


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_21_from_within_a_handler(over: str) -> None:
    first, second = Peer(), Peer()
    async with joined(first, second, over) as (session, other):

        @second.on_request
        async def stop() -> str:
            await other.aclose()
            return "stopped"

        @first.on_request
        async def relay() -> Any:
            return await session.request("stop")

        async with asyncio.timeout(2):
            # From a handler that serves a call made by a handler of the same session.
            error = await failure(other.request("relay"))
            assert not isinstance(error, TimeoutError)
            await asyncio.gather(session.wait_closed(), other.wait_closed())


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_21_while_cancelled(over: str) -> None:
    async with joined(Peer(), Peer(), over) as (session, other):

        async def work() -> None:
            async with session:
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # also while it closes
        async with asyncio.timeout(2):
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            await asyncio.gather(session.wait_closed(), other.wait_closed())


async def test_row_21_no_cancel_scope_is_held_across_an_await() -> None:
    """Opened inside of one scope and task, closed inside of another, in the wrong order."""
    first, second = Peer(), Peer()
    second.on_request("echo")(lambda value: value)
    sessions: list[Session] = []
    opened, closed = asyncio.Event(), asyncio.Event()

    async def keep_open() -> None:
        with anyio.CancelScope():
            async with joined(first, second) as pair:
                sessions[:] = pair
                opened.set()
                await closed.wait()

    async def close() -> None:
        await opened.wait()
        with anyio.move_on_after(5) as scope:
            assert await sessions[0].request("echo", 1) == 1
            await sessions[0].aclose()
        assert not scope.cancelled_caught
        with anyio.CancelScope() as scope:
            scope.cancel()
            await sessions[1].aclose()
        closed.set()

    async with anyio.create_task_group() as group:
        group.start_soon(keep_open)
        group.start_soon(close)


async def test_row_21_in_a_scope_that_is_cancelled_by_the_answer() -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, _):
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                await session.request("hold")

            group.start_soon(ask)
            await hold.calls.reaches(1)
            group.cancel_scope.cancel()
        await hold.cancelled.reaches(1)
        async with anyio.create_task_group() as group:
            group.start_soon(session.aclose)
            group.start_soon(session.aclose)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_row_21_with_a_child_process() -> None:
    async with Peer().spawn(CHILD) as session:
        waiting = asyncio.create_task(session.request("never"))
        await session.ping()
        closing = [asyncio.create_task(session.aclose()) for _ in range(3)]
        await asyncio.sleep(0)
        closing[0].cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*closing, return_exceptions=True)
            await failure(waiting)
        assert session.process is not None
        assert session.process.returncode is not None


# Row 25: sessions and calls leave nothing (10,000 of each are in the benchmarks)

# asyncio's own loop keeps cancelled timers for a while, with all they refer to.
without_timers_that_linger = pytest.mark.asyncio(loop_factories=["uvloop"])


@contextlib.asynccontextmanager
async def nothing_more_than_before(*sessions: Session) -> AsyncIterator[None]:
    """No descriptor, no task, and hardly an object."""
    gc.collect()
    descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    objects = Counter(map(type, gc.get_objects()))
    yield
    await settled(*sessions)
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(asyncio.all_tasks()) == tasks
    more = Counter(map(type, gc.get_objects())) - objects
    assert more.total() < 100, more.most_common(10)


@without_timers_that_linger
async def test_row_25_calls_that_end_in_every_way() -> None:
    peer, hold = Peer(), Hold()
    peer.on_request("hold")(hold)
    peer.on_request("echo")(lambda value: value)
    peer.on_notification("note")(lambda: None)

    @peer.on_request(thread=True)
    def in_a_thread(value: Any) -> Any:
        return value

    @peer.on_request
    def fails() -> None:
        raise ValueError

    async with joined(Peer(), peer) as (session, other):

        async def calls(count: int) -> None:
            for number in range(count):
                large = bytes(50_000)
                assert await session.request("echo", large, on_progress=lambda _: None) == large
                assert await session.request("in_a_thread", number) == number
                assert isinstance(await failure(session.request("fails")), RemoteError)
                await session.notify("note")
                await failure(session.request("hold", timeout=0))
                tasks = [
                    asyncio.create_task(session.request(method, value))
                    for method in ("hold", "echo")
                    for value in (number, bytes(200_000))
                ]
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: session.statistics().pending == 0, session)
            for journal in (hold.calls, hold.ended, hold.cancelled):
                journal.clear()

        await calls(20)
        async with nothing_more_than_before(session, other):
            await calls(100)


@without_timers_that_linger
@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_25_sessions_that_end_in_every_way(over: str) -> None:
    peer, hold = holding()
    ended: list[weakref.ref[Session]] = []

    async def live_and_die(how: int) -> None:
        async with joined(Peer(), peer, over) as (session, other):
            tasks = [
                asyncio.create_task(session.request("hold", bytes(size))) for size in (1, 300_000)
            ]
            tasks.append(asyncio.create_task(session.ping()))
            await asyncio.sleep(0)
            if how % 3 == 0:
                await asyncio.gather(session.aclose(), other.aclose())
            elif how % 3 == 1:
                session._connection.transport.close()
            else:
                other._connection.transport.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            ended.extend((weakref.ref(session), weakref.ref(other)))

    def forget() -> None:
        ended.clear()
        for journal in (hold.calls, hold.ended, hold.cancelled):
            journal.clear()

    for how in range(6):
        await live_and_die(how)
    forget()
    async with nothing_more_than_before():
        for how in range(60):
            await live_and_die(how)
        await until(lambda: hold.running == 0)
        await asyncio.sleep(0)
        for journal in (hold.calls, hold.ended, hold.cancelled):
            journal.clear()
        gc.collect()
        assert [reference() for reference in ended] == [None] * 120
        forget()
