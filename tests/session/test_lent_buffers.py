"""Buffers that their owner fills anew: when that may be done, and that nobody sees it."""

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy
import pytest

from asyncipc import Call, Limits, Peer, message
from tests.session.support import KIB, MIB, TRANSPORTS, joined, talking


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
