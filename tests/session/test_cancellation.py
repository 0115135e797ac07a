"""Cancellation: a caller that gives up stops the work on the other side, wherever it stands."""

import asyncio
import threading
from typing import Any

import pytest

from asyncipc import Call, Limits, Peer, RequestCancelled, RequestTimeout, Session
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Hold,
    Journal,
    RawPeer,
    failure,
    holding,
    joined,
    settled,
    talking,
    until,
)

REQUEST, REPLY, FAULT, NOTIFY, CANCEL, GOODBYE = 2, 3, 4, 5, 6, 12
CANCELLED = 7


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and see that this is how it ends."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- running handlers --------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_timeout_cancels_the_handler(over: str) -> None:
    peer, hold = holding()
    async with talking(peer, over) as session:
        with pytest.raises(RequestTimeout):
            await session.request("hold", timeout=0.02)
        [call] = await hold.cancelled.reaches(1)
        assert call.cancelled
        await until(lambda: session.statistics().pending == 0, session)


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_cancelled_caller_cancels_the_handler(over: str) -> None:
    peer, hold = holding()
    async with talking(peer, over) as session:
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        await cancelled(task)
        [call] = await hold.cancelled.reaches(1)
        assert call.cancelled
        await until(lambda: session.statistics().pending == 0, session)
        statistics = session.statistics()
        assert statistics.cancels_sent == 1
        assert statistics.timeouts == statistics.late_replies == 0


async def test_a_timeout_around_the_request_does_the_same() -> None:
    peer, hold = holding()
    async with talking(peer) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                await session.request("hold")
        assert not isinstance(caught.value, RequestTimeout)
        await hold.cancelled.reaches(1)


async def test_only_the_one_call_is_cancelled() -> None:
    peer, hold = holding()
    async with talking(peer) as session:
        tasks = [asyncio.create_task(session.request("hold", i)) for i in range(10)]
        await hold.calls.reaches(10)
        await cancelled(tasks[5])
        assert len(await hold.cancelled.reaches(1)) == 1
        hold.release()
        others = tasks[:5] + tasks[6:]
        assert await asyncio.gather(*others) == ["done"] * 9
        assert len(hold.cancelled) == 1


async def test_a_handler_may_clean_up_before_it_ends() -> None:
    peer = Peer()
    started, cleaning, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @peer.on_request
    async def careful() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await finish.wait()

    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("careful"))
        await started.wait()
        await cancelled(task)  # the caller does not wait for the cleaning
        await cleaning.wait()
        await settled(session)
        assert session.statistics().pending == 1  # but its slot stays taken
        assert other.statistics().running == 1
        finish.set()
        await until(lambda: session.statistics().pending == 0, session)


async def test_a_handler_that_goes_on_regardless() -> None:
    peer = Peer()
    started, stubborn = asyncio.Event(), asyncio.Event()

    @peer.on_request
    async def deaf() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stubborn.set()
        return "done all the same"

    async with talking(peer) as session:
        task = asyncio.create_task(session.request("deaf"))
        await started.wait()
        await cancelled(task)
        await stubborn.wait()
        await until(lambda: session.statistics().pending == 0, session)
        assert session.statistics().late_replies == 1


async def test_a_timed_out_call_is_cancelled_once() -> None:
    async def ignore(_: Any) -> None: ...

    for on_progress in (None, lambda _: None, ignore):
        peer, hold = holding()
        async with talking(peer, "memory") as session:
            with pytest.raises(RequestTimeout):
                await session.request("hold", timeout=0.01, on_progress=on_progress)
            await hold.cancelled.reaches(1)
            assert session.statistics().cancels_sent == 1
            assert session.statistics().timeouts == 1


async def test_timeout_and_cancel_in_the_same_turn() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any", timeout=1000))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        # The deadline passes, and before the caller gets to see it, it is cancelled.
        session._connection.exchange.calls._expire(wire_id + 1, "any", 1000)
        await cancelled(task)
        await raw.settle(session)
        assert session.statistics().cancels_sent == 1


# -- handlers that have not started, or cannot be stopped --------------------------------------


async def test_a_request_that_is_cancelled_before_its_task_starts() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None], [CANCEL, 2], [REQUEST, 4, "hold", None, None])
        assert (await raw.receive_kind(FAULT))[:3] == [FAULT, 3, CANCELLED]
        await hold.calls.reaches(1)
        hold.release()
        assert await raw.receive_kind(REPLY) == [REPLY, 5, "done"]
        # Eager tasks have begun by then; others never do.
        assert len(hold.calls) == 1 + len(hold.cancelled)
        assert session.statistics().running == 0


async def test_what_is_cancelled_twice_or_does_not_exist() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([CANCEL, 2], [CANCEL, 1000], [REQUEST, 2, "hold", None, None])
        await hold.calls.reaches(1)
        raw.send([CANCEL, 2], [CANCEL, 2])
        assert (await raw.receive_kind(FAULT))[:3] == [FAULT, 3, CANCELLED]
        raw.send([CANCEL, 2], [REQUEST, 4, "nothing", None, None])
        assert (await raw.receive())[:3] == [FAULT, 5, 2]


async def test_a_thread_sees_that_it_is_cancelled() -> None:
    peer = Peer()
    started, go_on = threading.Event(), threading.Event()
    ended = Journal()
    loop = asyncio.get_running_loop()

    @peer.on_request(thread=True)
    def work(call: Call) -> str:
        started.set()
        go_on.wait(10)
        loop.call_soon_threadsafe(ended.append, call.cancelled)
        return "too late"

    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("work"))
        await asyncio.to_thread(started.wait, 10)
        await cancelled(task)
        await settled(session)
        assert other.statistics().running == 1  # a thread cannot be interrupted
        assert session.statistics().pending == 1
        go_on.set()
        assert await ended.reaches(1) == [True]
        await until(lambda: session.statistics().pending == 0, session)


async def test_a_thread_that_waits_for_its_turn_never_starts() -> None:
    peer = Peer(limits=Limits(max_requests=1))  # which is also the number of its threads
    busy, go_on = threading.Event(), threading.Event()
    ran = []

    @peer.on_notification(thread=True)
    def occupy() -> None:
        busy.set()
        go_on.wait(10)

    @peer.on_request(thread=True)
    def work() -> None:
        ran.append("work")

    async with joined(Peer(), peer) as (session, other):
        await session.notify("occupy")
        task = asyncio.create_task(session.request("work"))
        await until(lambda: other.statistics().running == 2 and busy.is_set(), session)
        await cancelled(task)
        await until(lambda: session.statistics().pending == 0, session)
        assert other.statistics().running == 1
        go_on.set()
        await settled(session)
        assert not ran


async def test_a_cancelled_thread_is_not_followed_by_another_handler() -> None:
    peer = Peer()
    started, go_on = threading.Event(), threading.Event()
    hold = Hold()
    peer.on_request("work")(hold)

    @peer.on_request("work", thread=True)
    def passes_on() -> Any:
        started.set()
        go_on.wait(10)
        return NotImplemented

    async with talking(peer) as session:
        task = asyncio.create_task(session.request("work"))
        await asyncio.to_thread(started.wait, 10)
        await cancelled(task)
        await settled(session)
        go_on.set()
        await until(lambda: session.statistics().pending == 0, session)
        assert not hold.calls


# -- requests and replies that are still on their way ------------------------------------------


async def test_a_request_that_waits_for_a_slot_is_never_sent() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with talking(peer) as session:
        first = asyncio.create_task(session.request("hold", 1))
        await hold.calls.reaches(1)
        second = asyncio.create_task(session.request("hold", 2))
        third = asyncio.create_task(session.request("hold", 3))
        await settled(session)
        assert session.statistics().queued == 2
        await cancelled(second)
        assert session.statistics().queued == 1
        hold.release()
        assert await first == await third == "done"
        assert len(hold.calls) == 2
        assert session.statistics().cancels_sent == 0
        assert session.statistics().requests_sent == 2


async def test_a_timeout_while_waiting_for_a_slot() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with talking(peer) as session:
        first = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        with pytest.raises(RequestTimeout, match=r"within 0.01 s, all of it spent waiting"):
            await session.request("hold", timeout=0.01)
        assert session.statistics().queued == 0
        assert session.statistics().timeouts == 1
        hold.release()
        assert await first == "done"
        assert len(hold.calls) == 1


async def test_one_let_in_and_cancelled_in_the_same_turn_passes_its_slot_on() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with talking(peer, "memory") as session:
        first = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        second = asyncio.create_task(session.request("hold"))
        third = asyncio.create_task(session.request("hold"))
        await settled(session)
        first.add_done_callback(lambda _: second.cancel())
        hold.release()
        assert await first == await third == "done"
        await failure(second)
        assert session.statistics().queued == session.statistics().pending == 0


@pytest.mark.parametrize("over", ["socketpair", "pipes"])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_large_request_is_taken_back_in_the_middle(over: str, how: str) -> None:
    peer = Peer()
    served = []

    @peer.on_request
    def take(data: bytes) -> int:
        served.append(len(data))
        return len(data)

    async with joined(Peer(), peer, over) as (session, other):
        large = bytes(64 * MIB)
        timeout = 0.002 if how == "timeout" else None
        task = asyncio.create_task(session.request("take", large, timeout=timeout))
        await until(lambda: task.done() or received(other) > MIB, session)
        if how == "cancel":
            task.cancel()
        error = await failure(task)
        assert isinstance(error, asyncio.CancelledError if how == "cancel" else RequestTimeout)
        assert await session.request("take", b"small") == 5
        assert served == [5]
        assert received(other) < 64 * MIB
        assert session.statistics().outbox_size == session.statistics().pending == 0
        assert session.statistics().cancels_sent == 0  # it never arrived
        assert await session.request("take", large) == 64 * MIB


def received(session: Session) -> int:
    counters = session.statistics()
    return counters.bytes_received + counters.shared_bytes_received


async def test_a_small_request_behind_a_large_one_is_taken_back() -> None:
    peer = Peer()
    served = []

    @peer.on_request
    def take(data: bytes) -> None:
        served.append(len(data))

    @peer.on_notification("take")
    def take_notification(data: bytes) -> None:
        served.append(len(data))

    async with joined(Peer(), peer, "pipes") as (session, _other):
        large = asyncio.create_task(session.request("take", bytes(900 * KIB)))
        await asyncio.sleep(0)
        small = asyncio.create_task(session.request("take", b"12345"))
        await asyncio.sleep(0)
        assert session.statistics().requests_sent == 2  # it did not have to wait for room
        await cancelled(small)
        await large
        await settled(session)
        assert served == [900 * KIB]


async def test_a_lone_request_behind_a_large_notification_is_taken_back() -> None:
    peer = Peer()
    served = []

    @peer.on_request
    def take(data: bytes) -> None:
        served.append(len(data))

    peer.on_notification("take")(take)

    async with joined(Peer(), peer, "pipes") as (session, _other):
        await session.notify("take", bytes(900 * KIB))
        small = asyncio.create_task(session.request("take", b"12345"))
        await asyncio.sleep(0)
        assert session.statistics().requests_sent == 1
        await cancelled(small)
        await until(lambda: served, session)
        await settled(session)
        assert served == [900 * KIB]


async def test_a_large_reply_is_taken_back() -> None:
    peer = Peer()
    made = Journal()

    @peer.on_request
    def make() -> bytes:
        made.append("made")
        return bytes(16 * MIB)

    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("make"))
        await made.reaches(1)
        await cancelled(task)
        await until(lambda: session.statistics().pending == 0, session)
        assert other.statistics().bytes_sent < 16 * MIB
        assert other.statistics().outbox_size == 0
        assert len(await session.request("make")) == 16 * MIB


# -- cancelled on the other side ---------------------------------------------------------------


async def test_a_handler_cancelled_over_there_is_no_cancelled_error_here() -> None:
    peer = Peer()
    tasks = Journal()

    @peer.on_request
    async def work() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()

    @peer.on_request
    async def gives_up() -> None:
        raise asyncio.CancelledError

    @peer.on_request
    def gives_up_at_once() -> None:
        raise asyncio.CancelledError

    async with talking(peer, "memory") as session:
        request = asyncio.create_task(session.request("work"))
        await tasks.reaches(1)
        tasks[0].cancel()
        with pytest.raises(RequestCancelled, match="cancelled where it was served"):
            await request
        for method in ("gives_up", "gives_up_at_once"):
            with pytest.raises(RequestCancelled):
                await session.request(method)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()


async def test_a_cancel_goes_through_nested_calls() -> None:
    first, second, hold = Peer(), Peer(), Hold()
    first.on_request("hold")(hold)
    async with joined(first, second) as (session, back):

        @second.on_request
        async def relay() -> Any:
            return await back.request("hold")

        task = asyncio.create_task(session.request("relay"))
        await hold.calls.reaches(1)
        await cancelled(task)
        await hold.cancelled.reaches(1)
        await until(
            lambda: session.statistics().pending == back.statistics().pending == 0, session, back
        )
