"""Rows 1, 4, 5, 9 and 25 of `docs/faults.md`, for streams, uploads and channels."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from asyncipc import Call, Channel, ChannelBroken, Limits, Peer, PeerDied, Session, SessionClosed
from tests.faults.support import served_by_a_process
from tests.faults.test_peer_death import DEATHS, Death, expected_of, told
from tests.session.support import (
    KIB,
    TRANSPORTS,
    Journal,
    RawPeer,
    failure,
    joined,
    settled,
    until,
)
from tests.session.test_streams import nothing_is_kept

REQUEST, REPLY, FAULT, ITEMS, CREDIT = 2, 3, 4, 7, 13


async def endless() -> AsyncIterator[str]:
    while True:
        yield "x" * 100


async def fill(channel: Channel) -> None:
    while True:
        await channel.send("x" * 1000)


@pytest.mark.parametrize("death", DEATHS)
async def test_row_1_everybody_who_waits_for_a_stream_is_told(death: Death) -> None:
    async with RawPeer.facing(Peer(), stream_credit=16 * KIB) as (raw, session):
        async with session.stream("rows") as rows, session.channel("chat") as channel:
            waiters: list[Awaitable[Any]] = [
                asyncio.create_task(anext(rows)),
                asyncio.create_task(channel.receive()),
                asyncio.create_task(session.request("store", endless())),
            ]
            waiters.append(asyncio.create_task(fill(channel)))
            await until(lambda: session.statistics().stalls == 2)
            death(raw)
            await told(waiters, expected_of(death))
            await session.wait_closed()
        assert nothing_is_kept(session)


@pytest.mark.parametrize("death", DEATHS)
async def test_row_1_handlers_hear_of_it(death: Death) -> None:
    peer, ended = Peer(), Journal()

    @peer.on_request
    async def rows() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 1000
        finally:
            ended.append("rows")

    @peer.on_request
    async def store(items: Any) -> None:
        try:
            async for _ in items:
                pass
        finally:
            ended.append("store")

    @peer.on_request
    async def chat(call: Call) -> None:
        try:
            while True:
                await call.channel().send("x" * 1000)
        finally:
            ended.append("chat")

    async with RawPeer.facing(peer, stream_credit=16 * KIB) as (raw, session):
        raw.send([REQUEST, 2, "rows", None, None, {"stream": True}])
        raw.send([REQUEST, 4, "store", [None], None, {"items": 0}])
        raw.send([REQUEST, 6, "chat", None, None, {"stream": True, "items": True}])
        await until(lambda: session.statistics().stalls == 2)
        death(raw)
        async with asyncio.timeout(2):
            await ended.reaches(3)
        await session.wait_closed()
        await until(lambda: nothing_is_kept(session))


async def test_row_1_a_process_is_killed_in_the_middle() -> None:
    async with (
        served_by_a_process(Peer()) as (session, process),
        session.stream("count", [5]) as rows,
        session.channel("deaf") as channel,
    ):
        assert await anext(rows) == 5

        async def read() -> None:
            async for _ in rows:
                pass

        tasks = [asyncio.create_task(read()), asyncio.create_task(fill(channel))]
        await until(lambda: session.statistics().stalls, session)
        process.kill()
        await told(list(tasks), PeerDied)


async def test_row_4_giving_up_before_the_request_has_left() -> None:
    """Behind a large request that nobody reads: what was to follow never leaves either."""
    async with RawPeer.facing(Peer()) as (raw, session):
        large = asyncio.create_task(session.request("any", bytes(1000 * KIB)))
        assert (await raw.receive())[0] == 9
        upload = asyncio.create_task(session.request("store", endless()))
        await until(lambda: session.statistics().pending == 2)
        assert session.statistics().items_sent == 0
        upload.cancel()
        assert isinstance(await failure(upload), asyncio.CancelledError)
        assert session.statistics().pending == 1
        large.cancel()
        await failure(large)
        await until(lambda: nothing_is_kept(session))


@pytest.mark.parametrize("answer", [[REPLY, 3, None], [FAULT, 3, 1, "failed"]])
async def test_row_5_the_end_and_the_cancel_cross(answer: list[Any]) -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        async with session.stream("rows"):
            assert (await raw.receive_kind(REQUEST))[1] == 2
            raw.send([ITEMS, 3, [1]], answer, [ITEMS, 3, [2]])
        await raw.settle(session)
        assert session.statistics().pending == 0
        assert nothing_is_kept(session)


async def test_row_9_a_stopped_process() -> None:
    async with (
        served_by_a_process(Peer()) as (session, process),
        session.channel("deaf") as channel,
        session.stream("count", [1]) as rows,
    ):
        await anext(rows)
        process.send_signal(signal.SIGSTOP)
        sending = asyncio.create_task(fill(channel))
        await until(lambda: session.statistics().stalls)
        assert session.statistics().outbox_size < 512 * KIB
        sending.cancel()
        await failure(sending)
        process.send_signal(signal.SIGCONT)
        assert await anext(rows) == 2


def serving() -> Peer:
    peer = Peer(limits=Limits(stream_credit=16 * KIB))

    @peer.on_request
    async def many(items: Any = None) -> AsyncIterator[int]:
        for number in range(100):
            yield number

    @peer.on_request
    async def chat(call: Call) -> None:
        async for item in call.channel():
            await call.channel().send(item)

    @peer.on_request
    async def store(items: Any) -> int:
        async for _ in items:
            return 1
        return 0

    return peer


async def read_all(session: Session) -> None:
    assert len([row async for row in session.stream("many")]) == 100


async def break_out(session: Session) -> None:
    async for _ in session.stream("many", {"items": endless()}):
        break


async def talk(session: Session) -> None:
    async with session.channel("chat") as channel:
        await channel.send(5)
        assert await channel.receive() == 5


async def upload(session: Session) -> None:
    assert await session.request("store", endless()) == 1


async def time_out(session: Session) -> None:
    async def read() -> None:
        async with asyncio.timeout(0), session.stream("many") as rows:
            await anext(rows)
            await asyncio.Event().wait()

    assert isinstance(await failure(read()), TimeoutError)


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_row_25_streams_that_end_in_every_way(over: str) -> None:
    ways = [read_all, break_out, talk, upload, time_out]
    async with joined(Peer(), serving(), over) as (session, other):
        await asyncio.gather(*(way(session) for way in ways * 60))
        await until(lambda: not session.statistics().pending, session)
        await until(lambda: nothing_is_kept(session, other), session)
        assert other.statistics().running == 0
        assert session.statistics().outbox_size == other.statistics().outbox_size == 0


async def test_what_is_sent_when_the_call_has_ended() -> None:
    peer = Peer()

    @peer.on_request
    async def leave(call: Call) -> None:
        call.channel()

    async with joined(Peer(), peer) as (session, _), session.channel("leave") as channel:
        await until(lambda: not session.statistics().pending, session)
        await settled(session)
        assert isinstance(await failure(channel.send(1)), ChannelBroken)
        await session.aclose()
        assert not isinstance(await failure(channel.send(1)), SessionClosed)
