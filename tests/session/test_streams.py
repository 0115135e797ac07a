"""Streams: a method of the other side that gives items."""

import asyncio
import contextlib
import functools
import gc
import operator
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from asyncipc import (
    JSON,
    Call,
    EncodeError,
    InvalidParams,
    Limits,
    MessagePack,
    MethodNotFound,
    Peer,
    PeerDied,
    RemoteError,
    RemoteProtocolError,
    RequestCancelled,
    RequestTimeout,
    Session,
    SessionClosed,
    Stream,
    current_call,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Journal,
    RawPeer,
    failure,
    joined,
    loop_errors,
    settled,
    talking,
    until,
)

REQUEST, REPLY, FAULT, CANCEL, ITEMS, END, BEGIN, CREDIT = 2, 3, 4, 6, 7, 8, 9, 13
PONG = 66


class Producer:
    """An async generator as a handler, which tells what becomes of it."""

    def __init__(self, item: Callable[[int], Any] = lambda number: number) -> None:
        self.item = item
        self.made = 0
        self.news = Journal()

    async def __call__(self, count: int | None = None) -> AsyncIterator[Any]:
        self.news.append("begun")
        try:
            while count is None or self.made < count:
                self.made += 1
                yield self.item(self.made)
        finally:
            self.news.append("closed")


def producing(item: Callable[[int], Any] = lambda number: number) -> tuple[Peer, Producer]:
    peer, producer = Peer(), Producer(item)
    peer.on_request("produce")(producer)
    return peer, producer


async def taken(rows: Stream) -> tuple[list[Any], BaseException]:
    """What comes, and the error behind it."""
    came: list[Any] = []

    async def take() -> None:
        async for row in rows:
            came.append(row)  # noqa: PERF401 - what came before an error counts

    return came, await failure(take())


async def quiet(session: Session, producer: Producer) -> int:
    """How much was made when nothing more is made while nobody reads."""
    made = -1
    while made != producer.made:
        made = producer.made
        for _ in range(3):
            await settled(session)
    return made


def nothing_is_kept(*sessions: Session) -> bool:
    return not any(len(session._connection.exchange.streams) for session in sessions)


# -- items -------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_every_item_comes_in_order(over: str) -> None:
    peer, producer = producing()
    async with joined(Peer(), peer, over) as (session, other):
        async with session.stream("produce", [5000]) as rows:
            assert isinstance(rows, Stream)
            assert [row async for row in rows] == list(range(1, 5001))
            assert [row async for row in rows] == []
        assert producer.news == ["begun", "closed"]
        statistics = session.statistics()
        assert statistics.items_received == other.statistics().items_sent == 5000
        assert statistics.pending == statistics.cancels_sent == 0
        await until(lambda: nothing_is_kept(session, other))


async def test_plain_iteration() -> None:
    peer, _ = producing()
    async with talking(peer) as session:
        assert [row async for row in session.stream("produce", {"count": 3})] == [1, 2, 3]


async def test_nothing_is_sent_before_it_is_used() -> None:
    peer, _ = producing()
    async with talking(peer) as session:
        stream = session.stream("produce")
        assert repr(stream) == "<Stream 'produce'>"
        await stream.aclose()
        del stream
        assert session.statistics().requests_sent == 0


async def test_in_json() -> None:
    peer, first = Peer(codec=JSON()), Peer(codec=JSON())
    peer.on_request("produce")(Producer(lambda number: {"n": number, "data": b"\0"}))
    async with talking(peer, first=first) as session:
        rows = [row async for row in session.stream("produce", [3])]
        assert rows == [{"n": number, "data": b"\0"} for number in (1, 2, 3)]


def make_plain(peer: Peer, **options: Any) -> None:
    @peer.on_request("produce", **options)
    def produce(count: int, call: Call) -> Iterator[tuple[int, bool]]:
        for number in range(count):
            assert current_call() is call
            yield number, threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("thread", [False, True])
async def test_plain_generators(thread: bool) -> None:
    peer = Peer()
    make_plain(peer, thread=thread)
    async with talking(peer) as session:
        rows = [row async for row in session.stream("produce", [3000])]
        assert rows == [(number, not thread) for number in range(3000)]


async def test_a_decorated_generator() -> None:
    peer, producer = Peer(), Producer()

    @functools.wraps(producer.__call__)
    def handing_on(*args: Any) -> Any:
        return producer(*args)

    @functools.wraps(producer.__call__)
    async def awaiting(*args: Any) -> Any:
        return producer(*args)

    peer.on_request("one")(handing_on)
    peer.on_request("two")(awaiting)
    async with talking(peer) as session:
        assert [row async for row in session.stream("one", [2])] == [1, 2]
        assert [row async for row in session.stream("two", [4])] == [3, 4]


async def test_the_loop_goes_on_beside_a_generator_that_never_waits() -> None:
    peer, producer = producing()

    @peer.on_request
    def plain() -> Iterator[int]:
        while True:
            yield 1

    async with talking(peer) as session, session.stream("plain") as first:
        async with session.stream("produce") as second:
            for _ in range(20_000):
                assert await anext(first) == 1
                await anext(second)
            await session.ping()
        await producer.news.reaches(2)


async def test_items_come_as_soon_as_they_are_made() -> None:
    peer, go_on = Peer(), asyncio.Event()

    @peer.on_request
    async def tail() -> AsyncIterator[int]:
        yield 1
        yield 2
        await go_on.wait()
        yield 3

    async with talking(peer) as session, session.stream("tail") as rows:
        assert [await anext(rows), await anext(rows)] == [1, 2]
        go_on.set()
        assert await anext(rows) == 3


@pytest.mark.parametrize("size", [10, 3000, 20_000, 40_000, 300_000, 2 * MIB])
async def test_items_of_any_size(size: int) -> None:
    """Those above the credit pass, too, one by one."""
    peer, _ = producing(lambda number: bytes([number]) * size)
    async with talking(peer) as session:
        rows = [row async for row in session.stream("produce", [20])]
        assert rows == [bytes([number]) * size for number in range(1, 21)]


async def test_small_items_then_large_ones_do_not_make_one_large_message() -> None:
    peer, _ = producing(lambda number: ["x" * (5 if number < 1000 else 20_000)])
    small = Peer(limits=Limits(max_message=64 * KIB))
    async with talking(peer, first=small) as session:
        rows = [row async for row in session.stream("produce", [1100])]
        assert [len(row[0]) for row in rows] == [5] * 999 + [20_000] * 101


async def test_small_items_that_are_ready_together_travel_together() -> None:
    peer, _ = producing()
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([REQUEST, 2, "produce", [300], None, {"stream": True}])
        messages = [await raw.receive()]
        while messages[-1][0] != REPLY:
            messages.append(await raw.receive())
        assert messages.pop() == [REPLY, 3, None]
        assert functools.reduce(operator.iadd, [values for _, _, values in messages], []) == list(
            range(1, 301)
        )
        assert len(messages) < 10


async def test_progress_keeps_its_place_between_items() -> None:
    peer = Peer()

    @peer.on_request
    async def tail(call: Call) -> AsyncIterator[int]:
        for number in range(3):
            await call.progress(number)
            yield number

    async with RawPeer.facing(peer) as (raw, _):
        raw.send([REQUEST, 2, "tail", None, None, {"stream": True}])
        order = [await raw.receive() for _ in range(7)]
        told = [(each[0], each[2][0] if each[0] == ITEMS else each[2]) for each in order]
        assert told == [
            (64, 0),
            (ITEMS, 0),
            (64, 1),
            (ITEMS, 1),
            (64, 2),
            (ITEMS, 2),
            (REPLY, None),
        ]


async def test_many_streams_side_by_side() -> None:
    peer = Peer()

    @peer.on_request
    async def count(start: int) -> AsyncIterator[int]:
        for number in range(start, start + 200):
            yield number
            if number % 7 == 0:
                await asyncio.sleep(0)

    async with joined(Peer(), peer) as (session, other):

        async def read(start: int) -> None:
            rows = [row async for row in session.stream("count", [start])]
            assert rows == list(range(start, start + 200))

        await asyncio.gather(*(read(start) for start in range(100)))
        await until(lambda: nothing_is_kept(session, other))


# -- errors ------------------------------------------------------------------------------------


async def test_an_error_comes_behind_the_items_before_it() -> None:
    peer = Peer()

    @peer.on_request
    async def fail(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise ValueError("no luck")

    async with talking(peer) as session:
        for count in (0, 1, 1000):
            came, error = await taken(session.stream("fail", [count]))
            assert came == list(range(count))
            assert isinstance(error, RemoteError)
            assert (error.type, error.message) == ("ValueError", "no luck")
            assert "in fail" in error.traceback


@pytest.mark.parametrize("at", [1, 2, 500])
async def test_an_item_that_cannot_be_sent(at: int) -> None:
    peer, producer = producing(lambda number: object() if number == at else number)
    async with talking(peer) as session:
        came, error = await taken(session.stream("produce", [1000]))
        assert came == list(range(1, at))
        assert isinstance(error, RemoteError)
        assert error.type == "EncodeError"
        assert "object" in error.message
        assert producer.news == ["begun", "closed"]


async def test_an_item_that_is_too_large() -> None:
    peer, producer = producing(lambda number: bytes(100 * KIB * number))
    async with talking(peer, first=Peer(limits=Limits(max_message=350 * KIB))) as session:
        came, error = await taken(session.stream("produce"))
        assert [len(row) for row in came] == [100 * KIB, 200 * KIB, 300 * KIB]
        assert "Limits.max_message is 358400" in str(error)
        assert producer.news == ["begun", "closed"]


async def test_a_generator_that_is_asked_for_one_result() -> None:
    peer, producer = producing()
    async with talking(peer) as session:
        with pytest.raises(InvalidParams, match=r"produce\(\) gives a stream .* session.stream"):
            await session.request("produce")
        assert producer.news == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_method_with_one_result_that_is_asked_for_items(asynchronous: bool) -> None:
    peer = Peer()
    if asynchronous:

        @peer.on_request("add")
        async def add(a: int, b: int) -> int:
            return a + b
    else:
        peer.on_request("add")(lambda a, b: a + b)
    async with talking(peer) as session:
        with pytest.raises(InvalidParams, match=r"add\(\) gives one result: .* session.request"):
            await anext(session.stream("add", [1, 2]))


async def test_a_method_that_nobody_has_and_params_that_do_not_fit() -> None:
    peer, _ = producing()
    async with talking(peer) as session:
        with pytest.raises(MethodNotFound):
            await anext(session.stream("nothing"))
        with pytest.raises(InvalidParams, match="unexpected parameter 'size'"):
            await anext(session.stream("produce", {"size": 1}))
        with pytest.raises(TypeError, match="the method must be a string"):
            session.stream(5)
        with pytest.raises(ValueError, match="the metadata key 'stream' is the library's own"):
            await anext(session.stream("produce", metadata={"stream": 1}))
        with pytest.raises(EncodeError):
            await anext(session.stream("produce", [object()]))


async def test_a_generator_takes_no_notifications() -> None:
    with pytest.raises(TypeError, match="nobody takes the items of a notification"):
        Peer().on_notification("produce")(Producer())


async def test_a_timeout_is_one_for_the_whole_stream() -> None:
    peer, go_on = Peer(), asyncio.Event()
    closed = Journal()

    @peer.on_request
    async def tail(call: Call) -> AsyncIterator[bool]:
        try:
            yield call.remaining is not None
            await go_on.wait()
        finally:
            closed.append("closed")

    async with talking(peer, first=Peer(timeout=0.01)) as session:
        rows = session.stream("tail", timeout=0.05)
        assert await anext(rows)
        with pytest.raises(RequestTimeout, match=r"no answer to 'tail' within 0.05 s"):
            await anext(rows)
        await closed.reaches(1)
        async with session.stream("tail") as rows:  # the peer's timeout is for requests
            assert not await anext(rows)


async def test_a_generator_that_is_cancelled_where_it_runs() -> None:
    peer = Peer()

    @peer.on_request
    async def tail() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "tail", None, None, {"stream": True}])
        assert await raw.receive() == [ITEMS, 3, [1]]
        assert (await raw.receive())[:3] == [FAULT, 3, 7]
        await raw.settle(session)

    async with talking(peer) as session:
        rows = session.stream("tail")
        assert await anext(rows) == 1
        with pytest.raises(RequestCancelled):
            await anext(rows)


# -- ending early ------------------------------------------------------------------------------


async def leave(session: Session) -> None:
    async with session.stream("produce") as rows:
        assert await anext(rows) == 1


async def leave_by_exception(session: Session) -> None:
    async def fail() -> None:
        async with session.stream("produce") as rows:
            assert await anext(rows) == 1
            raise ZeroDivisionError

    assert isinstance(await failure(fail()), ZeroDivisionError)


async def close(session: Session) -> None:
    rows = session.stream("produce")
    assert await anext(rows) == 1
    await rows.aclose()
    await rows.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(rows)


async def break_out(session: Session) -> None:
    async for row in session.stream("produce"):
        assert row == 1
        break


async def drop_in_a_cycle(session: Session) -> None:
    rows: Any = session.stream("produce")
    assert await anext(rows) == 1
    cycle = [rows]
    cycle.append(cycle)
    del rows, cycle
    await asyncio.to_thread(gc.collect)  # where finalizers run in another thread


async def cancel(session: Session) -> None:
    got = asyncio.Event()

    async def read() -> None:
        async with session.stream("produce") as rows:
            async for _ in rows:
                got.set()

    task = asyncio.create_task(read())
    await got.wait()
    task.cancel()
    assert isinstance(await failure(task), asyncio.CancelledError)


ENDINGS = [leave, leave_by_exception, close, break_out, drop_in_a_cycle, cancel]


@pytest.mark.parametrize("end", ENDINGS)
async def test_ending_early_closes_the_generator(end: Callable[[Session], Any]) -> None:
    peer, producer = producing()
    async with joined(Peer(), peer) as (session, other):
        with loop_errors() as errors:
            await end(session)
            await producer.news.reaches(2)
            assert producer.news == ["begun", "closed"]
            await until(lambda: not session.statistics().pending, session)
            assert session.statistics().cancels_sent == 1
            assert other.statistics().running == 0
            await until(lambda: nothing_is_kept(session, other))
        assert not errors


@pytest.mark.parametrize("end", ENDINGS)
async def test_ending_early_while_the_generator_waits(end: Callable[[Session], Any]) -> None:
    peer, news = Peer(), Journal()

    @peer.on_request
    async def produce() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            news.append("closed")

    async with talking(peer) as session:
        await end(session)
        await news.reaches(1)


@pytest.mark.parametrize("thread", [False, True])
async def test_ending_early_closes_a_plain_generator(thread: bool) -> None:
    peer, closed = Peer(), threading.Event()

    @peer.on_request(thread=thread)
    def produce() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async with joined(Peer(), peer) as (session, other):
        await leave(session)
        await until(closed.is_set, session)
        await until(lambda: not other.statistics().running, session)


async def test_an_item_that_is_not_waited_for_any_longer_comes_to_the_next_who_asks() -> None:
    peer, go_on = Peer(), asyncio.Event()

    @peer.on_request
    async def tail() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2
        yield 3

    async with talking(peer) as session, session.stream("tail") as rows:
        assert await anext(rows) == 1
        waiting = asyncio.create_task(anext(rows))
        await settled(session)
        waiting.cancel()
        assert isinstance(await failure(waiting), asyncio.CancelledError)
        go_on.set()
        assert [row async for row in rows] == [2, 3]
        assert session.statistics().cancels_sent == 0


async def test_a_stream_that_is_dropped_when_its_loop_is_gone() -> None:
    peer, _ = producing()

    def run() -> Stream:
        async def main() -> Stream:
            async with talking(peer) as session:
                rows = session.stream("produce")
                await anext(rows)
                await session.aclose()
                return rows

        return asyncio.run(main())

    rows = await asyncio.to_thread(run)
    del rows


async def test_a_large_item_under_way_is_given_up() -> None:
    peer, producer = producing(lambda _: bytes(64 * MIB))
    async with joined(Peer(), peer) as (session, other):
        async with session.stream("produce"):
            await until(lambda: session.statistics().bytes_received > MIB, session)
        await producer.news.reaches(2)
        await until(lambda: not session.statistics().pending, session)
        assert session.statistics().bytes_received < 64 * MIB
        assert other.statistics().outbox_size == 0


# -- credit ------------------------------------------------------------------------------------


async def test_a_slow_reader_stops_its_producer_and_nothing_else() -> None:
    peer, producer = producing(lambda _: "x" * 1000)
    peer.on_request("echo")(lambda value: value)
    other_producer = Producer()
    peer.on_request("other")(other_producer)
    async with joined(Peer(limits=Limits(stream_credit=64 * KIB)), peer) as (session, other):
        async with session.stream("produce") as rows:
            await anext(rows)
            made = await quiet(session, producer)
            assert 64 <= made <= 64 + 20
            assert other.statistics().stalls >= 1
            assert await session.request("echo", [5]) == 5
            assert len([row async for row in session.stream("other", [50_000])]) == 50_000
            assert producer.made == made
            for _ in range(made):
                await anext(rows)
            await until(lambda: producer.made > made, session)
            for _ in range(made):
                await anext(rows)
        await until(lambda: nothing_is_kept(session, other))


CHUNKS: dict[str, Callable[[int], Any]] = {
    "bytes": lambda _: bytes(256 * KIB),
    "in a dict": lambda number: {"at": number, "data": bytes(256 * KIB)},
    "deep inside": lambda number: [[number, [bytes(256 * KIB)]]],
    "small, and then large": lambda number: {"data": bytes(1 if number < 2000 else 256 * KIB)},
}


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
async def test_a_generator_in_a_thread_is_not_far_ahead_of_its_credit(
    chunk: Callable[[int], Any],
) -> None:
    peer, made = Peer(), 0

    @peer.on_request(thread=True)
    def produce() -> Iterator[Any]:
        nonlocal made
        while True:
            made += 1
            yield chunk(made)

    async with joined(Peer(), peer) as (session, other), session.stream("produce") as rows:
        taken = 0
        while made < 2000 and chunk is CHUNKS["small, and then large"]:
            await anext(rows)
            taken += 1
        await until(lambda: other.statistics().stalls, session)
        before = -1
        while made != before:  # nor does it go on in the thread
            before = made
            for _ in range(20):
                await settled(session)
        small = max(0, 2000 - taken) if chunk is CHUNKS["small, and then large"] else 0
        assert made - taken - small < 10
        await anext(rows)


async def test_a_stream_that_nobody_reads_holds_a_bounded_amount() -> None:
    peer, producer = producing()
    async with joined(Peer(), peer) as (session, _), session.stream("produce"):
        made = await quiet(session, producer)
        # A byte to five for each number.
        assert made < 256 * KIB
        assert session.statistics().bytes_received < 300 * KIB


async def test_a_reader_that_is_always_slower_gets_everything() -> None:
    peer, producer = producing(lambda number: [number, "x" * (500 + number % 2500)])
    async with talking(peer, first=Peer(limits=Limits(stream_credit=16 * KIB))) as session:
        expected = 0
        async for number, text in session.stream("produce", [1000]):
            expected += 1
            assert (number, len(text)) == (expected, 500 + expected % 2500)
            # The credit and the largest message beyond it: 32 + 64 of the smallest.
            assert producer.made - expected < 100
            if expected % 10 == 0:
                await asyncio.sleep(0)
        assert expected == 1000


async def test_the_credit_is_kept_to_by_the_bytes() -> None:
    """Spoken by hand: what is sent without credit, and what for each credit."""
    peer, _ = producing(lambda _: "x" * 9000)  # each alone in its message
    async with RawPeer.facing(peer, stream_credit=16 * KIB) as (raw, session):
        raw.send([REQUEST, 2, "produce", [5], None, {"stream": True}])
        for _ in range(2):
            assert (await raw.receive())[0] == ITEMS
        await raw.settle(session)
        raw.send([CREDIT, 2, 1])
        assert (await raw.receive())[0] == ITEMS
        await raw.settle(session)
        raw.send([CREDIT, 2, 2])
        assert [(await raw.receive())[0] for _ in range(2)] == [ITEMS, ITEMS]
        await raw.settle(session)
        raw.send([CREDIT, 2, 1])  # only then is the generator asked whether there is more
        assert await raw.receive() == [REPLY, 3, None]
        raw.send([CREDIT, 2, 1])  # crosses the end
        await raw.settle(session)


async def test_credit_is_given_in_portions() -> None:
    peer = Peer(limits=Limits(stream_credit=64 * KIB))
    async with RawPeer.facing(peer) as (raw, session):
        rows = session.stream("any")
        reading = asyncio.create_task(anext(rows))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        for _ in range(20):
            raw.send([ITEMS, wire_id + 1, ["x" * 3000]])
        await reading
        await raw.settle(session)
        for _ in range(19):
            await anext(rows)
        assert (await raw.receive_kind(CREDIT))[1:] == [wire_id, 6]
        raw.send([REPLY, wire_id + 1, None])
        with pytest.raises(StopAsyncIteration):
            await anext(rows)


async def test_items_in_a_batch_get_their_credit_in_time() -> None:
    """Many streams in the same frames: what each cost is not known exactly."""
    peer = Peer()

    @peer.on_request
    async def produce_many(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    first = Peer(limits=Limits(stream_credit=16 * KIB))
    async with talking(peer, first=first) as session:

        async def read() -> int:
            return sum([1 async for _ in session.stream("produce_many", [20_000])])

        assert sum(await asyncio.gather(*(read() for _ in range(20)))) == 400_000


@pytest.mark.parametrize("seed", range(5))
async def test_items_of_all_sizes_that_are_read_late_break_no_rule(seed: int) -> None:
    """What is counted for them is never more than they cost their sender."""
    random = Random(seed)
    sizes = [random.choice((0, 1, 100, 1000, 4000, 17_000)) for _ in range(600)]
    peer = Peer()

    @peer.on_request
    async def send_all(call: Call) -> None:
        async with call.channel() as channel:
            for size in sizes:
                await channel.send("x" * random.randrange(size + 1))

    first = Peer(limits=Limits(stream_credit=16 * KIB))
    async with talking(peer, first=first) as session, session.channel("send_all") as channel:
        for _ in sizes:
            if random.random() < 0.1:
                await settled(session)
            await channel.receive()


@pytest.mark.parametrize("codec", [MessagePack, JSON])
async def test_batches_of_many_streams_that_are_read_late_break_no_rule(codec: Any) -> None:
    peer, first = Peer(codec=codec()), Peer(codec=codec(), limits=Limits(stream_credit=16 * KIB))
    values = [1, "\u00e9" * 50, b"\0" * 100, {"n": 1.5, "d": Decimal("1.5")}, (), [[2**70]]]

    @peer.on_request
    async def produce_all(count: int) -> AsyncIterator[Any]:
        for number in range(count):
            yield values[number % len(values)]
            if number % 3 == 0:
                await asyncio.sleep(0)

    async with joined(first, peer) as (session, other), contextlib.AsyncExitStack() as stack:
        rows = [
            await stack.enter_async_context(session.stream("produce_all", [3000]))
            for _ in range(10)
        ]
        await until(lambda: other.statistics().stalls >= 10, session)

        async def read(items: Stream) -> int:
            count = 0
            async for item in items:
                assert item == values[count % len(values)]
                count += 1
                if count % 100 == 0:
                    await asyncio.sleep(0)
            return count

        assert await asyncio.gather(*map(read, rows)) == [3000] * 10


# -- what is wrong on the wire -----------------------------------------------------------------


async def opened(raw: RawPeer, session: Session) -> tuple[Stream, "asyncio.Task[Any]", int]:
    rows = session.stream("any")
    reading = asyncio.create_task(anext(rows))
    _, wire_id, method, params, timeout, metadata = await raw.receive_kind(REQUEST)
    assert (method, params, timeout, metadata) == ("any", None, None, {"stream": True})
    return rows, reading, wire_id + 1


WRONG: dict[str, tuple[Callable[[int], list[list[Any]]], str]] = {
    "an overrun": (
        lambda wire_id: [[ITEMS, wire_id, ["x" * 9000]]] * 3,
        "at least 18014 bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "an overrun of small messages": (
        lambda wire_id: [[ITEMS, wire_id, [1]]] * 300,
        "at least 16384 bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "empty messages without end": (
        lambda wire_id: [[ITEMS, wire_id, []]] * 300,
        "under way; Limits.stream_credit",
    ),
    "an overrun in batches": (
        lambda wire_id: [[[ITEMS, wire_id, ["x" * 9000]], [ITEMS, wire_id, []]]] * 3,
        "at least 17928 bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "an overrun of many small messages in batches": (
        lambda wire_id: [[[ITEMS, wire_id, ["x" * 900]]] * 10] * 3,
        "bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "an overrun in batches with other messages": (
        lambda wire_id: [[[PONG, 1], [ITEMS, wire_id, ["x" * 9000]], [PONG, 1]]] * 5,
        "at least 18012 bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "an overrun of all kinds of values in batches with other messages": (
        lambda wire_id: [[[ITEMS, wire_id, [{"a": [b"x" * 5000]}, 1.5]], [PONG, 1]]] * 20,
        "bytes of them were under way; Limits.stream_credit is 16384",
    ),
    "two ends": (
        lambda wire_id: [[END, wire_id], [END, wire_id]],
        "ended the items of one call twice",
    ),
    "items behind the end": (
        lambda wire_id: [[END, wire_id], [ITEMS, wire_id, [1]]],
        "items behind their end",
    ),
    "items for a call to come": (
        lambda wire_id: [[ITEMS, wire_id + 2, [1]]],
        "which is no call that has such a stream",
    ),
    "credit where nothing is sent": (
        lambda wire_id: [[CREDIT, wire_id, 1]],
        "credit for items for 3, which is no call that has such a stream",
    ),
}


@pytest.mark.parametrize(("messages", "shown"), WRONG.values(), ids=WRONG)
async def test_the_one_to_blame_hears_of_it(
    messages: Callable[[int], list[list[Any]]], shown: str
) -> None:
    peer = Peer(limits=Limits(stream_credit=16 * KIB))
    async with RawPeer.facing(peer) as (raw, session):
        rows, reading, wire_id = await opened(raw, session)
        reading.cancel()  # nobody reads
        raw.send(*messages(wire_id))
        kind, _, code, reason = await raw.receive_kind(12)
        assert (kind, code) == (12, 1)
        assert shown in reason
        await session.wait_closed()
        assert shown in str(session.close_reason)
        await until(lambda: nothing_is_kept(session))
        await rows.aclose()


async def test_items_for_a_plain_call() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any"))
        _, wire_id, *_ = await raw.receive_kind(REQUEST)
        raw.send([ITEMS, wire_id + 1, [1]])
        assert "no call that has such a stream" in (await raw.receive_kind(12))[3]
        error = await failure(task)
        assert isinstance(error, SessionClosed)
        assert isinstance(error.__cause__, RemoteProtocolError)


async def test_too_much_credit() -> None:
    peer, _ = producing()
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([REQUEST, 2, "produce", [1000], None, {"stream": True}], [CREDIT, 2, 99])
        reason = (await raw.receive_kind(12))[3]
        assert "gave credit for 99 messages of items, but" in reason


async def test_what_crosses_the_end_is_dropped() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        rows, reading, wire_id = await opened(raw, session)
        raw.send([ITEMS, wire_id, ["one"]])
        assert await reading == "one"
        await rows.aclose()
        assert await raw.receive_kind(CANCEL) == [CANCEL, wire_id - 1]
        raw.send([ITEMS, wire_id, ["two"]], [END, wire_id], [FAULT, wire_id, 7, "cancelled"])
        raw.send([ITEMS, wire_id, ["three"]], [CREDIT, wire_id, 1], [END, wire_id])
        await raw.settle(session)
        assert not session.closed


async def test_an_item_that_is_not_understood() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        rows, reading, wire_id = await opened(raw, session)
        unknown = b"\x93\x07\x03\x92\x01\xd4\x32\x00"  # [7, 3, [1, ext(50, ...)]]
        raw.send([ITEMS, wire_id, ["one"]])
        raw.writer.write(b"\xf3\x4a\x9d\xe2\0\0\0\x08\0\0\0\0" + unknown)
        assert await reading == "one"
        with pytest.raises(Exception, match=r"items\[1\]: extension 50"):
            await anext(rows)
        assert await raw.receive_kind(CANCEL) == [CANCEL, wire_id - 1]


# -- the session -------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_the_session_is_closed_while_a_stream_is_read(over: str) -> None:
    peer, producer = producing(lambda number: number)
    async with joined(Peer(), peer, over) as (session, other):
        rows = session.stream("produce")
        await anext(rows)
        closing = asyncio.create_task(session.aclose())
        _, error = await taken(rows)
        assert isinstance(error, SessionClosed)
        await closing
        await producer.news.reaches(2)
        await until(lambda: nothing_is_kept(session, other))


async def test_the_other_side_goes_away_in_the_middle() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        rows, reading, wire_id = await opened(raw, session)
        raw.send([ITEMS, wire_id, ["one", "two"]])
        raw.close()
        assert await reading == "one"
        assert await anext(rows) == "two"
        with pytest.raises(PeerDied):
            await anext(rows)
