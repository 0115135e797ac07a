"""Rows 4 and 5 of `docs/faults.md`: callers that give up, at the worst of moments.

The rows are those of the list that this library was built against; each was a bug in one that
people trust.
"""

import asyncio
from typing import Any

import pytest

from asyncipc import Limits, Peer, Progress, RequestTimeout, Session, SessionClosed, Timeouts
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Hold,
    RawPeer,
    failure,
    holding,
    joined,
    settled,
    until,
)

REQUEST, REPLY, FAULT, CANCEL, PROGRESS = 2, 3, 4, 6, 64
CANCELLED = 7


# Row 4: a caller times out or is cancelled while waiting for a slot, for drain, in the middle of a
# large frame, inside aclose(), twice


async def given_up(task: "asyncio.Task[Any]", how: str) -> None:
    """End a caller's waiting, and see that it ended that way."""
    if how == "timeout":
        assert isinstance(await failure(task), RequestTimeout)
        return
    task.cancel()
    if how == "cancel twice":
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("over", ["socketpair", "pipes"])
@pytest.mark.parametrize("where", ["running", "for a slot", "for room", "large", "behind large"])
@pytest.mark.parametrize("how", ["timeout", "cancel", "cancel twice"])
async def test_row_4_giving_up_leaves_nothing(over: str, where: str, how: str) -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=4)))

    @peer.on_request
    def length(data: bytes) -> int:
        return len(data)

    async with joined(Peer(), peer, over) as (session, other):
        timeout = 0.05 if how == "timeout" else None
        holders: list[asyncio.Task[Any]] = []
        large: asyncio.Task[Any] | None = None
        if where == "for a slot":
            holders = [asyncio.create_task(session.request("hold")) for _ in range(4)]
            await hold.calls.reaches(4)
        if where in ("for room", "behind large"):
            size = 32 * MIB if where == "for room" else 900 * KIB
            large = asyncio.create_task(session.request("length", bytes(size)))
            await asyncio.sleep(0)
        if where == "large":
            work = session.request("length", bytes(256 * MIB), timeout=timeout)
        else:
            work = session.request("hold", timeout=timeout)
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        if where == "running":
            await hold.calls.reaches(1)
        await given_up(task, how)

        if where == "running":
            await hold.cancelled.reaches(1)
        hold.release()
        assert await asyncio.gather(*holders) == ["done"] * len(holders)
        if large is not None:
            assert await large > 0
        # No frame was torn, no slot is lost, and what was given up is not at work.
        results = await asyncio.gather(*(session.request("length", bytes(n)) for n in range(50)))
        assert results == list(range(50))
        await until(lambda: session.statistics().pending == 0, session)
        statistics = session.statistics()
        assert statistics.queued == statistics.outbox_size == other.statistics().running == 0


@pytest.mark.parametrize("over", TRANSPORTS)
@pytest.mark.parametrize("how", ["timeout", "cancel"])
@pytest.mark.parametrize("large", ["requests", "replies"])
async def test_row_4_one_of_several_large_messages(over: str, how: str, large: str) -> None:
    """Their parts leave by turns: the other side must not hear any more of what was dropped."""
    peer = Peer()

    @peer.on_request
    async def make(data: bytes, size: int) -> bytes:
        return bytes(size)

    async with joined(Peer(), peer, over) as (session, other):
        for turns in range(12):
            given = [bytes(3 * MIB), 10] if large == "requests" else [b"", 3 * MIB]
            tasks = []
            for number in range(4):
                timeout = 0.001 * turns if how == "timeout" and number % 2 else 30
                tasks.append(asyncio.create_task(session.request("make", given, timeout=timeout)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if how == "cancel":
                for task in tasks[1::2]:
                    task.cancel()
            assert [len(await task) for task in tasks[::2]] == [given[1]] * 2
            for error in await asyncio.gather(*tasks[1::2], return_exceptions=True):
                assert isinstance(error, bytes | RequestTimeout | asyncio.CancelledError)
        await until(lambda: session.statistics().pending == 0, session)
        await settled(session, other)
        for statistics in (session.statistics(), other.statistics()):
            assert statistics.queued == statistics.outbox_size == statistics.running == 0


@pytest.mark.parametrize("how", ["cancel", "cancel twice"])
async def test_row_4_inside_aclose(how: str) -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        closing = asyncio.create_task(other.aclose())
        await asyncio.sleep(0)
        await given_up(closing, how)
        hold.release()
        assert await task == "done"
        await other.wait_closed()
        await session.wait_closed()


async def test_row_4_inside_aclose_of_one_who_does_not_read() -> None:
    async with RawPeer.facing(Peer(timeouts=Timeouts(goodbye=0.1))) as (_raw, session):
        task = asyncio.create_task(session.request("any", bytes(32 * MIB)))
        await until(lambda: session.statistics().bytes_sent > KIB)
        closing = asyncio.create_task(session.aclose())
        await asyncio.sleep(0)
        await given_up(closing, "cancel")
        await session.wait_closed()
        assert isinstance(await failure(task), SessionClosed)


async def test_row_4_a_storm_of_callers_that_give_up() -> None:
    """Some at once, some later, some never, with small and large requests: the rest is right."""
    peer = Peer(limits=Limits(max_requests=16))

    @peer.on_request
    async def length(data: bytes, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return len(data)

    async with joined(Peer(), peer) as (session, other):

        async def call(number: int) -> None:
            size = (10, 1000, 40_000, 300_000)[number % 4]
            work = asyncio.create_task(session.request("length", [bytes(size), number % 5]))
            if number % 3 == 0:
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            else:
                assert await work == size

        await asyncio.gather(*(call(number) for number in range(400)))
        await until(lambda: session.statistics().pending == 0, session)
        assert session.statistics().outbox_size == session.statistics().queued == 0
        assert other.statistics().running == 0
        assert other.statistics().requests_refused == 0


# Row 5: the reply and the cancel cross on the wire


async def asked(raw: RawPeer, session: Session, **options: Any) -> tuple["asyncio.Task[Any]", int]:
    """A call that has arrived, and the id of its answer."""
    task = asyncio.create_task(session.request("any", **options))
    _, wire_id, *_ = await raw.receive_kind(REQUEST)
    assert isinstance(wire_id, int)
    return task, wire_id + 1


@pytest.mark.parametrize("answer", [[REPLY, "done"], [FAULT, 1, "failed"], [FAULT, CANCELLED, ""]])
async def test_row_5_an_answer_after_the_caller_has_gone(answer: list[Any]) -> None:
    seen: list[Progress] = []
    async with RawPeer.facing(Peer()) as (raw, session):
        task, answer_id = await asked(raw, session, on_progress=seen.append)
        await given_up(task, "cancel")
        # Both were under way: what they answer is no longer of interest.
        raw.send([PROGRESS, answer_id, 1], [answer[0], answer_id, *answer[1:]])
        raw.send([PROGRESS, answer_id, 2], [answer[0], answer_id, *answer[1:]])
        assert await raw.receive_kind(CANCEL) == [CANCEL, answer_id - 1]
        await raw.settle(session)
        assert not seen
        assert not session.closed
        assert session.statistics().pending == 0


async def test_row_5_an_answer_after_the_timeout() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task, answer_id = await asked(raw, session, timeout=0.01)
        await given_up(task, "timeout")
        raw.send([REPLY, answer_id, "done"])
        await raw.settle(session)
        assert session.statistics().late_replies == 1
        task, answer_id = await asked(raw, session)
        raw.send([REPLY, answer_id, "of the next call"])
        assert await task == "of the next call"


async def test_row_5_the_answer_first_and_the_cancel_in_the_same_turn() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task, answer_id = await asked(raw, session)
        session._connection.exchange.calls.answered([REPLY, answer_id, "done"])
        await given_up(task, "cancel")
        await raw.settle(session)
        assert session.statistics().cancels_sent == 0  # there is nothing to cancel
        assert session.statistics().pending == 0


async def test_row_5_a_cancel_after_the_answer_is_ignored() -> None:
    peer, hold = Peer(), Hold()
    peer.on_request("echo")(lambda value: value)
    peer.on_request("hold")(hold)
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([REQUEST, 2, "echo", [1], None], [CANCEL, 2], [REQUEST, 4, "echo", [2], None])
        assert await raw.receive() == [REPLY, 3, 1]
        assert await raw.receive() == [REPLY, 5, 2]
        raw.send([REQUEST, 6, "hold", None, None])
        await hold.calls.reaches(1)
        hold.release()
        assert await raw.receive() == [REPLY, 7, "done"]
        raw.send([CANCEL, 6], [REQUEST, 8, "echo", [3], None])
        assert await raw.receive() == [REPLY, 9, 3]
        assert not hold.cancelled


async def test_row_5_each_call_gets_exactly_one_answer() -> None:
    peer = Peer()

    @peer.on_request
    async def work(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    async with RawPeer.facing(peer) as (raw, session):
        for number in range(200):
            raw.send([REQUEST, 2 * number + 2, "work", [number % 4], None])
            raw.send([CANCEL, 2 * number + 2])
            if number % 10 == 0:
                await asyncio.sleep(0)
        answers = [await raw.receive() for _ in range(200)]
        assert sorted(answer[1] for answer in answers) == [2 * n + 3 for n in range(200)]
        assert {answer[0] for answer in answers} <= {REPLY, FAULT}
        await raw.settle(session)
        await settled_here(session)
        assert session.statistics().running == 0


async def settled_here(session: Session) -> None:
    await until(lambda: session.statistics().outbox_size == 0)


async def test_row_5_cancels_and_answers_cross_for_real() -> None:
    peer = Peer()

    @peer.on_request
    async def work(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    async with joined(Peer(), peer) as (session, other):

        async def call(number: int) -> int:
            task = asyncio.create_task(session.request("work", number % 6))
            for _ in range(number % 11):
                await asyncio.sleep(0)
            task.cancel()
            try:
                result: int = await task
            except asyncio.CancelledError:
                return -1
            assert result == number % 6
            return result

        results = await asyncio.gather(*(call(number) for number in range(500)))
        assert -1 in results
        await until(lambda: session.statistics().pending == 0, session)
        await settled(session, other)
        assert other.statistics().running == 0
