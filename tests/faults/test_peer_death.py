"""Row 1 of `docs/faults.md`: the peer dies, and everybody who waits for it hears of it.

The rows are those of the list that this library was built against; each was a bug in one that
people trust. Children that were spawned are in ``test_child_processes.py``.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncipc import Limits, Peer, PeerDied, SessionClosed
from tests.faults.support import served_by_a_process
from tests.session.support import KIB, MIB, RawPeer, failure, until

REQUEST, BEGIN, PART = 2, 9, 10

Death = Callable[[RawPeer], Any]


def hang_up(raw: RawPeer) -> None:
    raw.close()


def reset(raw: RawPeer) -> None:
    """What it was sent and has not read makes the kernel send a reset instead of an end."""
    raw.writer.transport.abort()


def break_off(raw: RawPeer) -> None:
    """In the middle of a frame."""
    raw.writer.write(b"\xf3\x4a\x9d\xe2\0\0\1\0\0\0\0\0\x93" + bytes(10))
    raw.close()


def talk_nonsense(raw: RawPeer) -> None:
    raw.writer.write(b"\0" * 100)


def break_the_rules(raw: RawPeer) -> None:
    raw.send([REQUEST, 7, "the id is odd"])


DEATHS = [hang_up, reset, break_off, talk_nonsense, break_the_rules]


async def told(waiters: list[Awaitable[Any]], expected: type[SessionClosed]) -> None:
    """All of them, at once, each with an exception of its own."""
    async with asyncio.timeout(2):
        errors = await asyncio.gather(*waiters, return_exceptions=True)
    assert {type(error) for error in errors} == {expected}
    assert len(set(map(id, errors))) == len(errors)


def expected_of(death: Death) -> type[SessionClosed]:
    return SessionClosed if death in (talk_nonsense, break_the_rules) else PeerDied


@pytest.mark.parametrize("death", DEATHS)
async def test_row_1_pending_queued_and_waiting_for_credit(death: Death) -> None:
    limits = {"max_requests": 2, "notification_credit": 16 * KIB}
    async with RawPeer.facing(Peer(), **limits) as (raw, session):
        await session.notify("any", bytes(16 * KIB))
        waiters: list[Awaitable[Any]] = [
            *(asyncio.create_task(session.request("any")) for _ in range(10)),
            asyncio.create_task(session.request("any", on_progress=lambda _: None)),
            *(asyncio.create_task(session.notify("any")) for _ in range(3)),
            *(asyncio.create_task(session.ping()) for _ in range(2)),
        ]
        await until(lambda: session.statistics().queued == 9 + 3)
        death(raw)
        await told(waiters, expected_of(death))
        await session.wait_closed()
        assert session.statistics().pending == session.statistics().queued == 0
        await told([session.request("any"), session.notify("any")], expected_of(death))


@pytest.mark.parametrize("death", DEATHS)
async def test_row_1_waiting_on_backpressure(death: Death) -> None:
    async with RawPeer.facing(Peer(limits=Limits(outbox=64 * KIB))) as (raw, session):
        waiters: list[Awaitable[Any]] = [
            asyncio.create_task(session.request("any", bytes(8 * MIB))),
        ]
        assert (await raw.receive())[0] == BEGIN  # no more is read
        waiters += [
            *(asyncio.create_task(session.request("any")) for _ in range(10)),
            *(asyncio.create_task(session.notify("any")) for _ in range(10)),
            asyncio.create_task(session.ping()),
        ]
        await until(lambda: session.statistics().queued == 20)
        death(raw)
        await told(waiters, expected_of(death))
        await session.wait_closed()
        assert session.statistics().outbox_size == 0


@pytest.mark.parametrize("death", DEATHS)
async def test_row_1_in_the_middle_of_its_large_answer(death: Death) -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any"))
        await raw.receive_kind(REQUEST)
        raw.send([BEGIN, 1, [MIB]], attached=bytes(100_000))
        raw.send([PART, 1], attached=bytes(100_000))
        await raw.settle(session)
        death(raw)
        await told([task], expected_of(death))


async def test_row_1_what_it_had_answered_before_counts() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        tasks = [asyncio.create_task(session.request("any")) for _ in range(3)]
        ids = [(await raw.receive_kind(REQUEST))[1] for _ in range(3)]
        raw.send([3, ids[0] + 1, "done"], [3, ids[2] + 1, "done"])
        reset(raw)
        assert await tasks[0] == await tasks[2] == "done"
        assert isinstance(await failure(tasks[1]), PeerDied)


async def test_row_1_a_process_is_killed() -> None:
    client = Peer(limits=Limits(outbox=64 * KIB))
    async with served_by_a_process(client) as (session, process):
        assert await session.request("echo", [1]) == 1
        waiters: list[Awaitable[Any]] = [
            *(asyncio.create_task(session.request("never", timeout=None)) for _ in range(2000)),
            asyncio.create_task(session.request("echo", bytes(64 * MIB), timeout=None)),
        ]
        await until(lambda: session.statistics().queued > 900, session)
        process.send_signal(signal.SIGSTOP)  # so that nothing more is answered
        waiters.append(asyncio.create_task(session.ping(timeout=None)))
        await asyncio.sleep(0)
        process.kill()
        await told(waiters, PeerDied)
        assert isinstance(session.close_reason, PeerDied)


async def test_row_1_handlers_that_serve_the_dead_are_cancelled() -> None:
    peer = Peer()
    started, cancelled = asyncio.Event(), asyncio.Event()

    @peer.on_request
    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "work", None, None])
        await started.wait()
        reset(raw)
        async with asyncio.timeout(2):
            await cancelled.wait()
        await session.wait_closed()
