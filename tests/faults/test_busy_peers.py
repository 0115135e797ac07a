"""Rows 6 to 10 of `docs/faults.md`: peers that are busy, or do nothing at all.

The rows are those of the list that this library was built against; each was a bug in one that
people trust.
"""

import asyncio
import signal
from collections import defaultdict
from typing import Any

import pytest

from asyncipc import Limits, Peer, PeerDied, RequestTimeout, Session
from tests.faults.support import served_by_a_process
from tests.session.support import (
    KIB,
    MIB,
    Hold,
    Journal,
    failure,
    holding,
    joined,
    settled,
    until,
)

# Row 6: 1,000 requests keep the handlers busy; a ping, a reply, a cancel arrives


async def test_row_6_what_matters_passes_a_thousand_requests() -> None:
    first, (second, hold) = Peer(), holding()
    first.on_request("answer")(lambda: "answer")
    async with joined(first, second) as (session, back):
        tasks = [asyncio.create_task(session.request("hold", n)) for n in range(1000)]
        await hold.calls.reaches(1000)
        async with asyncio.timeout(2):
            assert await session.ping() < 2
            assert await back.request("answer") == "answer"
            tasks[500].cancel()
            [call] = await hold.cancelled.reaches(1)
            assert call.cancelled
        hold.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results.count("done") == 999


async def test_row_6_also_where_all_slots_are_taken_and_callers_queue() -> None:
    first, (second, hold) = Peer(), holding(peer=Peer(limits=Limits(max_requests=10)))
    first.on_request("answer")(lambda: "answer")
    async with joined(first, second) as (session, back):
        tasks = [asyncio.create_task(session.request("hold", n)) for n in range(1000)]
        await hold.calls.reaches(10)
        async with asyncio.timeout(2):
            await session.ping()
            assert await back.request("answer") == "answer"
            tasks[5].cancel()
            await hold.cancelled.reaches(1)
            tasks[900].cancel()  # was never sent
            await asyncio.wait([tasks[900]])
        hold.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results.count("done") == 998
        assert hold.peak == 10


# Row 7: a handler calls back, whose handler calls back, and so on


@pytest.mark.parametrize("max_requests", [1, 1024])
@pytest.mark.parametrize("over", ["memory", "socketpair", "pipes"])
async def test_row_7_calls_within_calls(over: str, max_requests: int) -> None:
    limits = Limits(max_requests=max_requests)
    peers = Peer(limits=limits), Peer(limits=limits)
    sessions: list[Session] = []

    def descend(peer: Peer, side: int) -> None:
        @peer.on_request
        async def down(number: int) -> int:
            if number == 0:
                return 0
            below: int = await sessions[side].request("down", number - 1)
            return below + 1

    for side, peer in enumerate(peers):
        descend(peer, side)
    async with joined(*peers, over) as sessions[:]:
        # As deep as allowed, from both sides at once, several times over.
        calls = [session.request("down", 128) for session in sessions for _ in range(3)]
        assert await asyncio.gather(*calls) == [128] * 6


# Row 8: both sides send 8 MiB requests to each other at once over pipes


@pytest.mark.parametrize("over", ["pipes", "socketpair", "memory"])
async def test_row_8_large_requests_from_both_sides(over: str) -> None:
    first, second = Peer(), Peer()
    for peer in (first, second):
        peer.on_request("echo")(lambda value: value)
    async with joined(first, second, over) as pair:
        data = bytes(range(256)) * 32 * KIB
        calls = [session.request("echo", data) for session in pair for _ in range(4)]
        results = await asyncio.gather(*calls)
        assert all(result == data for result in results)


async def test_row_8_with_a_program_in_another_process() -> None:
    async with served_by_a_process(Peer()) as (session, _):
        data = bytes(8 * MIB)
        results = await asyncio.gather(*(session.request("echo", data) for _ in range(8)))
        assert all(len(result) == len(data) for result in results)


# Row 9: the peer is SIGSTOPped


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_row_9_a_stopped_process() -> None:
    client = Peer(limits=Limits(outbox=256 * KIB))
    async with served_by_a_process(client) as (session, process):
        assert await session.request("echo", [1]) == 1
        process.send_signal(signal.SIGSTOP)
        # Timeouts and cancels return, whatever is sent,
        with pytest.raises(RequestTimeout):
            await session.request("echo", [1], timeout=0.01)
        with pytest.raises(RequestTimeout):
            await session.request("echo", bytes(8 * MIB), timeout=0.01)
        with pytest.raises(RequestTimeout):
            await session.ping(timeout=0.01)
        cancelled = asyncio.create_task(session.request("echo", bytes(8 * MIB)))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert cancelled.cancelled()
        # senders wait, and what is kept for the process is bounded.
        notes = [asyncio.create_task(session.notify("any", bytes(1000))) for _ in range(5000)]
        calls = [
            asyncio.create_task(session.request("echo", bytes(1000), timeout=None))
            for _ in range(5000)
        ]
        errors = await asyncio.gather(
            *(session.request("echo", bytes(1000), timeout=0.01) for _ in range(1000)),
            return_exceptions=True,
        )
        assert {type(error) for error in errors} == {RequestTimeout}
        assert session.statistics().outbox_size < 512 * KIB
        assert session.statistics().queued > 8000
        # When it goes on, everything is done.
        process.send_signal(signal.SIGCONT)
        assert {len(result) for result in await asyncio.gather(*calls)} == {1000}
        await asyncio.gather(*notes)
        await until(lambda: session.statistics().pending == 0, session)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_row_9_a_stopped_process_that_is_killed() -> None:
    async with served_by_a_process(Peer(limits=Limits(outbox=64 * KIB))) as (session, process):
        process.send_signal(signal.SIGSTOP)
        calls = [asyncio.create_task(session.request("echo", bytes(1000))) for _ in range(2000)]
        await until(lambda: session.statistics().queued > 0)
        process.kill()
        async with asyncio.timeout(2):
            errors = [await failure(task) for task in calls]
        assert {type(error) for error in errors} == {PeerDied}


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_row_9_closing_a_session_with_a_stopped_process() -> None:
    async with served_by_a_process(Peer()) as (session, process):
        process.send_signal(signal.SIGSTOP)
        task = asyncio.create_task(session.request("echo", [1]))
        await asyncio.sleep(0)
        async with asyncio.timeout(8):  # Timeouts.goodbye, and some
            await session.aclose()
        assert task.done()
        await asyncio.gather(task, return_exceptions=True)


# Row 10: 1,000 concurrent senders on a full pipe


@pytest.mark.parametrize("over", ["pipes", "socketpair"])
@pytest.mark.parametrize("kind", ["requests", "notifications"])
async def test_row_10_a_thousand_senders(over: str, kind: str) -> None:
    limits = Limits(outbox=64 * KIB, notification_credit=64 * KIB, max_requests=50)
    peer = Peer(limits=limits)
    received: defaultdict[int, list[int]] = defaultdict(list)
    count = Journal()

    def take(sender: int, number: int, data: bytes) -> None:
        received[sender].append(number)
        count.append(None)

    peer.on_notification("take")(take)
    peer.on_request("take")(take)

    async with joined(Peer(limits=limits), peer, over) as (session, other):
        send: Any = session.request if kind == "requests" else session.notify

        async def sender(name: int) -> None:
            for number in range(3):
                await send("take", [name, number, bytes(500)])

        await asyncio.gather(*(sender(name) for name in range(1000)))
        await count.reaches(3000)
        await settled(session, other)
        assert len(received) == 1000
        assert all(numbers == [0, 1, 2] for numbers in received.values())
        assert session.statistics().queued == session.statistics().outbox_size == 0


async def test_row_10_in_the_order_sent_where_nobody_waits_in_between() -> None:
    peer = Peer(limits=Limits(notification_credit=16 * KIB))
    received = Journal()
    peer.on_notification("take")(lambda number, data: received.append(number))
    async with joined(Peer(limits=Limits(outbox=16 * KIB)), peer, "pipes") as (session, _):
        tasks = [
            asyncio.create_task(session.notify("take", [n, bytes(n % 1000)])) for n in range(1000)
        ]
        await received.reaches(1000)
        assert received == list(range(1000))
        await asyncio.gather(*tasks)


async def test_row_10_one_slow_handler_does_not_starve_the_others() -> None:
    peer, hold = Peer(limits=Limits(max_requests=2)), Hold()
    peer.on_request("hold")(hold)
    peer.on_request("quick")(lambda: None)
    async with joined(Peer(), peer) as (session, _):
        held = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        await asyncio.gather(*(session.request("quick") for _ in range(1000)))
        hold.release()
        await held
