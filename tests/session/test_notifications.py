"""Notifications: in order, without an answer, and never faster than they are taken."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncipc import (
    Call,
    EncodeError,
    FrameTooLarge,
    Limits,
    Peer,
    SessionClosed,
    current_call,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Hold,
    Journal,
    RawPeer,
    failure,
    joined,
    settled,
    talking,
    until,
)

NOTIFY, CREDIT, GOODBYE = 5, 13, 12


def collecting() -> tuple[Peer, Journal]:
    peer, journal = Peer(), Journal()
    peer.on_notification("take")(journal.append)
    return peer, journal


# -- what arrives ------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_in_order(over: str) -> None:
    peer, journal = collecting()
    async with talking(peer, over) as session:
        for number in range(500):
            await session.notify("take", number)
        assert await journal.reaches(500) == list(range(500))


async def test_in_order_also_with_requests_and_large_ones_between() -> None:
    peer, journal = collecting()

    @peer.on_request("take")
    def take(value: Any) -> None:
        journal.append(value)

    async with talking(peer) as session:
        requests = []
        for number in range(50):
            if number % 3 == 0:
                await session.notify("take", number)
            elif number % 3 == 1:
                await session.notify("take", bytes(100_000 + number))
            else:
                requests.append(asyncio.create_task(session.request("take", number)))
                await asyncio.sleep(0)
        await asyncio.gather(*requests)
        await journal.reaches(50)
        numbers = [each if isinstance(each, int) else len(each) - 100_000 for each in journal]
        assert numbers == list(range(50))


async def test_both_ways_at_once() -> None:
    first, first_journal = collecting()
    second, second_journal = collecting()
    async with joined(first, second) as (session, other):
        for number in range(100):
            await asyncio.gather(session.notify("take", number), other.notify("take", -number))
        assert await first_journal.reaches(100) == [-number for number in range(100)]
        assert await second_journal.reaches(100) == list(range(100))


async def test_what_the_handler_knows() -> None:
    peer = Peer()
    calls = Journal()

    @peer.on_notification
    def inline(call: Call) -> None:
        calls.append((call, current_call()))

    @peer.on_notification
    async def in_a_task(call: Call) -> None:
        calls.append((call, current_call()))

    @peer.on_notification(thread=True)
    def in_a_thread(call: Call) -> None:
        loop.call_soon_threadsafe(calls.append, (call, current_call()))

    loop = asyncio.get_running_loop()
    async with joined(Peer(), peer, "memory") as (session, other):
        for count, method in enumerate(("inline", "in_a_task", "in_a_thread"), 1):
            await session.notify(method, metadata={"trace": 7})
            call, current = (await calls.reaches(count))[-1]
            assert call is current
            assert call.method == method
            assert call.metadata == {"trace": 7}
            assert call.deadline is call.remaining is None
            assert call.session is other
            assert not call.cancelled


async def test_notify_does_not_wait_for_the_handler() -> None:
    peer, hold = Peer(), Hold()
    peer.on_notification("hold")(hold)
    async with talking(peer) as session:
        await session.notify("hold")
        await session.notify("hold")
        await hold.calls.reaches(2)
        hold.release()
        await hold.ended.reaches(2)


async def test_a_buffer_belongs_to_the_sender_again_when_notify_returns() -> None:
    peer, journal = collecting()
    async with talking(peer) as session:
        buffer = bytearray(b"a" * 3 * MIB)
        await session.notify("take", buffer)
        buffer[:] = b"b" * len(buffer)
        await session.notify("take", memoryview(buffer))
        buffer[:] = b"c" * len(buffer)
        await journal.reaches(2)
        assert bytes(journal[0]) == b"a" * 3 * MIB
        assert bytes(journal[1]) == b"b" * 3 * MIB


async def test_a_buffer_belongs_to_the_sender_again_when_notify_is_cancelled() -> None:
    peer, journal = collecting()
    async with joined(Peer(), peer) as (session, other):
        buffer = bytearray(b"a" * 900 * KIB)
        task = asyncio.create_task(session.notify("take", buffer))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        buffer[:] = b"b" * len(buffer)
        await session.notify("take", "last")
        await until(lambda: "last" in journal, session)
        assert all(bytes(each) == b"a" * 900 * KIB for each in journal[:-1])
        # Whether the first was sent or not, what it cost is accounted for.
        for _ in range(10):
            await session.notify("take", bytes(900 * KIB))
        await until(lambda: len(journal) >= 11, session)
        await settled(session, other)
        assert session._connection.exchange.notifications._credit > 0


# -- what fails --------------------------------------------------------------------------------


async def test_a_handler_that_fails_is_logged_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    peer, journal = collecting()

    @peer.on_notification
    def inline() -> None:
        raise ValueError("inline failed")

    @peer.on_notification
    async def in_a_task() -> None:
        raise SystemExit("task failed")

    @peer.on_notification(thread=True)
    def in_a_thread() -> None:
        raise KeyboardInterrupt("thread failed")

    @peer.on_notification
    def takes_a_number(number: int) -> None:
        journal.append(number)

    async with joined(Peer(), peer) as (session, other):
        await session.notify("inline")
        await session.notify("in_a_task")
        await session.notify("in_a_thread")
        await session.notify("takes_a_number", "one")
        await session.notify("takes_a_number", 1)
        await journal.reaches(1)
        await until(lambda: other.statistics().running == 0, session)
        assert not session.closed
    text = "\n".join(record.getMessage() for record in caplog.records)
    for method in ("inline", "in_a_task", "in_a_thread", "takes_a_number"):
        assert f"the handler for the notification '{method}' failed" in text
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    assert "parameter 'number': expected int, got str" in caplog.text


async def test_what_nobody_takes_is_said_a_limited_number_of_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer, journal = collecting()

    @peer.on_notification
    def passes_on() -> Any:
        return NotImplemented

    async with joined(Peer(), peer) as (session, other):
        for number in range(150):
            await session.notify(f"nothing {number}")
        await session.notify("take", "last")
        await journal.reaches(1)
        assert other.statistics().notifications_unhandled == 150
        assert other.statistics().notifications_received == 151
        await session.notify("passes_on")
        await settled(session)
        assert other.statistics().notifications_unhandled == 151
    assert len(caplog.records) == 100
    assert "no handler takes the notification 'nothing 0'" in caplog.text


async def test_what_cannot_be_sent() -> None:
    peer, journal = collecting()
    async with talking(peer, "memory", first=Peer()) as session:
        with pytest.raises(EncodeError, match=r"params\[0\]\.x"):
            await session.notify("take", [{"x": object()}])
        with pytest.raises(EncodeError, match="metadata"):
            await session.notify("take", 1, metadata={"x": object()})
        with pytest.raises(TypeError, match="the method must be a string"):
            await session.notify(7)  # type: ignore[arg-type,unused-ignore]
        await session.notify("take", 1)
        assert await journal.reaches(1) == [1]
        assert session.statistics().notifications_sent == 1


async def test_what_is_too_large() -> None:
    peer, journal = collecting()
    peer._limits = Limits(max_message=64 * KIB)
    async with talking(peer, "memory") as session:
        with pytest.raises(FrameTooLarge, match="max_message is 65536"):
            await session.notify("take", bytes(64 * KIB))
        await session.notify("take", 1)
        assert await journal.reaches(1) == [1]


# -- credit ------------------------------------------------------------------------------------


async def test_a_slow_handler_stops_the_sender() -> None:
    peer, hold = Peer(limits=Limits(notification_credit=16 * KIB)), Hold()
    peer.on_notification("hold")(hold)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while sent < 200:
            await session.notify("hold", bytes(1000))
            sent += 1

    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(send())
        await settled(session, other)
        await settled(session, other)
        assert 16 <= sent <= 18  # a window of 16 KiB, which may be overdrawn by one
        assert session.statistics().queued == 1
        assert other.statistics().running == sent
        # Neither calls nor pings are held up by it.
        assert await failure(session.request("nothing")) is not None
        hold.release()
        await task
        await hold.ended.reaches(200)


async def test_many_senders_get_their_turns_in_order() -> None:
    peer, hold = Peer(limits=Limits(notification_credit=16 * KIB)), Hold()
    peer.on_notification("hold")(hold)
    order = Journal()

    async def send(number: int) -> None:
        await session.notify("hold", bytes(4000))
        order.append(number)

    async with talking(peer) as session:
        tasks = [asyncio.create_task(send(number)) for number in range(50)]
        await settled(session)
        assert len(order) <= 5
        hold.release()
        await order.reaches(50)
        assert order == list(range(50))
        await asyncio.gather(*tasks)


async def test_a_sender_that_gives_up_waiting_leaves_the_line() -> None:
    peer, hold = Peer(limits=Limits(notification_credit=16 * KIB)), Hold()
    peer.on_notification("hold")(hold)
    async with talking(peer) as session:
        await session.notify("hold", bytes(16 * KIB))
        first = asyncio.create_task(session.notify("hold", 1))
        second = asyncio.create_task(session.notify("hold", 2))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.notify("hold", 3)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert session.statistics().queued == 1
        hold.release()
        await second
        await hold.ended.reaches(2)
        assert session.statistics().notifications_sent == 2


async def test_more_than_the_window_at_once_still_goes() -> None:
    peer, journal = collecting()
    peer._limits = Limits(notification_credit=16 * KIB)
    async with talking(peer) as session:
        for _ in range(5):
            await session.notify("take", bytes(300 * KIB))
        await journal.reaches(5)


async def test_credit_that_was_not_due_ends_the_session() -> None:
    peer = Peer()
    async with RawPeer.facing(peer) as (raw, session):
        await session.notify("any")
        assert (await raw.receive())[0] == NOTIFY
        raw.send([CREDIT, 0, 2])
        goodbye = await raw.receive_kind(GOODBYE)
        assert "credit for 2 notifications, but 1 were under way" in goodbye[3]
        await session.wait_closed()


async def test_those_who_wait_for_credit_are_told_the_end() -> None:
    async with RawPeer.facing(Peer(), notification_credit=16 * KIB) as (raw, session):
        await session.notify("any", bytes(16 * KIB))
        waiting = [asyncio.create_task(session.notify("any")) for _ in range(3)]
        await raw.settle(session)
        assert session.statistics().queued == 3
        raw.close()
        errors = [await failure(task) for task in waiting]
        assert all(isinstance(error, SessionClosed) for error in errors)
        assert len(set(map(id, errors))) == 3
        assert isinstance(await failure(session.notify("any")), SessionClosed)


NOTIFICATIONS = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 50]),
        st.sampled_from(["inline", "in_a_task", "in_steps", "in_a_thread", "fails", "nobody"]),
        st.sampled_from([0, 1, 10, 60, 1000, 5000, 20_000, 40_000, 100_000]),
    ),
    max_size=20,
)


@settings(max_examples=25)
@given(
    batches=st.lists(NOTIFICATIONS, max_size=3),
    window=st.sampled_from([16 * KIB, 20_000, 64 * KIB, MIB]),
)
async def test_the_window_comes_back_exactly(
    batches: list[list[tuple[int, str, int]]], window: int
) -> None:
    """Whatever was sent and whoever took it: nobody waits for ever, and nothing is lost."""
    peer = Peer(limits=Limits(notification_credit=window))
    taken = Journal()
    loop = asyncio.get_running_loop()

    @peer.on_notification
    def inline(data: bytes) -> None:
        taken.append(data)

    @peer.on_notification
    async def in_a_task(data: bytes) -> None:
        taken.append(data)

    @peer.on_notification
    async def in_steps(data: bytes) -> None:
        for _ in range(len(data) % 7):
            await asyncio.sleep(0)
        taken.append(data)

    @peer.on_notification(thread=True)
    def in_a_thread(data: bytes) -> None:
        loop.call_soon_threadsafe(taken.append, data)

    @peer.on_notification
    async def fails(data: bytes) -> None:
        taken.append(data)
        raise ValueError("as it should")

    logging.disable(logging.ERROR)
    try:
        async with joined(Peer(), peer, "memory") as (session, other):
            expected = 0
            for batch in batches:
                async with asyncio.TaskGroup() as group:
                    for times, method, size in batch:
                        for _ in range(times if size < 100 else 1):
                            group.create_task(session.notify(method, bytes(size)))
                            expected += method != "nobody"
                await taken.reaches(expected)
                await until(lambda: other.statistics().running == 0, session)
            # Small ones may not have been credited yet, but what is missing is less than a share.
            await settled(session, other)
            sender = session._connection.exchange.notifications
            outstanding = sum(sender._costs or ())
            assert sender._credit + outstanding == window
            assert outstanding <= window // 4 + 64
            assert session.statistics().queued == 0
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("method", ["inline", "in_a_task", "mixed"])
async def test_the_smallest_of_notifications_never_stall(method: str) -> None:
    peer = Peer(limits=Limits(notification_credit=16 * KIB))
    taken = Journal()
    go_on = asyncio.Event()

    @peer.on_notification
    def i(call: Call) -> None:
        taken.append(call)

    @peer.on_notification
    async def t(call: Call) -> None:
        await go_on.wait()
        taken.append(call)

    async with joined(Peer(), peer, "memory") as (session, _other):

        async def send() -> None:
            for number in range(2000):
                is_inline = method == "inline" or (method == "mixed" and number % 50 == 0)
                await session.notify("i" if is_inline else "t")

        task = asyncio.create_task(send())
        await settled(session)
        go_on.set()
        await task
        await taken.reaches(2000)


async def test_handlers_in_threads_count_until_they_end() -> None:
    peer = Peer(limits=Limits(notification_credit=16 * KIB))
    go_on = threading.Event()
    taken: list[int] = []

    @peer.on_notification(thread=True)
    def work(data: bytes) -> None:
        go_on.wait(10)
        taken.append(len(data))

    async with joined(Peer(), peer) as (session, other):
        await session.notify("work", bytes(16 * KIB))
        waiting = asyncio.create_task(session.notify("work", b""))
        await settled(session)
        assert not waiting.done()
        go_on.set()
        await waiting
        await until(lambda: len(taken) == 2 and not other.statistics().running, session)
        assert sorted(taken) == [0, 16 * KIB]


async def test_a_notification_handler_is_cancelled_with_the_session() -> None:
    peer, hold = Peer(), Hold()
    peer.on_notification("hold")(hold)
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([NOTIFY, "hold", None])
        [call] = await hold.calls.reaches(1)
        raw.close()
        await hold.cancelled.reaches(1)
        assert call.cancelled
        await session.wait_closed()
        await until(lambda: session.statistics().running == 0)
