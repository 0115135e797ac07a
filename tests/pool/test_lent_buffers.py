"""Arguments with buffers that their owner fills anew: when that may be done."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from asyncipc import shared_array
from asyncipc.pool.payload import OUT_OF_BAND
from asyncipc.pool.work import Packer
from tests.pool import support
from tests.pool.support import Reports, in_workers, open_pool

numpy: Any = pytest.importorskip("numpy")

MIB = 1024 * 1024


def contents(array: Any) -> list[int]:
    return sorted(set(array.tobytes()))


def contents_as_item(array: Any) -> Iterator[list[int]]:
    yield contents(array)


def refilled(size: int) -> Iterator[Any]:
    array = numpy.zeros(size, numpy.uint8)
    for number in range(20):
        array[:] = number
        yield array


async def refilled_async(size: int) -> AsyncIterator[Any]:
    for array in refilled(size):
        await asyncio.sleep(0)
        yield array


@pytest.mark.parametrize("chunk_size", [None, 1, 8])
@pytest.mark.parametrize("size", [100, 20_000, 400_000])
@pytest.mark.parametrize("items", [refilled, refilled_async])
@in_workers
async def test_a_map_over_what_fills_its_array_anew(
    items: Any, size: int, chunk_size: int | None
) -> None:
    async with open_pool(2) as pool:
        results = [r async for r in pool.map(contents, items(size), chunk_size=chunk_size)]
        assert results == [[number] for number in range(20)]


@dataclass
class Frame:
    number: int
    pixels: Any


def contents_of_frame(frame: Frame) -> tuple[int, list[int]]:
    return frame.number, contents(frame.pixels)


@pytest.mark.parametrize("chunk_size", [None, 8])
@in_workers
async def test_a_map_over_objects_that_share_an_array(chunk_size: int | None) -> None:
    frames = (Frame(number, array) for number, array in enumerate(refilled(100)))
    async with open_pool(2) as pool:
        results = [r async for r in pool.map(contents_of_frame, frames, chunk_size=chunk_size)]
        assert results == [(number, [number]) for number in range(20)]


@in_workers
async def test_arrays_that_are_all_there_travel_together() -> None:
    arrays = [numpy.full(3, number, numpy.uint8) for number in range(20)]
    async with open_pool() as pool:
        results = [r async for r in pool.map(contents, arrays, chunk_size=20)]
        assert results == [[number] for number in range(20)]
        assert pool.statistics().submitted == 1


@pytest.mark.parametrize("size", [100, 20_000, 400_000, 8 * MIB])
@in_workers
async def test_an_array_that_was_submitted_may_be_changed(size: int, reports: Reports) -> None:
    array = numpy.zeros(size, numpy.uint8)
    async with open_pool() as pool:
        task = pool.submit(contents, array)
        array[:] = 1
        assert await task == [0]
        async with pool.stream(contents_as_item, array) as items:
            array[:] = 2
            assert await anext(items) == [1]
        # So may one that waits for a worker.
        before = pool.submit(support.ask, reports.address)
        task = pool.submit(contents, array)
        reports.answer(await reports.next())
        array[:] = 3
        await before
        assert await task == [2]


def test_what_is_copied() -> None:
    array, shared = numpy.zeros(OUT_OF_BAND, numpy.uint8), shared_array(OUT_OF_BAND, numpy.uint8)
    packer = Packer()
    for lasting in (False, True):
        *_, first, second = packer.pack_call(contents, (array, shared), {}, lasting=lasting).params
        assert numpy.shares_memory(array, first.buffer) == lasting  # who runs it waits for its end
        assert numpy.shares_memory(shared, second.buffer)  # its owner has promised not to
