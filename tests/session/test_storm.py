"""Much at once, large and small, in both directions, and half of it given up at random.

What such a storm finds are the states that nobody thought of. In the end each caller has its answer
or an error that it may get, the sessions still answer, and nothing is left of all that.
"""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Any

import numpy
import pytest

from asyncipc import (
    Call,
    ChannelBroken,
    ChannelEnded,
    Limits,
    MethodNotFound,
    Peer,
    RemoteError,
    RequestTimeout,
    Session,
)
from tests.session.support import KIB, MIB, TRANSPORTS, joined, loop_errors, settled, until
from tests.session.test_shared_memory import all_returned
from tests.session.test_streams import nothing_is_kept

# Of storms, there are two over every transport and on every loop. Each has so many squalls of so
# many seconds: what hangs is seen in the calm behind them, when nothing else sets it free.
SQUALLS = 10
DURATION = 0.1

# Callers on either side.
CALLERS = 5

# Everything is scarce, or everything is as it comes and the messages are large.
WEATHERS: dict[str, tuple[Limits, tuple[int, ...]]] = {
    "tight": (
        Limits(
            max_requests=4,
            max_queued=100,
            outbox=16 * KIB,
            notification_credit=16 * KIB,
            stream_credit=16 * KIB,
            max_frame=16 * KIB,
        ),
        (1, 100, 9 * KIB, 20 * KIB, 200 * KIB),
    ),
    "heavy": (Limits(), (1, 20 * KIB, 300 * KIB, MIB, 3 * MIB, 9 * MIB)),
}


async def some_turns(most: int) -> None:
    for _ in range(random.randrange(most)):
        await asyncio.sleep(0)


# -- what both sides serve ---------------------------------------------------------------------


async def work(updates: int, data: Any, call: Call) -> Any:
    for number in range(updates):
        await call.progress(number)
        await some_turns(5)
    return data


async def back(depth: int, call: Call) -> int:
    await some_turns(3)
    if depth:
        await call.session.request("back", depth - 1)
    return depth


def thread() -> int:
    return 1


async def items(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)
        await some_turns(2)


async def count(items: AsyncIterable[bytes], most: int) -> int:
    number = 0
    async for _ in items:
        number += 1
        if number == most:
            raise ValueError("enough")
    return number


async def echo(call: Call) -> None:
    async with call.channel() as channel:
        async for item in channel:
            await channel.send(item)


async def note(_data: bytes) -> None:
    await some_turns(3)


def serving(limits: Limits) -> Peer:
    peer = Peer(limits=limits)
    for handler in (work, back, items, count, echo):
        peer.on_request(handler)
    peer.on_request(thread=True)(thread)
    peer.on_notification(note)
    return peer


# -- what they ask for -------------------------------------------------------------------------


class Storm:
    """What callers do, one thing after the other, until it is over."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.over = 0.0
        self.answered = self.given_up = 0
        self.things: list[Callable[[Session, float | None], Awaitable[object]]] = [
            *[self.work] * 4,
            *[self.note] * 2,
            self.back,
            self.thread,
            self.ping,
            self.nothing,
            self.stream,
            self.upload,
            self.channel,
        ]

    @property
    def size(self) -> int:
        return random.choice(self.sizes)

    async def work(self, session: Session, timeout: float | None) -> None:
        data: Any = bytes(self.size)
        if random.random() < 0.3:
            data = numpy.frombuffer(data, numpy.uint8)
        on_progress = random.choice([None, lambda _: None])
        params = [random.randrange(4), data]
        result = await session.request("work", params, timeout=timeout, on_progress=on_progress)
        assert memoryview(result).nbytes == memoryview(data).nbytes

    async def back(self, session: Session, timeout: float | None) -> None:
        depth = random.randrange(5)
        assert await session.request("back", depth, timeout=timeout) == depth

    async def thread(self, session: Session, timeout: float | None) -> None:
        assert await session.request("thread", timeout=timeout) == 1

    async def note(self, session: Session, _timeout: float | None) -> None:
        await session.notify("note", bytes(self.size))

    async def ping(self, session: Session, timeout: float | None) -> None:
        await session.ping(timeout=timeout)

    async def nothing(self, session: Session, timeout: float | None) -> None:
        with pytest.raises(MethodNotFound):
            await session.request("nothing", timeout=timeout)

    async def stream(self, session: Session, timeout: float | None) -> None:
        params = [random.randrange(20), self.size // 4]
        async with session.stream("items", params, timeout=timeout) as items:
            async for _ in items:
                if random.random() < 0.1:
                    break

    async def upload(self, session: Session, timeout: float | None) -> None:
        async def items() -> AsyncIterator[bytes]:
            for _ in range(random.randrange(20)):
                yield bytes(self.size // 4)
                await some_turns(2)

        await session.request("count", [items(), random.randrange(40)], timeout=timeout)

    async def channel(self, session: Session, timeout: float | None) -> None:
        async with session.channel("echo", timeout=timeout) as channel:
            for _ in range(random.randrange(4)):
                await channel.send(bytes(self.size // 4))
                await channel.receive()
            await channel.send_eof()
            if random.random() < 0.5:
                with pytest.raises(ChannelEnded):
                    await channel.receive()

    async def blow(self, *sessions: Session) -> None:
        """One squall."""
        self.over = monotonic() + DURATION
        async with asyncio.TaskGroup() as group:
            for session in sessions * CALLERS:
                group.create_task(self.call(session))

    async def call(self, session: Session) -> None:
        """Do things, and give some of them up."""
        while monotonic() < self.over:
            timeout = random.choice([None, 0.001, 0.005, 1])
            task = asyncio.ensure_future(random.choice(self.things)(session, timeout))
            if random.random() < 0.4:
                await some_turns(20)
                task.cancel()
                if random.random() < 0.2:
                    task.cancel()
            try:
                await task
            except (asyncio.CancelledError, RequestTimeout, ChannelBroken):
                self.given_up += 1
            except RemoteError as error:
                if error.type not in ("ValueError", "RequestTimeout"):
                    raise
            else:
                self.answered += 1


@pytest.mark.parametrize("over", [*TRANSPORTS, "streams"])
@pytest.mark.parametrize("weather", WEATHERS)
async def test_a_storm(over: str, weather: str, caplog: pytest.LogCaptureFixture) -> None:
    limits, sizes = WEATHERS[weather]
    random.seed(f"{over} {weather}")
    with loop_errors() as errors:
        async with (
            joined(serving(limits), serving(limits), over) as pair,
            asyncio.timeout(30),
        ):
            storm = Storm(sizes)
            for _ in range(SQUALLS):
                await storm.blow(*pair)
                await until(lambda: not any(map(remains, pair)), *pair)
            await settled(*pair)
            assert storm.answered > 20
            assert storm.given_up > 20
            assert not any(map(remains, pair))
            assert nothing_is_kept(*pair)
            await all_returned(*pair)
            for session in pair:
                work = [session.request("work", [2, b"x" * size]) for size in sizes]
                assert [len(result) for result in await asyncio.gather(*work)] == list(sizes)
                await session.notify("note", b"x")
            await all_returned(*pair)
    assert not errors
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def remains(session: Session) -> int:
    """What of a storm is not over."""
    now = session.statistics()
    return now.pending + now.queued + now.running + now.outbox_size
