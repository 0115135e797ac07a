"""Large messages: nothing else waits behind them, and what must keep its order keeps it."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncipc import Call, FrameTooLarge, Limits, Peer, Progress, RemoteError, SessionClosed
from tests.session.support import KIB, MIB, Journal, RawPeer, failure, joined, talking

REQUEST, REPLY, NOTIFY, BEGIN, PART, RETRACT, GOODBYE = 2, 3, 5, 9, 10, 11, 12
PING, PONG = 65, 66

PATTERN = bytes(range(256)) * 4 + b"!"  # of no length that divides a part


def pattern(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def made(size: int) -> bytes:
    return bytes(size)


def echoing() -> Peer:
    peer = Peer()
    peer.on_request("echo")(lambda value: value)
    return peer


# -- whatever the size -------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["memory", "socketpair", "pipes"])
@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_sizes_around_every_threshold(over: str, codec: str) -> None:
    sizes = [
        threshold + more
        for threshold in (0, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, MIB)
        for more in (-1, 0, 1)
        if threshold + more >= 0
    ]
    async with talking(echoing(), over, first=Peer(codec=codec)) as session:
        for size in sizes:
            data = pattern(size)
            assert await session.request("echo", data) == data
            assert await session.request("echo", {"value": bytearray(data)}) == data
            text = "ž" * size
            assert await session.request("echo", text) == text


@settings(max_examples=20)
@given(
    values=st.lists(
        st.tuples(st.sampled_from([10, 20_000, 40_000, 100_000, 400_000]), st.integers(0, 3)),
        max_size=12,
    ),
    max_frame=st.sampled_from([16 * KIB, 100_000, MIB]),
)
async def test_any_mixture_arrives_whole(values: list[tuple[int, int]], max_frame: int) -> None:
    limits = Limits(max_frame=max_frame)
    peer = Peer(limits=limits)
    peer.on_request("echo")(lambda value: value)
    async with talking(peer, first=Peer(limits=limits)) as session:
        sent = [{"parts": [pattern(size + n) for n in range(count)]} for size, count in values]
        results = await asyncio.gather(*(session.request("echo", [value]) for value in sent))
        assert results == sent


async def test_many_attachments_of_one_message() -> None:
    value = {str(n): pattern(20_000 + n) for n in range(100)}
    async with talking(echoing()) as session:
        assert await session.request("echo", [value]) == value


async def test_buffers_arrive_as_what_they_were_and_are_ones_own() -> None:
    data = bytearray(pattern(100_000))
    async with talking(echoing()) as session:
        result = await session.request("echo", {"value": data})
        assert type(result) is bytearray
        result[0] ^= 255
        assert data == pattern(100_000)
        view = await session.request("echo", {"value": memoryview(data)})
        assert type(view) is memoryview
        assert view.readonly
        assert view == data


async def test_a_handlers_buffer_belongs_to_it_again_when_it_returns() -> None:
    peer = Peer()
    buffer = bytearray(4 * MIB)

    @peer.on_request
    def fill(value: int) -> bytearray:
        buffer[:] = bytes([value]) * len(buffer)
        return buffer

    async with talking(peer) as session:
        results = await asyncio.gather(*(session.request("fill", value) for value in range(4)))
        assert [set(result) for result in results] == [{0}, {1}, {2}, {3}]


# -- nothing waits behind it -------------------------------------------------------------------


@pytest.mark.parametrize("over", ["socketpair", "pipes"])
async def test_pings_pass_large_messages_in_both_directions(over: str) -> None:
    first, second = echoing(), echoing()
    size = 64 * MIB
    async with joined(first, second, over) as (session, other):
        large = [
            asyncio.create_task(one.request("echo", bytes(size), timeout=None))
            for one in (session, other)
        ]
        delays = []
        while not all(task.done() for task in large):
            # A bound for slow and busy machines; what is to be expected stands in the benchmarks.
            delays.append(await session.ping(timeout=5))
            await asyncio.sleep(0)
        for task in large:
            assert len(await task) == size
        assert len(delays) > 20  # they were answered all along


async def test_small_calls_of_other_handlers_pass_large_replies() -> None:
    peer = Peer()
    made = Journal()

    @peer.on_request
    def make(size: int) -> bytes:
        made.append(size)
        return bytes(size)

    async with talking(peer) as session:
        large = asyncio.create_task(session.request("make", 16 * MIB))
        await made.reaches(1)
        for _ in range(3):
            assert await session.request("make", 10) == bytes(10)
        assert not large.done()
        assert len(await large) == 16 * MIB


async def test_large_replies_take_turns() -> None:
    peer = Peer()
    peer.on_request("make")(made)
    ended: list[int] = []

    async def make(size: int) -> None:
        assert len(await session.request("make", size)) == size
        ended.append(size)

    async with talking(peer) as session:
        await asyncio.gather(make(32 * MIB), make(2 * MIB), make(MIB))
        assert ended == [MIB, 2 * MIB, 32 * MIB]


async def test_progress_and_result_of_one_call_keep_their_order_around_large_ones() -> None:
    peer = Peer()

    @peer.on_request
    async def work(call: Call) -> bytes:
        await call.progress(1, message="x" * 200_000)
        await call.progress(2, message="small")
        await call.progress(3, message="y" * 100_000)
        return pattern(300_000)

    seen: list[Progress] = []
    async with talking(peer) as session:
        assert await session.request("work", on_progress=seen.append) == pattern(300_000)
    assert [update.done for update in seen] == [1, 2, 3]
    assert [len(update.message or "") for update in seen] == [200_000, 5, 100_000]


async def test_requests_and_notifications_start_in_order_around_large_ones() -> None:
    peer, order = Peer(), Journal()
    peer.on_request("take")(lambda data: order.append(len(data)))
    peer.on_notification("take")(lambda data: order.append(len(data)))
    async with talking(peer) as session:
        sizes = [10, 500_000, 11, 40_000, 12, 13, 600_000, 14]
        tasks = []
        for number, size in enumerate(sizes):
            if number % 2:
                await session.notify("take", bytes(size))
            else:
                tasks.append(asyncio.create_task(session.request("take", bytes(size))))
                await asyncio.sleep(0)
        await order.reaches(len(sizes))
        assert order == sizes
        await asyncio.gather(*tasks)


# -- limits ------------------------------------------------------------------------------------


async def test_what_is_too_large_is_found_before_anything_is_sent() -> None:
    peer = echoing()
    peer._limits = Limits(max_message=MIB)
    async with joined(Peer(), peer) as (session, other):
        await session.ping()
        before = session.statistics()
        with pytest.raises(FrameTooLarge, match=r"has 1048\d+ bytes; .*max_message is 1048576"):
            await session.request("echo", bytes(MIB))
        with pytest.raises(FrameTooLarge):
            await session.notify("echo", [bytes(600_000), bytes(600_000)])
        after = session.statistics()
        assert after == before
        assert await session.request("echo", bytes(MIB - 100)) == bytes(MIB - 100)
        assert other.statistics().requests_served == 1


async def test_a_result_that_is_too_large_is_told_as_a_fault() -> None:
    peer = Peer()
    peer.on_request("make")(made)
    async with talking(peer, first=Peer(limits=Limits(max_message=MIB))) as session:
        error = await failure(session.request("make", MIB))
        assert isinstance(error, RemoteError)
        assert error.type == "FrameTooLarge"
        assert "Limits.max_message is 1048576" in error.message
        assert len(await session.request("make", MIB - 100)) == MIB - 100


@pytest.mark.parametrize(
    ("announced", "complaint"),
    [
        ([2**40], "max_message"),
        ([600_000, 600_000], "max_message"),
        ([1] * 2000, "segments"),
        ([0, 5], "empty"),
    ],
)
async def test_announcements_over_the_limits_reserve_nothing(
    announced: list[int], complaint: str
) -> None:
    async with RawPeer.facing(Peer(limits=Limits(max_message=MIB))) as (raw, session):
        raw.send([BEGIN, 1, announced], attached=b"x")
        goodbye = await raw.receive_kind(GOODBYE)
        assert complaint in goodbye[3]
        await session.wait_closed()
        assert isinstance(session.close_reason, SessionClosed)


async def test_parts_may_be_of_any_size_and_interleave() -> None:
    """A sender may cut as it likes; this one sends a byte of each in turn."""
    peer, taken = Peer(), Journal()
    peer.on_notification("take")(taken.append)
    first = b"\x93\x05\xa4take\x91\xc4\x05first"
    second = b"\x93\x05\xa4take\x91\xc4\x06second"
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([BEGIN, 1, [len(first)]], attached=first[:1])
        raw.send([BEGIN, 2, [len(second)]], attached=second[:1])
        raw.send([BEGIN, 3, [1000]], attached=b"never to be finished")
        for one, two in itertools.zip_longest(first[1:], second[1:]):
            if one is not None:
                raw.send([PART, 1], attached=bytes([one]))
            raw.send([PING, 1])
            raw.send([PART, 2], attached=bytes([two]))
        raw.send([RETRACT, 3], [RETRACT, 4])
        assert await taken.reaches(2) == [b"first", b"second"]
        await raw.settle(session)
        assert not session.closed
