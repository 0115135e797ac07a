"""Buffers that their owner fills anew: when that may be done, and that nobody sees it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy
import pytest

from asyncipc import Call, Limits, Peer, PeerDied, RequestTimeout, message
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

CANCEL, BEGIN, PART, RETRACT = 6, 9, 10, 11


@message
@dataclasses.dataclass
class Frame:
    number: int
    data: Any


SHAPES: dict[str, Callable[[int, Any], Any]] = {
    "a dict": lambda number, buffer: {"n": number, "data": buffer},
    "a tuple": lambda number, buffer: (number, buffer),
    "deep inside": lambda number, buffer: [number, {"all": [{"data": (buffer,)}]}],
    "a message": Frame,
    "at the end of a long list": lambda number, buffer: [number] * 100 + [buffer],
}

BUFFERS: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(3),
    "memoryview": lambda: memoryview(bytearray(3)),
    "array": lambda: numpy.zeros(3, numpy.uint8),
    "large array": lambda: numpy.zeros(300 * KIB, numpy.uint8),
}


def contents(item: Any) -> set[int]:
    """Of the buffer, wherever in an item it is."""
    while isinstance(item, dict | list | tuple | Frame):
        match item:
            case dict():
                item = list(item.values())[-1]
            case Frame():
                item = item.data
            case _:
                item = item[-1]
    return set(bytes(item))


def refilled(shape: Callable[[int, Any], Any], buffer: Any) -> Iterator[Any]:
    """Six items, in each the same buffer with the number of the item."""
    for number in range(6):
        memoryview(buffer)[:] = bytes([number]) * len(buffer)
        yield shape(number, buffer)


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("way", ["async", "plain", "thread"])
async def test_a_buffer_inside_of_items(
    shape: Callable[[int, Any], Any], buffer: Callable[[], Any], way: str
) -> None:
    peer = Peer()

    @peer.on_request("async")
    async def in_turns() -> AsyncIterator[Any]:
        for item in refilled(shape, buffer()):
            yield item

    def plain() -> Iterator[Any]:
        yield from refilled(shape, buffer())

    peer.on_request("plain")(plain)
    peer.on_request("thread", thread=True)(plain)

    async with talking(peer) as session, session.stream(way) as items:
        assert [contents(item) async for item in items] == [{number} for number in range(6)]


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_buffer_inside_of_what_is_uploaded(over: str) -> None:
    peer = Peer(limits=Limits(stream_credit=16 * KIB))

    @peer.on_request
    async def store(items: AsyncIterator[Any]) -> list[list[int]]:
        return [sorted(contents(item)) async for item in items]

    async def blocks() -> AsyncIterator[Any]:
        for item in refilled(SHAPES["a dict"], bytearray(20 * KIB)):
            yield item

    async with joined(Peer(), peer, over) as (session, _):
        assert await session.request("store", blocks()) == [[number] for number in range(6)]


# -- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
@pytest.mark.parametrize("size", [KIB, 20 * KIB, 300 * KIB, 8 * MIB])
async def test_a_buffer_that_a_stream_was_opened_with(over: str, size: int) -> None:
    peer = Peer()

    @peer.on_request
    async def rows(*buffers: Any) -> AsyncIterator[list[int]]:
        for buffer in buffers:
            yield sorted(set(bytes(buffer)))

    @peer.on_request
    async def chat(*buffers: Any, call: Call) -> None:
        async with call.channel() as channel:
            async for row in rows(*buffers):
                await channel.send(row)

    def make() -> list[Any]:
        return [bytearray(size), memoryview(bytearray(size)), numpy.zeros(size, numpy.uint8)]

    async with talking(peer, over) as session:
        buffers = make()
        async with session.stream("rows", buffers) as items:
            fill_anew(buffers)
            assert [row async for row in items] == [[0]] * 3
        buffers = make()
        async with session.channel("chat", buffers) as channel:
            fill_anew(buffers)
            assert [row async for row in channel] == [[0]] * 3


def fill_anew(buffers: list[Any]) -> None:
    for buffer in buffers:
        memoryview(buffer)[:] = b"\7" * len(buffer)


# -- after a request was given up ----------------------------------------------------------------


def fill_anew_and_grow(buffer: bytearray) -> None:
    buffer[:] = b"\7" * len(buffer)
    buffer.append(7)  # BufferError if anybody still looks at it


@pytest.mark.parametrize("way", ["timeout", "cancel"])
@pytest.mark.parametrize("size", [255_000, 3 * MIB])
async def test_a_buffer_of_a_request_that_was_given_up(size: int, way: str) -> None:
    """The other side does not read, so that a part of it stands in the transport."""
    async with RawPeer.facing(Peer()) as (raw, session):
        raw.pause()
        buffer, other = bytearray(size), bytearray(size)
        asking = [
            asyncio.create_task(session.request("take", [each], timeout=0.05))
            for each in (buffer, other)  # the second waits behind the first
        ]
        await until(lambda: session.statistics().outbox_size)
        if way == "cancel":
            for task in asking:
                task.cancel()
        error = RequestTimeout if way == "timeout" else asyncio.CancelledError
        for task in asking:
            assert isinstance(await failure(task), error)
        asking.clear()
        fill_anew_and_grow(buffer)
        fill_anew_and_grow(other)
        raw.resume()
        kind, attached = 0, b""
        while kind not in (CANCEL, RETRACT):
            kind, *_, part = await raw.receive()
            if kind in (BEGIN, PART):
                attached += part
        assert attached.count(0) > 200_000
        assert attached.count(7) == 0


async def test_a_buffer_of_a_request_that_can_have_no_answer() -> None:
    """The other side has ended its output, and still reads."""
    async with RawPeer.facing(Peer()) as (raw, session):
        raw.pause()
        buffer = bytearray(3 * MIB)
        asking = asyncio.create_task(session.request("take", [buffer], timeout=None))
        await until(lambda: session.statistics().outbox_size)
        raw.writer.write_eof()
        assert isinstance(await failure(asking), PeerDied)
        del asking
        fill_anew_and_grow(buffer)
        raw.resume()
        attached = b""
        while (message := await raw.receive())[0] in (BEGIN, PART):
            attached += message[-1]
        assert message[0] == RETRACT
        assert attached.count(7) == 0


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_cancelled_request_over_every_transport(over: str) -> None:
    peer, seen = Peer(), Journal()
    peer.on_request("take")(lambda buffer: seen.append(set(buffer)))
    async with joined(Peer(), peer, over) as (session, other):
        for turns in range(8):
            buffer = bytearray(600 * KIB)
            task = asyncio.create_task(session.request("take", [buffer]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            del task
            fill_anew_and_grow(buffer)
        await settled(session, other)
        assert set().union(*seen) <= {0}
