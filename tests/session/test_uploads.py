"""Uploads: an async iterable among the parameters of a request."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from time import monotonic
from typing import Any

import numpy
import pytest

from asyncipc import (
    Call,
    EncodeError,
    InvalidParams,
    Limits,
    Peer,
    RemoteError,
    RequestTimeout,
    Session,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Journal,
    RawPeer,
    failure,
    holding,
    joined,
    settled,
    talking,
    until,
)
from tests.session.test_streams import nothing_is_kept

REQUEST, REPLY, FAULT, CANCEL, ITEMS, END, BEGIN, CREDIT, PING = 2, 3, 4, 6, 7, 8, 9, 13, 65


class Source:
    """What is uploaded, and what becomes of it."""

    def __init__(self, count: int | None = None, item: Any = None) -> None:
        self.count = count
        self.item = item
        self.given = 0
        self.closed = Journal()

    async def items(self) -> AsyncIterator[Any]:
        try:
            while self.count is None or self.given < self.count:
                self.given += 1
                yield self.given if self.item is None else self.item
        finally:
            self.closed.append("closed")


def storing() -> Peer:
    peer = Peer()

    @peer.on_request
    async def store(items: Any, name: str = "none", *, call: Call) -> list[Any]:
        return [name, *[item async for item in items]]

    return peer


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_every_item_arrives_in_order(over: str) -> None:
    async with joined(Peer(), storing(), over) as (session, other):
        source = Source(3000)
        result = await session.request("store", {"name": "by name", "items": source.items()})
        assert result == ["by name", *range(1, 3001)]
        assert await session.request("store", [Source(2).items(), "by position"]) == [
            *["by position", 1, 2]
        ]
        assert await session.request("store", Source(1).items()) == ["none", 1]
        assert await session.request("store", Source(0).items()) == ["none"]
        await source.closed.reaches(1)
        assert session.statistics().items_sent == other.statistics().items_received == 3003
        await until(lambda: nothing_is_kept(session, other), session)


async def test_what_is_no_generator_and_upload_from_an_upload() -> None:
    peer = storing()

    @peer.on_request
    async def hand_on(items: Any, call: Call) -> Any:
        return await call.session.request("store", {"items": items})

    first = storing()
    async with talking(peer, first=first) as session:
        queue: asyncio.Queue[int] = asyncio.Queue()
        queue.put_nowait(7)

        class Queued:
            def __aiter__(self) -> "Queued":
                return self

            async def __anext__(self) -> int:
                if queue.empty():
                    raise StopAsyncIteration
                return queue.get_nowait()

        assert await session.request("hand_on", Queued()) == ["none", 7]


async def test_upload_and_stream_in_one_call() -> None:
    peer = Peer()

    @peer.on_request
    async def double(items: AsyncIterable[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item

    async with talking(peer) as session:
        rows = session.stream("double", {"items": Source(2000).items()})
        assert [row async for row in rows] == list(range(2, 4002, 2))


@pytest.mark.parametrize("size", [40_000, 300_000, 2 * MIB])
async def test_large_items(size: int) -> None:
    async with talking(storing()) as session:
        result = await session.request("store", Source(5, b"x" * size).items())
        assert result == ["none"] + [b"x" * size] * 5


async def test_items_come_behind_their_request_when_that_is_large() -> None:
    peer = storing()
    async with talking(peer) as session:
        name = "x" * 3 * MIB
        calls = [
            session.request("store", {"name": name, "items": Source(3).items()}),
            session.request("store", {"name": "small", "items": Source(3).items()}),
        ]
        assert await asyncio.gather(*calls) == [[name, 1, 2, 3], ["small", 1, 2, 3]]


async def test_an_upload_that_times_out_behind_a_large_request_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its request is dropped, and in the same turn what it stood behind gives way.

    One timer, which is due when the upload begins, finds both of them over: the upload's task has
    not begun by then, and nobody has told it.
    """
    now = 0.0
    for module in ("calls", "deadlines"):
        monkeypatch.setattr(f"asyncipc.session.{module}.monotonic", lambda: now)

    async def pass_the_deadlines() -> None:
        nonlocal now
        now = 300

    peer = Peer(limits=Limits(outbox=64 * MIB))
    async with RawPeer.facing(peer, max_descriptors=64) as (raw, session):
        large = numpy.zeros(16 * MIB, numpy.uint8)  # it takes some turns to get it into the arena
        calls = [
            asyncio.create_task(session.request("large", [large], timeout=200)),
            asyncio.create_task(session.request("small", timeout=0.05)),
        ]
        await until(lambda: session.statistics().pending == 2)
        due = monotonic() + 0.06
        while monotonic() < due:
            pass  # the timer is due in the very next turn
        now = 100
        items = Source(1).items()
        calls.append(asyncio.create_task(session.request("upload", [items], timeout=0)))
        calls.append(asyncio.create_task(pass_the_deadlines()))
        *errors, _ = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [RequestTimeout] * 3
        ping = asyncio.create_task(session.ping())
        kinds = {BEGIN}
        while PING not in kinds:
            kinds.add((await raw.receive())[0])
        assert kinds.isdisjoint({REQUEST, ITEMS, END})
        ping.cancel()
        assert nothing_is_kept(session)


async def test_progress_of_an_upload() -> None:
    peer = Peer()

    @peer.on_request
    async def store(items: AsyncIterable[int], call: Call) -> None:
        async for item in items:
            await call.progress(item)

    told = []
    async with talking(peer) as session:
        await session.request(
            "store", Source(5).items(), on_progress=lambda update: told.append(update.done)
        )
    assert told == [1, 2, 3, 4, 5]


async def test_a_slow_handler_stops_the_upload() -> None:
    peer, go_on = Peer(limits=Limits(stream_credit=16 * KIB)), asyncio.Event()

    @peer.on_request
    async def store(items: AsyncIterable[str]) -> int:
        await go_on.wait()
        return sum([1 async for _ in items])

    async with talking(peer) as session:
        source = Source(500, "x" * 1000)
        storing = asyncio.create_task(session.request("store", source.items()))
        await until(lambda: session.statistics().stalls, session)
        await settled(session)
        assert source.given < 60
        go_on.set()
        assert await storing == 500


# -- ends --------------------------------------------------------------------------------------


async def test_an_answer_before_the_last_item_stops_the_upload() -> None:
    peer = Peer()

    @peer.on_request
    async def first(items: AsyncIterable[int]) -> int:
        async for item in items:
            return item
        return 0

    async with joined(Peer(), peer) as (session, other):
        source = Source()
        assert await session.request("first", source.items()) == 1
        await source.closed.reaches(1)
        await until(lambda: nothing_is_kept(session, other), session)
        assert session.statistics().cancels_sent == 0


async def test_an_iterable_that_fails_ends_the_call() -> None:
    peer, seen = Peer(), Journal()

    @peer.on_request
    async def store(items: AsyncIterable[int]) -> None:
        try:
            async for _ in items:
                pass
            seen.append("the end")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError("mine")

    class Stops:
        def __aiter__(self) -> "Stops":
            return self

        def __anext__(self) -> Any:
            raise StopIteration

    async with joined(Peer(), peer) as (session, other):
        with pytest.raises(ZeroDivisionError, match="mine"):
            await session.request("store", broken())
        with pytest.raises(RuntimeError, match="StopIteration"):
            await session.request("store", Stops())
        with pytest.raises(EncodeError, match="object"):
            await session.request("store", Source(3, object()).items())
        await seen.reaches(3)
        assert seen == ["cancelled"] * 3
        await until(lambda: nothing_is_kept(session, other), session)


async def test_an_iterable_that_waits_for_what_was_cancelled_ends_the_call() -> None:
    """Its CancelledError is not the upload's, and nobody else would tell the caller."""
    peer, seen = Peer(), Journal()

    @peer.on_request
    async def store(items: AsyncIterable[int]) -> None:
        try:
            async for _ in items:
                pass
        finally:
            seen.append("closed")

    async def broken() -> AsyncIterator[int]:
        yield 1
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with joined(Peer(timeout=None), peer) as (session, other), asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="the async iterable raised CancelledError") as told:
            await session.request("store", broken())
        assert isinstance(told.value.__cause__, asyncio.CancelledError)
        await seen.reaches(1)
        await until(lambda: nothing_is_kept(session, other), session)


async def test_giving_up_closes_both_ends() -> None:
    peer, seen = Peer(), Journal()

    @peer.on_request
    async def store(items: AsyncIterable[int]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("closed")

    async with joined(Peer(), peer) as (session, other):
        source = Source()
        with pytest.raises(RequestTimeout):
            await session.request("store", source.items(), timeout=0.02)
        task = asyncio.create_task(session.request("store", source.items()))
        await until(lambda: session.statistics().requests_sent == 2, session)
        task.cancel()
        await source.closed.reaches(2)
        await seen.reaches(2)
        assert isinstance(await failure(task), asyncio.CancelledError)
        await until(lambda: nothing_is_kept(session, other), session)


async def test_a_handler_that_fails() -> None:
    peer = Peer()

    @peer.on_request
    async def store(items: AsyncIterable[int]) -> None:
        async for _ in items:
            raise ValueError("no room")

    async with talking(peer) as session:
        source = Source()
        with pytest.raises(RemoteError, match="no room"):
            await session.request("store", source.items())
        await source.closed.reaches(1)


async def test_a_request_that_is_refused_drops_what_follows() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None])
        raw.send([REQUEST, 4, "hold", [None], None, {"items": 0}], [ITEMS, 4, [1]], [END, 4])
        assert (await raw.receive_kind(FAULT))[:3] == [FAULT, 5, 6]
        await raw.settle(session)
        hold.release()
        assert await raw.receive_kind(REPLY) == [REPLY, 3, "done"]


# -- parameters --------------------------------------------------------------------------------


async def refused(session: Session, method: str, params: Any) -> str:
    error = await failure(session.request(method, params))
    assert isinstance(error, InvalidParams)
    return error.message


async def test_annotations() -> None:
    peer = Peer()

    @peer.on_request
    async def total(items: AsyncIterator[int], scale: int = 1) -> int:
        return scale * sum([item async for item in items])

    @peer.on_request
    def plain(a: int) -> int:
        return a

    async with talking(peer) as session:
        assert await session.request("total", Source(3).items()) == 6
        assert await refused(session, "total", Source(3, "x").items()) == (
            "total() parameter 'items[]': expected int, got str ('x')"
        )
        assert await refused(session, "total", {"items": [1, 2]}) == (
            "total() parameter 'items': expected a stream of items, got list ([1, 2])"
        )
        assert "parameter 'a'" in await refused(session, "plain", Source(1).items())
        with pytest.raises(TypeError, match="only one parameter can be an async iterable"):
            await session.request("total", [Source().items(), Source().items()])
        with pytest.raises(EncodeError):
            await session.request("total", [[Source().items()]])
        with pytest.raises(EncodeError):
            await session.notify("total", Source().items())


async def test_a_place_that_is_not_there() -> None:
    async with RawPeer.facing(storing()) as (raw, _):
        for number, (params, place) in enumerate([([1], 1), ({"a": 1}, "b"), (None, 0)], 1):
            raw.send([REQUEST, 2 * number, "store", params, None, {"items": place}])
            fault = await raw.receive_kind(FAULT)
            assert fault[2] == 3
            assert f"has items for parameter {place!r}, which is not there" in fault[3]


async def test_items_behind_the_end() -> None:
    peer, _ = holding()
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([REQUEST, 2, "hold", [None], None, {"items": 0}])
        raw.send([ITEMS, 2, [1]], [END, 2], [ITEMS, 2, [2]])
        assert "items behind their end" in (await raw.receive_kind(12))[3]


async def test_an_item_that_is_not_understood() -> None:
    async with RawPeer.facing(storing()) as (raw, _session):
        raw.send([REQUEST, 2, "store", [None], None, {"items": 0}])
        unknown = b"\x93\x07\x02\x91\xd4\x32\x00"  # [7, 2, [ext(50, ...)]]
        raw.writer.write(b"\xf3\x4a\x9d\xe2\0\0\0\x07\0\0\0\0" + unknown)
        fault = await raw.receive_kind(FAULT)
        assert fault[:3] == [FAULT, 3, 3]
        assert "store() items[0]: extension 50" in fault[3]
