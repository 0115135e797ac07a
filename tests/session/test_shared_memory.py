"""Buffers and arrays: what arrives does not depend on how it travels, and memory comes back."""

import asyncio
import errno
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy
import pytest

from asyncipc import (
    EncodeError,
    Limits,
    Peer,
    PeerDied,
    RemoteError,
    Session,
    shared_array,
    shared_buffer,
)
from asyncipc.transport.shared_memory import ArenaImage
from tests.child import python
from tests.programs import run
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Journal,
    failure,
    joined,
    loop_errors,
    settled,
    talking,
    until,
)

SIZES = (0, 10, 20 * KIB, 300 * KIB, 3 * MIB)


def echoing(**options: Any) -> Peer:
    peer = Peer(timeout=None, **options)
    peer.on_request("echo")(lambda value: value)
    return peer


async def all_returned(*sessions: Session) -> None:
    """Wait until both sides have given back every region."""
    await until(lambda: not any(s.statistics().arena_used for s in sessions), *sessions)


# -- types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
@pytest.mark.parametrize("size", SIZES)
async def test_type_and_mutability_depend_on_neither_size_nor_transport(
    over: str, size: int
) -> None:
    async with joined(Peer(timeout=None), echoing(), over) as (session, other):
        data = os.urandom(size)
        result = await session.request("echo", [data])
        assert type(result) is bytes
        assert result == data
        result = await session.request("echo", [bytearray(data)])
        assert type(result) is bytearray
        assert result == data
        result = await session.request("echo", [memoryview(data)])
        assert type(result) is memoryview
        assert result.readonly
        assert (result.format, result.ndim) == ("B", 1)
        assert result == data
        array = numpy.frombuffer(data, numpy.uint8)
        result = await session.request("echo", [array])
        assert type(result) is numpy.ndarray
        assert result.flags.writeable
        assert numpy.array_equal(result, array)
        result += 1
        assert bytes(array) == data
        del result
        shared = over in ("socketpair", "unix") and size >= 256 * KIB
        assert (session.statistics().shared_bytes_sent > 0) == shared
        assert session.statistics().shared_bytes_sent == other.statistics().shared_bytes_received
        await all_returned(session, other)


ARRAYS = {
    "0-d": numpy.array(5),
    "empty": numpy.zeros((3, 0, 2)),
    "booleans": numpy.array([True, False]),
    "big endian": numpy.arange(10, dtype=">u4"),
    "half precision": numpy.arange(10, dtype=numpy.float16),
    "complex": numpy.array([1 + 2j, 3]),
    "text": numpy.array(["ab", "c"]),
    "bytes": numpy.array([b"ab", b"c"]),
    "dates": numpy.arange("2020-01", "2021-01", dtype="datetime64[D]"),
    "spans": numpy.array([1, 2], dtype="timedelta64[ns]"),
    "void": numpy.zeros(3, "V5"),
    "records": numpy.array([(1, 2.5, [1, 2])], dtype=[("a", "<i4"), ("b", "f8"), ("c", "i2", 2)]),
    "padded records": numpy.zeros(2, numpy.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nested records": numpy.zeros(2, [("a", [("b", "i4"), ("c", "f4", (2, 3))])]),
    "columns first": numpy.asfortranarray(numpy.arange(12).reshape(3, 4)),
    "every third": numpy.arange(100).reshape(10, 10)[::3, ::-2],
    "read-only": numpy.broadcast_to(numpy.arange(3), (4, 3)),
    "many dimensions": numpy.zeros((1,) * 20 + (2,)),
}


def enlarged(array: Any) -> tuple[Any, ...]:
    """Many of an array, of as many dimensions: in both orders, and in neither."""
    many = numpy.concatenate([numpy.atleast_1d(array)] * 10_000)
    return many, numpy.asfortranarray(many), many[::-1]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("over", ["socketpair", "pipes"])
async def test_arrays_of_any_dtype_and_shape(codec: str, over: str) -> None:
    limits = Limits(shared_memory_above=1)
    async with talking(echoing(limits=limits), over, first=Peer(codec=codec, limits=limits)) as s:
        for name, array in ARRAYS.items():
            for sent in (array, *enlarged(array)):
                result = await s.request("echo", [sent])
                assert type(result) is numpy.ndarray, name
                assert result.dtype == sent.dtype, name
                assert result.shape == sent.shape, name
                assert result.flags.writeable, name
                if sent.dtype.names is None:
                    assert result.tobytes() == sent.tobytes(), name
                else:  # what is between fields may be anything
                    assert numpy.array_equal(result, sent), name
                if not (sent.flags.f_contiguous and sent.size):
                    assert result.flags.c_contiguous, name
                else:
                    assert result.flags.f_contiguous, name
                    assert result.flags.c_contiguous == sent.flags.c_contiguous, name
        assert (s.statistics().shared_bytes_sent > MIB) == (over == "socketpair")


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (numpy.array([None]), "it holds Python objects"),
        (numpy.zeros(1, [("a", object)]), "it holds Python objects"),
        (numpy.ndarray(3, "S0", b""), "an array of |S0 with 3 items: they have no bytes"),
        (numpy.ma.masked_array([1]), "numpy.ma.MaskedArray cannot be sent"),
    ],
)
async def test_arrays_that_cannot_be_sent(array: Any, complaint: str) -> None:
    async with talking(echoing()) as session:
        error = await failure(session.request("echo", {"value": array}))
        assert isinstance(error, EncodeError)
        assert str(error).startswith("params.value: ")
        assert complaint in str(error)


def test_numpy_is_imported_by_who_uses_it_alone() -> None:
    code = """
import asyncio, sys, asyncipc
async def main():
    one, other = asyncipc.Peer(), asyncipc.Peer()
    other.on_request("echo")(lambda value: value)
    async with asyncipc.memory_pair(one, other) as (session, _):
        assert await session.request("echo", bytes(500_000)) == bytes(500_000)
asyncio.run(main())
assert "numpy" not in sys.modules
"""
    finished = run("-c", code)
    assert (finished.stderr, finished.returncode) == ("", 0)


# -- ownership -----------------------------------------------------------------------------------


async def test_the_sender_may_change_its_buffer_when_it_was_handed_over() -> None:
    peer, taken = Peer(), Journal()
    peer.on_notification("take")(taken.append)
    answer = numpy.zeros(MIB, numpy.uint8)

    @peer.on_request
    def fill(value: int) -> Any:
        answer[:] = value
        return answer

    async with talking(peer) as session:
        array, view = numpy.zeros(MIB, numpy.uint8), bytearray(2 * MIB)
        for value in range(5):
            array[:] = value
            view[:] = bytes([value]) * len(view)
            await session.notify("take", [array])
            await session.notify("take", [memoryview(view)])
        array[:] = 99
        view[:] = bytes(len(view))
        await taken.reaches(10)
        assert [set(bytes(entry)) for entry in taken] == [{n} for n in range(5) for _ in range(2)]
        results = await asyncio.gather(*(session.request("fill", n) for n in range(5)))
        assert [set(bytes(result)) for result in results] == [{n} for n in range(5)]


async def test_a_region_comes_back_when_the_last_view_of_it_is_gone() -> None:
    peer, kept = Peer(), Journal()

    @peer.on_request
    def keep(array: Any) -> int:
        kept.append(array[100:200].view(numpy.int8)[::2])
        return len(array)

    async with joined(Peer(), peer) as (session, other):
        assert await session.request("keep", [numpy.ones(MIB, numpy.uint8)]) == MIB
        gc.collect()
        await settled(session, other)
        assert session.statistics().arena_used == MIB
        assert kept[0].sum() == 50
        assert await session.request("keep", [numpy.full(MIB, 2, numpy.uint8)]) == MIB
        assert kept[0].sum() == 50  # it is not used again
        assert session.statistics().arena_used == 2 * MIB
        kept.clear()
        await all_returned(session)


async def test_what_a_receiver_wrote_is_not_there_in_the_next_message() -> None:
    peer = Peer()

    @peer.on_request
    def scribble(array: Any) -> int:
        found = int(array.sum())
        array[:] = 255
        return found

    async with talking(peer) as session:
        for value in range(5):
            array = numpy.full(MIB, value, numpy.uint8)
            assert await session.request("scribble", [array]) == value * MIB
            await all_returned(session)
        assert session.statistics().shared_bytes_sent == 5 * MIB


async def test_a_region_that_cannot_be_forgotten_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel has no reason to refuse, so its answer is made up."""
    peer = Peer()

    @peer.on_request
    def scribble(array: Any) -> int:
        found = int(array.sum())
        array[:] = 255
        return found

    def refuse(_image: ArenaImage, _offset: int, _length: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    async with joined(Peer(), peer) as (session, other):
        with monkeypatch.context() as patch, loop_errors() as errors:
            patch.setattr(ArenaImage, "forget", refuse)
            for value in (1, 2):
                array = numpy.full(MIB, value, numpy.uint8)
                assert await session.request("scribble", [array]) == value * MIB
                await settled(session, other)
            assert session.statistics().arena_used == 2 * MIB
        assert not errors
        assert "a region of shared memory is lost" in caplog.text
        for value in (3, 4):
            array = numpy.full(MIB, value, numpy.uint8)
            assert await session.request("scribble", [array]) == value * MIB
            await until(lambda: session.statistics().arena_used == 2 * MIB, session, other)


async def test_arrays_as_items() -> None:
    """Large ones through shared memory, within the credit of the stream; each its own."""
    peer = Peer()

    @peer.on_request
    async def frames() -> AsyncIterator[Any]:
        frame = numpy.zeros(300 * KIB, numpy.uint8)
        for number in range(10):
            frame[:] = number  # the one before was handed over when this is asked for
            yield frame
            yield numpy.full(3, number)

    async with joined(Peer(), peer) as (session, other):
        number = 0
        async with session.stream("frames") as items:
            async for large in items:
                small = await anext(items)
                assert (large == number).all()
                assert (small == number).all()
                assert large.flags.writeable
                large[:] = 255
                number += 1
        del large
        assert number == 10
        assert other.statistics().shared_bytes_sent == 10 * 300 * KIB
        assert other.statistics().stalls
        await all_returned(session, other)


@pytest.mark.parametrize("make", [bytearray, lambda size: memoryview(bytearray(size))])
async def test_a_buffer_filled_anew_for_each_item(make: Any) -> None:
    peer = Peer()

    @peer.on_request
    async def blocks() -> AsyncIterator[Any]:
        block = make(10)
        for number in range(10):
            block[0] = number
            yield block

    async with talking(peer, "memory") as session, session.stream("blocks") as items:
        assert [item[0] async for item in items] == list(range(10))


async def test_views_outlive_the_session() -> None:
    async with talking(echoing()) as session:
        array = await session.request("echo", [numpy.arange(MIB)])
        view = await session.request("echo", [memoryview(bytes(MIB))])
    array += 1
    assert array[-1] == MIB
    assert view == bytes(MIB)


async def test_a_receiver_that_keeps_every_view() -> None:
    """The arena is bounded; beyond it everything goes on in the stream."""
    peer, kept = Peer(timeout=None), Journal()
    peer.on_request("keep")(kept.append)
    limits = Limits(arena=4 * MIB)
    async with joined(Peer(timeout=None, limits=limits), peer) as (session, _):
        for value in range(8):
            await session.request("keep", [numpy.full(MIB, value, numpy.uint8)])
        assert session.statistics().arena_used == 4 * MIB
        assert session.statistics().shared_bytes_sent == 4 * MIB
        assert [set(bytes(array)) for array in kept] == [{value} for value in range(8)]
        kept.clear()
        await all_returned(session)
        await session.request("keep", [numpy.zeros(MIB, numpy.uint8)])
        assert session.statistics().shared_bytes_sent == 5 * MIB


async def test_an_arena_larger_than_that_of_the_receiver() -> None:
    """It is not mapped there; everything arrives as ever, and comes back."""
    peer = echoing(limits=Limits(arena=MIB))
    async with joined(Peer(timeout=None), peer) as (session, other):
        array = numpy.arange(MIB)
        result = await session.request("echo", [array])
        assert (result == array).all()
        result[0] = 5
        for kind in (bytes, bytearray, memoryview):
            result = await session.request("echo", [kind(array.data)])
            assert type(result) is kind
            assert bytes(result) == array.tobytes()
        del result
        assert session.statistics().shared_bytes_sent > 2 * array.nbytes
        await all_returned(session, other)


async def test_a_cancelled_request_gives_its_regions_back() -> None:
    async with joined(Peer(timeout=None), echoing()) as (session, other):
        await session.request("echo", [numpy.zeros(MIB, numpy.uint8)])
        for _ in range(20):
            task = asyncio.create_task(session.request("echo", [numpy.zeros(32 * MIB, "u1")]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        del task
        await all_returned(session, other)


@pytest.mark.parametrize("above", [0, 2**40])
async def test_it_can_be_switched_off(above: int) -> None:
    first = Peer(limits=Limits(shared_memory_above=above))
    async with talking(echoing(), first=first) as session:
        await session.request("echo", [numpy.zeros(3 * MIB)])
        assert session.statistics().shared_bytes_sent == 0


# -- memory of the user's own --------------------------------------------------------------------


async def test_shared_memory_is_sent_without_a_copy() -> None:
    peer = Peer()
    kept = Journal()

    @peer.on_request
    def keep(value: Any) -> None:
        kept.append(value)

    async with joined(Peer(), peer) as (session, _):
        buffer, array = shared_buffer(MIB), shared_array((4, MIB))
        buffer[:3] = b"abc"
        array[:] = 7
        await session.request("keep", [buffer])
        await session.request("keep", [array])
        view, copy = kept
        assert (type(view), view.readonly, bytes(view[:3])) == (memoryview, True, b"abc")
        assert (copy.shape, copy.dtype, copy.flags.writeable) == ((4, MIB), float, True)
        copy[0] = 8
        assert array[0, 0] == 7
        assert copy[0, 0] == 8
        assert session.statistics().arena_used == 0
        array[1] = 9  # against the rules, and the proof that nothing was copied
        assert copy[1, 0] == 9


async def test_a_part_of_shared_memory_shows_nothing_of_the_rest() -> None:
    peer = Peer()
    kept = Journal()
    peer.on_request("keep")(kept.append)
    async with talking(peer) as session:
        buffer = shared_buffer(4 * MIB)
        await session.request("keep", [buffer[: 2 * MIB]])
        assert session.statistics().descriptors_sent == 1  # that of the arena
        buffer[:1] = b"x"
        assert bytes(kept[0][:1]) == b"\0"


async def test_shared_memory_over_other_transports() -> None:
    async with talking(echoing(), "pipes") as session:
        array = shared_array(100_000)
        array[:] = 3
        assert (await session.request("echo", [array])).sum() == 300_000
        assert bytes(await session.request("echo", [shared_buffer(100)])) == bytes(100)


# -- processes -----------------------------------------------------------------------------------

KEEPER = python("""
import asyncio, numpy, asyncipc
peer, kept = asyncipc.Peer(), []
@peer.on_request
def keep(array):
    kept.append(array)
    return int(array.sum())
@peer.on_request
def give(size):
    return numpy.ones(size, numpy.uint8)
async def main():
    async with peer.stdio() as parent:
        await parent.wait_closed()
asyncio.run(main())
""")


async def test_a_peer_killed_while_it_holds_regions() -> None:
    async with Peer() as peer:
        session = await peer.spawn(KEEPER, channel="socketpair")
        assert await session.request("keep", [numpy.ones(MIB, numpy.uint8)]) == MIB
        given = await session.request("give", 2 * MIB)
        assert session.statistics().arena_used == MIB
        assert session.process is not None
        session.process.kill()
        await session.wait_closed()
        assert given.sum() == 2 * MIB  # what it sent is still there
        async with asyncio.timeout(10):
            error = await failure(session.request("give", 1))
        assert isinstance(error, PeerDied)


async def test_who_has_no_numpy_says_so() -> None:
    code = """
sys.modules["numpy"] = None
import asyncio, asyncipc
peer = asyncipc.Peer()
peer.on_request("take")(lambda array: 1)
async def main():
    async with peer.stdio() as parent:
        await parent.wait_closed()
asyncio.run(main())
"""
    async with Peer() as peer, peer.spawn(python(code)) as session:
        error = await failure(session.request("take", [numpy.ones(3)]))
        assert isinstance(error, RemoteError)
        assert "numpy" in error.message
