"""Statistics: what a session counts, and that it counts right."""

import asyncio
from typing import Any

import pytest

from asyncipc import Limits, Peer, RemoteError, RequestTimeout, Statistics
from tests.session.support import (
    KIB,
    TRANSPORTS,
    Hold,
    Journal,
    RawPeer,
    failure,
    joined,
    settled,
    until,
)

REQUEST, REPLY, NOTIFY = 2, 3, 5


def changes(before: Statistics, after: Statistics) -> dict[str, int]:
    """The counters that are different, bytes aside."""
    return {
        name: getattr(after, name) - getattr(before, name)
        for name in before._fields
        if not name.startswith("bytes") and getattr(after, name) != getattr(before, name)
    }


async def test_a_fresh_session() -> None:
    async with joined(Peer(), Peer(), "memory") as pair:
        for session in pair:
            counters = session.statistics()._asdict()
            assert counters.pop("bytes_sent") > 0  # the hello
            assert counters.pop("bytes_received") > 0
            assert set(counters.values()) == {0}


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_what_one_side_sends_the_other_receives(over: str) -> None:
    peer, taken = Peer(), Journal()
    peer.on_request("echo")(lambda value: value)
    peer.on_notification("take")(taken.append)
    async with joined(Peer(), peer, over) as (session, other):
        for size in (10, 10_000, 100_000):
            await session.request("echo", bytes(size))
            await session.notify("take", bytes(size))
        await taken.reaches(3)
        await settled(session, other)
        await settled(session, other)
        assert session.statistics().bytes_sent == other.statistics().bytes_received
        assert other.statistics().bytes_sent == session.statistics().bytes_received


async def test_calls() -> None:
    peer, hold = Peer(), Hold()
    peer.on_request("hold")(hold)

    @peer.on_request
    def fails() -> None:
        raise ValueError

    async with joined(Peer(), peer) as (session, other):

        async def counted(work: Any) -> tuple[dict[str, int], dict[str, int]]:
            before = session.statistics(), other.statistics()
            result = await asyncio.gather(work, return_exceptions=True)
            assert not isinstance(result[0], AssertionError)
            await settled(session)
            await settled(session)
            after = session.statistics(), other.statistics()
            return changes(before[0], after[0]), changes(before[1], after[1])

        hold.release()
        assert await counted(session.request("hold")) == (
            {"requests_sent": 1},
            {"requests_served": 1},
        )
        assert await counted(session.request("fails")) == (
            {"requests_sent": 1},
            {"requests_served": 1, "faults_sent": 1},
        )
        assert await counted(session.request("nothing")) == (
            {"requests_sent": 1},
            {"requests_served": 1, "faults_sent": 1},
        )
        hold.released.clear()
        assert await counted(session.request("hold", timeout=0.01)) == (
            {"requests_sent": 1, "timeouts": 1, "cancels_sent": 1},
            {"requests_served": 1, "faults_sent": 1},
        )
        assert await counted(session.notify("nothing")) == (
            {"notifications_sent": 1},
            {"notifications_received": 1, "notifications_unhandled": 1},
        )
        assert await counted(session.ping()) == ({}, {})
        assert await counted(session.request("hold", [object()])) == ({}, {})


async def test_how_it_stands() -> None:
    peer, hold = Peer(limits=Limits(max_requests=2)), Hold()
    peer.on_request("hold")(hold)
    peer.on_notification("hold")(hold)
    async with joined(Peer(), peer) as (session, other):
        tasks = [asyncio.create_task(session.request("hold")) for _ in range(5)]
        await session.notify("hold")
        await hold.calls.reaches(3)
        mine, theirs = session.statistics(), other.statistics()
        assert (mine.pending, mine.queued, mine.requests_sent) == (2, 3, 2)
        assert (theirs.running, theirs.requests_served) == (3, 2)
        hold.release()
        await asyncio.gather(*tasks)
        await until(lambda: other.statistics().running == 0, session)
        assert (session.statistics().pending, session.statistics().queued) == (0, 0)


async def test_what_waits_to_be_sent() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any", bytes(4 * 1024 * KIB)))
        await until(lambda: session.statistics().bytes_sent > 0)
        await asyncio.sleep(0)
        statistics = session.statistics()
        assert 1024 * KIB < statistics.outbox_size < 4 * 1024 * KIB + 100
        while session.statistics().outbox_size:
            await raw.receive()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_late_answers_and_what_is_not_known() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any", timeout=0.01))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        assert isinstance(await failure(task), RequestTimeout)
        assert session.statistics().pending == 1
        raw.send([REPLY, wire_id + 1, "late"])
        raw.send([REPLY, 4711, "to nobody"], [200, "what is this?"], [201])
        await raw.settle(session)
        statistics = session.statistics()
        assert statistics.late_replies == 2
        assert statistics.ignored_messages == 2
        assert statistics.pending == 0


async def test_they_can_still_be_read_after_the_end() -> None:
    peer = Peer()
    peer.on_request("echo")(lambda value: value)
    async with joined(Peer(), peer) as (session, other):
        await session.request("echo", 1)
        assert isinstance(await failure(session.request("nothing")), RemoteError)
    for one in (session, other):
        statistics = one.statistics()
        assert statistics.pending == statistics.queued == statistics.running == 0
        assert statistics.outbox_size == 0
    assert session.statistics().requests_sent == other.statistics().requests_served == 2
