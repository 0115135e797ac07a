"""Channels: items both ways within one call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.abc import ObjectStream

from asyncipc import (
    Call,
    Channel,
    ChannelBroken,
    ChannelClosed,
    ChannelEnded,
    EncodeError,
    FrameTooLarge,
    InvalidParams,
    IPCError,
    Limits,
    Peer,
    PeerDied,
    RemoteError,
    Session,
    SessionClosed,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Journal,
    RawPeer,
    failure,
    joined,
    settled,
    talking,
    until,
)
from tests.session.test_streams import nothing_is_kept

REQUEST, REPLY, CANCEL, ITEMS, END, STOP = 2, 3, 6, 7, 8, 68


def echoing() -> tuple[Peer, Journal]:
    """A peer whose handler sends back what it receives, and says goodbye at the end."""
    peer, news = Peer(), Journal()

    @peer.on_request
    async def echo(call: Call) -> None:
        try:
            async with call.channel() as channel:
                assert call.channel() is channel
                async for item in channel:
                    await channel.send(item)
                await channel.send("goodbye")
        except asyncio.CancelledError:
            news.append("cancelled")
            raise
        finally:
            news.append("over")

    return peer, news


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_both_ways_with_half_close(over: str) -> None:
    peer, news = echoing()
    async with joined(Peer(), peer, over) as (session, other):
        async with session.channel("echo") as channel:
            assert isinstance(channel, Channel)
            assert isinstance(channel, ObjectStream)
            for number in range(3):
                await channel.send(number)
                assert await channel.receive() == number
            await channel.send("last")
            await channel.send_eof()
            await channel.send_eof()
            assert [item async for item in channel] == ["last", "goodbye"]
            with pytest.raises(ChannelEnded):
                await channel.receive()
            with pytest.raises(ChannelClosed):
                await channel.send("more")
        assert news == ["over"]
        assert session.statistics().cancels_sent == 0
        await until(lambda: nothing_is_kept(session, other), session)


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_an_end_that_was_said_before_the_request_has_left(over: str) -> None:
    peer, _ = echoing()
    peer.on_request("length")(lambda data: len(data))  # noqa: PLW0108 - its parameter is read
    async with talking(peer, over, first=Peer(limits=Limits(outbox=64 * MIB))) as session:
        large = asyncio.create_task(session.request("length", bytes(16 * MIB)))
        await asyncio.sleep(0)
        async with session.channel("echo") as channel:
            await channel.send_eof()
            assert [item async for item in channel] == ["goodbye"]
        assert await large == 16 * MIB


async def test_many_items_both_ways_at_once() -> None:
    peer, _ = echoing()
    first = Peer(limits=Limits(stream_credit=16 * KIB))
    async with talking(peer, first=first) as session, session.channel("echo") as channel:

        async def send() -> None:
            for number in range(5000):
                await channel.send({"n": number, "text": "x" * (number % 50)})
            await channel.send_eof()

        sending = asyncio.create_task(send())
        items = [item async for item in channel]
        assert items.pop() == "goodbye"
        assert [item["n"] for item in items] == list(range(5000))
        await sending


async def test_the_handler_closes_its_end_first() -> None:
    peer = Peer()

    @peer.on_request
    async def listen(call: Call) -> list[Any]:
        channel = call.channel()
        await channel.send("welcome")
        await channel.send_eof()
        got = [item async for item in channel]
        assert got == [1, 2]
        return got

    async with talking(peer) as session, session.channel("listen") as channel:
        assert [item async for item in channel] == ["welcome"]
        await channel.send(1)
        await channel.send(2)
        await channel.send_eof()
        await until(lambda: not session.statistics().pending, session)


async def test_parameters_and_a_generator_at_the_other_end() -> None:
    peer = Peer()

    @peer.on_request
    async def doubled(factor: int, call: Call) -> AsyncIterator[int]:
        async for item in call.channel():
            yield item * factor

    async with talking(peer) as session, session.channel("doubled", {"factor": 3}) as channel:
        await channel.send(5)
        assert await channel.receive() == 15


async def test_leaving_cancels_the_handler() -> None:
    peer, news = echoing()
    async with joined(Peer(), peer) as (session, other):
        async with session.channel("echo") as channel:
            await channel.send(1)
            assert await channel.receive() == 1
            receiving = asyncio.create_task(channel.receive())
            await settled(session)
        assert isinstance(await failure(receiving), ChannelClosed)
        await news.reaches(2)
        assert news == ["cancelled", "over"]
        for use in (channel.receive, channel.send_eof, lambda: channel.send(1)):
            assert isinstance(await failure(use()), ChannelClosed)
        await channel.aclose()
        await until(lambda: nothing_is_kept(session, other), session)


def sinking() -> tuple[Peer, Journal, asyncio.Event]:
    """A peer whose handler receives, once it may, and tells what came and how it ended."""
    peer, news, go_on = Peer(limits=Limits(stream_credit=16 * KIB)), Journal(), asyncio.Event()

    @peer.on_request
    async def sink(_data: bytes, call: Call) -> None:
        async with call.channel() as channel:
            await go_on.wait()
            try:
                items = [item async for item in channel]
            except asyncio.CancelledError:
                news.append("cancelled")
                raise
            news.append(len(items))
            error = await failure(send_for_ever(channel))
            news.append(type(error))

    return peer, news, go_on


async def send_for_ever(channel: Channel) -> None:
    while True:
        await channel.send("x" * 1000)


@pytest.mark.parametrize("size", [1, 3 * MIB])
@pytest.mark.parametrize("over", TRANSPORTS)
async def test_leaving_after_the_end_lets_the_handler_finish(over: str, size: int) -> None:
    peer, news, go_on = sinking()
    async with joined(Peer(), peer, over) as (session, other), asyncio.timeout(20):
        async with session.channel("sink", [bytes(size)]) as channel:
            for number in range(15):
                await channel.send(str(number) * 100)
            await channel.send_eof()
            asyncio.get_running_loop().call_soon(go_on.set)
        # It got everything, and could not wait for a reader that has left.
        assert news == [15, ChannelBroken]
        assert session.statistics().cancels_sent == 0
        for use in (channel.receive, channel.send_eof, lambda: channel.send(1)):
            assert isinstance(await failure(use()), ChannelClosed)
        await until(lambda: nothing_is_kept(session, other), session)
        assert session.statistics().pending == 0


@pytest.mark.parametrize("way", ["cancel", "exception", "forcefully", "timeout"])
async def test_leaving_after_the_end_otherwise_cancels_the_handler(way: str) -> None:
    peer, news, _ = sinking()

    async def leave(session: Session) -> None:
        timeout = 0.05 if way == "timeout" else None
        async with session.channel("sink", [b""], timeout=timeout) as channel:
            await channel.send_eof()
            if way == "exception":
                raise ZeroDivisionError
            if way == "forcefully":
                await anyio.aclose_forcefully(channel)

    async with joined(Peer(), peer) as (session, other), asyncio.timeout(20):
        leaving = asyncio.create_task(leave(session))
        if way == "cancel":
            await until(lambda: other.statistics().running, session)
            leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: session.statistics().cancels_sent == 1, session)
        await until(lambda: nothing_is_kept(session, other), session)
        assert news == []
        expected = {"cancel": asyncio.CancelledError, "exception": ZeroDivisionError}.get(way)
        if expected is None:
            await leaving
        else:
            assert isinstance(await failure(leaving), expected)


async def test_a_handler_that_closes_its_end_tells_who_sends() -> None:
    peer, go_on = Peer(limits=Limits(stream_credit=16 * KIB)), asyncio.Event()

    @peer.on_request
    async def leave(call: Call) -> None:
        async with call.channel() as channel:
            await channel.send(await channel.receive())
        await go_on.wait()

    async with joined(Peer(), peer) as (session, other), asyncio.timeout(20):
        async with session.channel("leave") as channel:
            await channel.send("first")
            error = await failure(send_for_ever(channel))
            assert isinstance(error, ChannelBroken)
            assert [item async for item in channel] == ["first"]
            assert other.statistics().running == 1
            assert isinstance(await failure(channel.send("more")), ChannelBroken)
            go_on.set()
        await until(lambda: nothing_is_kept(session, other), session)


async def test_a_caller_that_takes_no_more_stops_a_generator_and_an_upload() -> None:
    """Spoken by hand: the library leaves a stream by a cancel."""
    peer, closed = Peer(), Journal()

    @peer.on_request
    async def produce() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 1000
        finally:
            closed.append("closed")

    async with RawPeer.facing(peer, stream_credit=16 * KIB) as (raw, session):
        raw.send([STOP, 2], [STOP, 3])  # of no call
        raw.send([REQUEST, 2, "produce", None, None, {"stream": True}])
        await raw.receive_kind(ITEMS)
        raw.send([STOP, 2])
        assert await raw.receive_kind(REPLY) == [REPLY, 3, None]
        await closed.reaches(1)

        async def items() -> AsyncIterator[int]:
            try:
                yield 1
                await asyncio.get_running_loop().create_future()
            finally:
                closed.append("closed")

        asking = asyncio.create_task(session.request("store", [items()]))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        await raw.receive_kind(ITEMS)
        raw.send([STOP, wire_id + 1])
        await raw.settle(session)
        raw.send([REPLY, wire_id + 1, "enough"])
        assert await asking == "enough"
        await closed.reaches(2)


async def test_a_dropped_channel_ends_its_call() -> None:
    peer, news = echoing()
    async with talking(peer) as session:
        channel = session.channel("echo")
        await channel.__aenter__()
        del channel
        await news.reaches(1)


async def test_a_sender_that_waits_for_credit_hears_of_the_end() -> None:
    peer, release = Peer(limits=Limits(stream_credit=16 * KIB)), asyncio.Event()

    @peer.on_request
    async def deaf(call: Call) -> None:
        call.channel()
        await release.wait()

    async with talking(peer) as session, session.channel("deaf") as channel:

        async def send() -> None:
            while True:
                await channel.send("x" * 1000)

        sending = asyncio.create_task(send())
        await until(lambda: session.statistics().stalls, session)
        assert session.statistics().items_sent == 17
        release.set()
        error = await failure(sending)
        assert isinstance(error, ChannelBroken)
        assert isinstance(error, anyio.BrokenResourceError)
        assert isinstance(error, IPCError)
        assert isinstance(await failure(channel.receive()), ChannelEnded)


async def test_a_handler_that_fails() -> None:
    peer = Peer()

    @peer.on_request
    async def fail(call: Call) -> None:
        await call.channel().send("first")
        raise ValueError("no luck")

    async with talking(peer) as session, session.channel("fail") as channel:
        assert await channel.receive() == "first"
        with pytest.raises(RemoteError, match="no luck"):
            await channel.receive()
        with pytest.raises(RemoteError, match="no luck"):
            await channel.send(1)


async def test_an_item_that_cannot_be_sent_breaks_nothing() -> None:
    peer, _ = echoing()
    small = Peer(limits=Limits(max_message=64 * KIB))
    async with (
        joined(small, peer) as (session, other),
        session.channel("echo") as channel,
    ):
        with pytest.raises(EncodeError, match="object"):
            await channel.send(object())
        await channel.send(1)
        assert await channel.receive() == 1

        @session.on_request
        async def talk(call: Call) -> None:
            async for item in call.channel():
                await call.channel().send(item)

        async with other.channel("talk") as back:
            with pytest.raises(FrameTooLarge, match=r"Limits.max_message is 65536"):
                await back.send(bytes(64 * KIB))
            await back.send(2)
            assert await back.receive() == 2


async def test_a_handler_whose_caller_opened_no_channel() -> None:
    peer, news = echoing()
    async with talking(peer) as session:
        expected = r"echo\(\) talks through a channel: call it with session.channel"
        with pytest.raises(InvalidParams, match=expected):
            await session.request("echo")
        with pytest.raises(InvalidParams, match=expected):
            await anext(session.stream("echo"))
        assert news == ["over"] * 2


async def test_a_channel_is_used_within_async_with() -> None:
    async with talking(Peer()) as session:
        channel = session.channel("echo")
        with pytest.raises(ChannelClosed, match="not open yet"):
            await channel.send(1)
        with pytest.raises(ChannelClosed, match="not open yet"):
            await channel.receive()
        with pytest.raises(TypeError, match="a channel sends items by itself"):
            async with session.channel("echo", [channel]):
                pass
        assert session.statistics().requests_sent == 0


async def test_on_the_wire() -> None:
    async with RawPeer.facing(Peer()) as (raw, session), session.channel("chat", [1]) as channel:
        assert await raw.receive() == [
            *[REQUEST, 2, "chat", [1], None],
            {"stream": True, "items": True},
        ]
        await channel.send("one")
        await channel.send("two")
        assert [await raw.receive(), await raw.receive()] == [
            [ITEMS, 2, ["one"]],
            [ITEMS, 2, ["two"]],
        ]
        await channel.send_eof()
        assert await raw.receive() == [END, 2]
        raw.send([ITEMS, 3, ["three", 4]], [END, 3])
        assert [item async for item in channel] == ["three", 4]
        raw.send([REPLY, 3, None])
        await raw.settle(session)


async def test_the_other_side_dies() -> None:
    async with RawPeer.facing(Peer(), stream_credit=16 * KIB) as (raw, session):
        async with session.channel("chat") as channel:
            await channel.send("x" * 20 * KIB)
            waiting = [
                asyncio.create_task(channel.send("more")),
                asyncio.create_task(channel.receive()),
            ]
            await raw.settle(session)
            raw.close()
            for task in waiting:
                assert isinstance(await failure(task), PeerDied)
        await session.wait_closed()


async def test_the_caller_dies() -> None:
    """Also where it only ended its input: a handler must not wait for items for ever."""
    peer, errors = Peer(), Journal()

    @peer.on_request
    async def chat(call: Call) -> None:
        try:
            async for _ in call.channel():
                pass
        except SessionClosed as error:
            errors.append(error)
            raise

    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "chat", None, None, {"stream": True, "items": True}])
        await raw.settle(session)
        raw.writer.write_eof()
        await errors.reaches(1)
        assert isinstance(errors[0], PeerDied)
        await session.wait_closed()


async def test_a_thousand_channels_behind_a_large_request() -> None:
    """Each waits until it has left, and all are told then, one after the other."""
    limits = Limits(shared_memory_above=0)
    peer = Peer(timeout=None, limits=limits)

    @peer.on_request
    def store(data: bytes) -> int:
        return len(data)

    @peer.on_request("echo")
    async def echo(call: Call) -> None:
        async with call.channel() as channel:
            async for item in channel:
                await channel.send(item)

    async def talk(session: Session, number: int) -> list[Any]:
        async with session.channel("echo") as channel:
            await channel.send(number)
            await channel.send_eof()
            return [item async for item in channel]

    async with joined(Peer(timeout=None, limits=limits), peer, "socketpair") as (session, _):
        stored = asyncio.ensure_future(session.request("store", [bytes(900 * KIB)]))
        await asyncio.sleep(0)
        numbers = range(1020)
        talks = await asyncio.gather(*(talk(session, number) for number in numbers))
        assert talks == [[number] for number in numbers]
        assert await stored == 900 * KIB
