"""Progress: in order, before the result, from wherever the handler runs, never without bound."""

import asyncio
import contextlib
import contextvars
import enum
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asyncipc import (
    Call,
    EncodeError,
    FrameTooLarge,
    Limits,
    Peer,
    Progress,
    RemoteError,
    RequestTimeout,
    SessionClosed,
    progress,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Journal,
    RawPeer,
    failure,
    joined,
    loop_errors,
    settled,
    talking,
    until,
)

REQUEST, REPLY, FAULT, CANCEL, PROGRESS = 2, 3, 4, 6, 64


def counting() -> Peer:  # noqa: C901 - many small handlers
    """A peer whose methods count to a number, reporting on it in all the ways there are."""
    peer = Peer()

    @peer.on_request
    async def in_a_task(total: int, call: Call) -> str:
        for done in range(total):
            await call.progress(done, total, f"step {done}")
        return "done"

    @peer.on_request
    def inline(total: int, call: Call) -> str:
        for done in range(total):
            call.report(done, total, f"step {done}")
        return "done"

    @peer.on_request(thread=True)
    def in_a_thread(total: int) -> str:
        for done in range(total):
            progress(done, total, f"step {done}")
        return "done"

    @peer.on_request
    async def in_a_thread_of_ones_own(total: int, call: Call) -> str:
        await asyncio.to_thread(inline, total, call)
        return "done"

    @peer.on_request
    async def in_a_child_task(total: int) -> str:
        async def count() -> None:
            for done in range(total):
                progress(done, total, f"step {done}")
                await asyncio.sleep(0)

        await asyncio.create_task(count())
        return "done"

    return peer


WAYS = ("in_a_task", "inline", "in_a_thread", "in_a_thread_of_ones_own", "in_a_child_task")


# -- from the handler to the caller ------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
@pytest.mark.parametrize("way", WAYS)
async def test_in_order_and_before_the_result(way: str, over: str) -> None:
    seen: list[Progress] = []
    async with talking(counting(), over) as session:
        request = session.request(way, 50, on_progress=seen.append)
        assert await request == "done"
        assert seen == [Progress(done, 50, f"step {done}") for done in range(50)]


@pytest.mark.parametrize("way", WAYS)
async def test_an_async_on_progress(way: str) -> None:
    seen: list[Progress] = []

    async def on_progress(update: Progress) -> None:
        await asyncio.sleep(0)
        seen.append(update)

    class Observer:
        async def __call__(self, update: Progress) -> None:
            await on_progress(update)

    async with talking(counting()) as session:
        for observer in (on_progress, Observer()):
            seen.clear()
            assert await session.request(way, 50, on_progress=observer) == "done"
            assert seen == [Progress(done, 50, f"step {done}") for done in range(50)]


@pytest.mark.parametrize("way", WAYS)
async def test_nobody_needs_to_listen(way: str) -> None:
    async with talking(counting()) as session:
        assert await session.request(way, 50) == "done"


async def test_what_an_update_holds() -> None:
    peer = Peer()
    seen: list[Progress] = []

    @peer.on_request
    def work(call: Call) -> None:
        call.report(1)
        call.report(1, 4)
        call.report(0.5, 2, "half a step: ½")
        call.report(1, 0)
        call.report(-1, None, "")

    async with talking(peer, "memory") as session:
        await session.request("work", on_progress=seen.append)
    assert [(each.done, each.total, each.message) for each in seen] == [
        (1, None, None),
        (1, 4, None),
        (0.5, 2, "half a step: ½"),
        (1, 0, None),
        (-1, None, ""),
    ]
    assert [each.fraction for each in seen] == [None, 0.25, 0.25, None, None]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("1",), TypeError, "done must be a number, not '1'"),
        ((None,), TypeError, "done must be a number, not None"),
        ((True,), TypeError, "done must be a number, not True"),
        ((1, "2"), TypeError, "total must be a number or None"),
        ((1, 2, 3), TypeError, "message must be a string or None"),
        ((2**64,), ValueError, "done .* 64 bits"),
        ((1, -(2**70)), ValueError, "total .* 64 bits"),
        ((1, None, "\ud800"), EncodeError, "message"),
    ],
)
@pytest.mark.parametrize("thread", [False, True])
async def test_what_cannot_be_sent_is_the_handlers_error(
    arguments: Any, error: type[Exception], text: str, thread: bool
) -> None:
    peer = Peer()

    @peer.on_request("work", thread=thread)
    def work(call: Call) -> None:
        with pytest.raises(error, match=text):
            call.report(*arguments)

    with loop_errors() as errors:
        async with talking(peer, "memory") as session:
            await session.request("work", on_progress=lambda _: None)
            await settled(session)
    assert not errors


class Step(enum.IntEnum):
    FIRST = 1


class Fraction(float):
    pass


class Text(str):
    __slots__ = ()


async def test_numbers_and_texts_of_other_classes_arrive_as_plain_ones() -> None:
    peer = Peer()
    seen: list[Progress] = []

    @peer.on_request
    def work(call: Call) -> None:
        call.report(Step.FIRST, Fraction(2.5), Text("text"))

    async with talking(peer, "memory") as session:
        await session.request("work", on_progress=seen.append)
    assert seen == [Progress(1, 2.5, "text")]


async def test_a_long_message() -> None:
    peer = Peer(limits=Limits(max_frame=16 * KIB))
    text = "x" * 3 * MIB
    seen: list[Progress] = []

    @peer.on_request
    async def work(call: Call) -> str:
        await call.progress(1, 2, text)
        await call.progress(2, 2)
        return "done"

    async with talking(peer, first=Peer(limits=Limits(max_frame=16 * KIB))) as session:
        assert await session.request("work", on_progress=seen.append) == "done"
        assert seen == [Progress(1, 2, text), Progress(2, 2)]


async def test_a_message_over_the_limit_is_the_handlers_error() -> None:
    peer = Peer()

    @peer.on_request
    async def work(call: Call) -> str:
        with pytest.raises(FrameTooLarge, match="max_message is 65536"):
            await call.progress(1, 2, "x" * 100_000)
        return "done"

    async with talking(peer, first=Peer(limits=Limits(max_message=64 * KIB))) as session:
        assert await session.request("work", on_progress=lambda _: None) == "done"


async def test_on_progress_has_the_context_of_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")
    seen: list[str] = []

    async def on_progress(_: Progress) -> None:
        seen.append(variable.get())

    async with talking(counting()) as session:
        variable.set("the caller's")
        await session.request("inline", 2, on_progress=lambda _: seen.append(variable.get()))
        await session.request("inline", 2, on_progress=on_progress)
    assert seen == ["the caller's"] * 4


# -- after the end -----------------------------------------------------------------------------


async def test_what_comes_after_the_end_is_ignored() -> None:
    peer = Peer()
    calls = Journal()
    seen: list[Progress] = []

    @peer.on_request
    async def work(call: Call) -> str:
        calls.append(call)
        call.report(1)
        return "done"

    with loop_errors() as errors:
        async with talking(peer, "memory") as session:
            assert await session.request("work", on_progress=seen.append) == "done"
            calls[0].report(2)
            await calls[0].progress(3)
            await asyncio.to_thread(calls[0].report, 4)
            await settled(session)
        calls[0].report(5)
        await calls[0].progress(6)
    assert seen == [Progress(1)]
    assert not errors


def test_a_thread_that_outlives_its_loop_is_not_disturbed() -> None:
    calls: list[Call] = []

    async def main() -> None:
        peer = Peer()

        @peer.on_request
        async def work(call: Call) -> None:
            calls.append(call)

        async with talking(peer, "memory") as session:
            await session.request("work")

    asyncio.run(main())
    with ThreadPoolExecutor() as executor:
        executor.submit(calls[0].report, 1).result()


async def test_progress_of_a_notification_goes_nowhere() -> None:
    peer = Peer()
    reported = asyncio.Event()

    @peer.on_notification
    async def work(call: Call) -> None:
        await call.progress(1)
        progress(2)
        reported.set()

    async with talking(peer, "memory") as session:
        await session.notify("work")
        await reported.wait()
        await settled(session)


async def test_late_and_unasked_for_progress_is_dropped() -> None:
    seen: list[Progress] = []
    async with RawPeer.facing(Peer()) as (raw, session):
        raw.send([PROGRESS, 1001, 1], [PROGRESS, 3, 1])
        await raw.settle(session)
        task = asyncio.create_task(session.request("any", on_progress=seen.append))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        answer_id = wire_id + 1
        raw.send([PROGRESS, answer_id, 1, None, None], [PROGRESS, answer_id, 2, 3, "x", "later"])
        raw.send([REPLY, answer_id, "done"], [PROGRESS, answer_id, 3], [REPLY, answer_id, "again"])
        assert await task == "done"
        silent = asyncio.create_task(session.request("any"))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        raw.send([PROGRESS, wire_id + 1, 1], [REPLY, wire_id + 1, "done"])
        assert await silent == "done"
        assert seen == [Progress(1), Progress(2, 3, "x")]
        assert session.statistics().late_replies == 1


# -- an on_progress that fails, or does not come back ------------------------------------------


async def test_what_on_progress_raises_ends_the_call() -> None:
    peer = Peer()
    cancelled = asyncio.Event()

    @peer.on_request
    async def work(call: Call) -> None:
        await call.progress(1)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def fails(_: Progress) -> None:
        raise ZeroDivisionError("in on_progress")

    async def fails_later(update: Progress) -> None:
        await asyncio.sleep(0)
        fails(update)

    async with talking(peer) as session:
        for on_progress in (fails, fails_later):
            cancelled.clear()
            with pytest.raises(ZeroDivisionError, match="in on_progress"):
                await session.request("work", on_progress=on_progress)
            await cancelled.wait()
        await until(lambda: session.statistics().pending == 0, session)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), StopIteration()])
async def test_what_a_future_cannot_carry(error: BaseException) -> None:
    peer = Peer()

    @peer.on_request
    async def work(call: Call) -> None:
        await call.progress(1)
        await asyncio.Event().wait()

    def fails(_: Progress) -> None:
        raise error

    async def fails_later(update: Progress) -> None:
        await asyncio.sleep(0)
        fails(update)

    async with talking(peer, "memory") as session:
        for on_progress in (fails, fails_later):
            with pytest.raises(RuntimeError, match=r"on_progress raised|raised StopIteration"):
                await session.request("work", on_progress=on_progress)
        await until(lambda: session.statistics().pending == 0, session)


async def test_what_on_progress_raises_at_the_very_end() -> None:
    async def fails(_: Progress) -> None:
        raise ZeroDivisionError("in on_progress")

    async with talking(counting(), "memory") as session:
        with pytest.raises(ZeroDivisionError):
            await session.request("inline", 1, on_progress=fails)
        assert session.statistics().pending == 0


async def test_the_deadline_holds_while_on_progress_waits() -> None:
    started, cleaned_up = asyncio.Event(), asyncio.Event()

    async def never_comes_back(_: Progress) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    peer = Peer()

    @peer.on_request
    async def work(call: Call) -> None:
        await call.progress(1)
        await asyncio.Event().wait()

    async with talking(peer) as session:
        with pytest.raises(RequestTimeout):
            await session.request("work", on_progress=never_comes_back, timeout=0.05)
        assert started.is_set()
        assert cleaned_up.is_set()


async def test_the_end_of_the_session_is_told_while_on_progress_waits() -> None:
    started = asyncio.Event()

    async def never_comes_back(_: Progress) -> None:
        started.set()
        await asyncio.Event().wait()

    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any", on_progress=never_comes_back))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        raw.send([PROGRESS, wire_id + 1, 1])
        await started.wait()
        raw.close()
        with pytest.raises(SessionClosed):
            await task


async def test_cancelling_the_caller_cancels_on_progress() -> None:
    started, cleaned_up = asyncio.Event(), asyncio.Event()

    async def never_comes_back(_: Progress) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    async with talking(counting()) as session:
        task = asyncio.create_task(session.request("inline", 5, on_progress=never_comes_back))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned_up.is_set()


# -- floods ------------------------------------------------------------------------------------


async def test_a_slow_listener_gets_the_first_and_the_last() -> None:
    seen: list[Progress] = []
    go_on = asyncio.Event()

    async def slow(update: Progress) -> None:
        await go_on.wait()
        seen.append(update)

    async with joined(Peer(), counting(), "memory") as (session, other):
        task = asyncio.create_task(session.request("inline", 9000, on_progress=slow))
        await until(lambda: other.statistics().requests_served, session)
        await settled(session, other)
        go_on.set()
        assert await task == "done"
        dropped = session.statistics().progress_dropped
        assert other.statistics().progress_dropped == 0
    done = [update.done for update in seen]
    assert done == sorted(done)
    assert done[:3900] == list(range(3900))
    assert done[-1] == 8999
    assert len(done) + dropped == 9000
    assert len(done) < 5000


async def test_long_messages_are_kept_for_a_slow_listener_within_the_same_bound() -> None:
    seen: list[Progress] = []
    go_on = asyncio.Event()
    peer = Peer()

    async def slow(update: Progress) -> None:
        await go_on.wait()
        seen.append(update)

    @peer.on_request
    async def work(call: Call) -> None:
        for done in range(1000):
            await call.progress(done, message="m" * 10_000)

    async with joined(Peer(), peer, "memory") as (session, other):
        task = asyncio.create_task(session.request("work", on_progress=slow))
        await until(lambda: session.statistics().progress_dropped > 800, session, other)
        await settled(session, other)
        go_on.set()
        await task
        assert session.statistics().progress_dropped == 1000 - len(seen)
    assert seen[-1].done == 999
    assert 100 < len(seen) < 110


async def test_an_async_listener_that_yields_gets_each_update() -> None:
    seen: list[Progress] = []

    async def note(update: Progress) -> None:
        await asyncio.sleep(0)
        seen.append(update)

    async with talking(counting()) as session:
        assert await session.request("inline", 1000, on_progress=note) == "done"
        assert session.statistics().progress_dropped == 0
    assert [update.done for update in seen] == list(range(1000))


@pytest.mark.parametrize("way", ["in_a_task", "inline", "in_a_thread"])
async def test_a_flood_towards_one_who_does_not_read_is_bounded(way: str) -> None:
    peer = counting()
    peer._limits = Limits(outbox=64 * KIB)
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, way, [40_000], None])
        ended = False
        last, came = -1, 0
        # Nothing is read until the outbox has filled up, or all has been said.
        await until(
            lambda: (
                session.statistics().outbox_size >= 64 * KIB
                or (session.statistics().requests_served and not session.statistics().running)
            )
        )
        largest = 0
        while not ended:
            largest = max(largest, session.statistics().outbox_size)
            message = await raw.receive()
            if message[0] == REPLY:
                ended = True
            else:
                assert message[2] > last
                last = message[2]
            came += message[0] != REPLY
        assert last == 39_999  # the latest is never lost
        assert came + session.statistics().progress_dropped == 40_000
        assert largest < 128 * KIB


async def test_a_flood_from_a_thread_while_the_loop_is_busy_is_bounded() -> None:
    peer = Peer()
    started, flooded = threading.Event(), threading.Event()
    seen: list[Progress] = []

    @peer.on_request(thread=True)
    def work() -> str:
        started.wait(10)
        for done in range(50_000):
            progress(done)
        flooded.set()
        return "done"

    async with talking(peer, "memory") as session:
        task = asyncio.create_task(session.request("work", on_progress=seen.append))
        await settled(session)
        started.set()
        flooded.wait(10)  # the loop does nothing else meanwhile
        assert await task == "done"
    done = [update.done for update in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 49_999
    assert len(done) < 5000


async def test_progress_of_others_is_not_held_up_by_a_flood() -> None:
    peer = counting()
    peer._limits = Limits(outbox=64 * KIB)
    seen: list[Progress] = []
    async with talking(peer) as session:
        flood = [
            asyncio.create_task(session.request("in_a_task", 5000, on_progress=lambda _: None))
            for _ in range(4)
        ]
        assert await session.request("in_a_task", 10, on_progress=seen.append) == "done"
        assert seen[-1].done == 9
        assert await asyncio.gather(*flood) == ["done"] * 4


async def test_a_handler_that_reports_on_and_on_ends_with_its_session() -> None:
    peer = Peer(limits=Limits(outbox=16 * KIB))
    ended = asyncio.Event()

    @peer.on_request
    async def work(call: Call) -> None:
        while not call.session.closed:
            with contextlib.suppress(asyncio.CancelledError):
                await call.session.wait_closed()
        for done in range(10_000):  # to nobody
            await call.progress(done, message="x" * 100)
        ended.set()

    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("work"))
        await until(lambda: other.statistics().running, session)
        await session.aclose()
        assert isinstance(await failure(task), SessionClosed)
        await ended.wait()
        assert other.statistics().outbox_size == 0


async def test_errors_come_after_progress_too() -> None:
    peer = Peer()
    seen: list[Progress] = []

    @peer.on_request
    async def work(call: Call) -> None:
        await call.progress(1)
        raise ValueError("broken")

    async with talking(peer, "memory") as session:
        with pytest.raises(RemoteError, match="broken"):
            await session.request("work", on_progress=seen.append)
        assert seen == [Progress(1)]
