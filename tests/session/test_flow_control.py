"""Flow control: the sender keeps to the other side's limits, and nothing that must pass waits."""

import asyncio
import contextlib
from typing import Any

import pytest

from asyncipc import (
    Call,
    CallDepthExceeded,
    Limits,
    Peer,
    RequestRefused,
    RequestTimeout,
    Session,
)
from tests.session.support import (
    KIB,
    MIB,
    TRANSPORTS,
    Hold,
    Journal,
    RawPeer,
    failure,
    holding,
    joined,
    settled,
    talking,
    until,
)

REQUEST, REPLY, FAULT, NOTIFY, CANCEL = 2, 3, 4, 5, 6
PING, PONG = 65, 66


class Peak:
    """A handler that counts how many of it run at once."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0
        self.served = 0

    async def __call__(self, *_params: Any) -> int:
        self.running += 1
        self.peak = max(self.peak, self.running)
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        self.served += 1
        return self.served


# -- max_requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("max_requests", [1, 2, 7, 64])
@pytest.mark.parametrize("over", TRANSPORTS)
async def test_no_more_requests_at_once_than_the_other_side_takes(
    over: str, max_requests: int
) -> None:
    peer, peak = Peer(limits=Limits(max_requests=max_requests)), Peak()
    peer.on_request("work")(peak)
    async with joined(Peer(), peer, over) as (session, other):
        await asyncio.gather(*(session.request("work") for _ in range(200)))
        assert peak.peak == max_requests
        assert peak.served == 200
        assert other.statistics().requests_refused == 0
        assert session.statistics().pending == session.statistics().queued == 0


async def test_the_line_is_fair_also_towards_those_who_come_when_there_is_room() -> None:
    peer = Peer(limits=Limits(max_requests=2))
    order = []

    @peer.on_request
    async def work(number: int) -> None:
        order.append(number)
        await asyncio.sleep(0)

    async with talking(peer) as session:

        async def call(number: int) -> None:
            await session.request("work", number)
            if number < 50:
                await session.request("work", number + 100)  # comes just when a slot is free

        await asyncio.gather(*(call(number) for number in range(50)))
        assert order[:50] == list(range(50))
        assert len(order) == 100


async def test_a_slot_is_free_only_when_the_other_side_has_ended() -> None:
    peer = Peer(limits=Limits(max_requests=1))
    running, finish = Journal(), asyncio.Event()

    @peer.on_request
    async def stubborn(number: int) -> None:
        running.append(number)
        while not finish.is_set():
            try:
                await finish.wait()
            except asyncio.CancelledError:
                running.append("cancelled")

    async with joined(Peer(), peer) as (session, other):
        with pytest.raises(RequestTimeout):
            await session.request("stubborn", 1, timeout=0.01)
        second = asyncio.create_task(session.request("stubborn", 2))
        await running.reaches(2)
        await settled(session)
        assert running == [1, "cancelled"]
        assert session.statistics().queued == 1
        finish.set()
        await second
        assert other.statistics().requests_refused == 0


async def test_one_who_sends_more_than_allowed_is_refused() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=2)))
    async with RawPeer.facing(peer) as (raw, session):
        raw.send(*([REQUEST, 2 * n, "hold", None, None] for n in range(1, 5)))
        faults = [await raw.receive_kind(FAULT) for _ in range(2)]
        assert [fault[:3] for fault in faults] == [[FAULT, 7, 6], [FAULT, 9, 6]]
        assert "2 requests are being served; Limits.max_requests is 2" in faults[0][3]
        assert session.statistics().requests_refused == 2
        hold.release()
        assert await raw.receive_kind(REPLY) == [REPLY, 3, "done"]
        assert await raw.receive_kind(REPLY) == [REPLY, 5, "done"]


# -- max_queued --------------------------------------------------------------------------------


async def test_the_line_is_bounded() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with talking(peer, first=Peer(limits=Limits(max_queued=3))) as session:
        tasks = [asyncio.create_task(session.request("hold")) for _ in range(4)]
        await hold.calls.reaches(1)
        assert session.statistics().queued == 3
        with pytest.raises(RequestRefused, match=r"3 calls wait .* Limits.max_queued is 3"):
            await session.request("hold")
        hold.release()
        assert await asyncio.gather(*tasks) == ["done"] * 4
        assert await session.request("hold") == "done"
        assert len(hold.calls) == 5


# -- calls within calls ------------------------------------------------------------------------


def recursive(peer: Peer, sessions: dict[str, Session], name: str) -> None:
    """``down(n)`` asks the other side for ``down(n - 1)``, until 0."""

    @peer.on_request
    async def down(number: int) -> int:
        if number == 0:
            return 0
        below = await sessions[name].request("down", number - 1)
        return 1 + int(below)


@pytest.mark.parametrize("over", ["memory", "pipes"])
@pytest.mark.parametrize("max_requests", [1, 1024])
async def test_calls_within_calls_go_deeper_than_there_are_slots(
    over: str, max_requests: int
) -> None:
    limits = Limits(max_requests=max_requests)
    first, second = Peer(limits=limits), Peer(limits=limits)
    sessions: dict[str, Session] = {}
    recursive(first, sessions, "first")
    recursive(second, sessions, "second")
    async with joined(first, second, over) as (sessions["first"], sessions["second"]):
        assert await sessions["first"].request("down", 100) == 100
        results = await asyncio.gather(
            *(sessions[name].request("down", 20) for name in ("first", "second") * 5)
        )
        assert results == [20] * 10


async def test_the_depth_is_bounded_and_the_error_names_the_limit() -> None:
    limits = Limits(max_depth=10)
    first, second = Peer(limits=limits), Peer(limits=limits)
    sessions: dict[str, Session] = {}
    recursive(first, sessions, "first")
    recursive(second, sessions, "second")
    async with joined(first, second, "memory") as (sessions["first"], sessions["second"]):
        session = sessions["first"]
        assert await session.request("down", 10) == 10
        error = await failure(session.request("down", 11))
        assert type(error) is CallDepthExceeded
        assert str(error) == "calls of this session are nested 11 deep; Limits.max_depth is 10"
        assert await session.request("down", 10) == 10


async def test_one_who_nests_deeper_than_this_side_allows_is_not_trusted() -> None:
    """The depth is what the caller says; it must not be a way around the limits."""
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1, max_depth=3)))
    async with RawPeer.facing(peer) as (raw, _session):
        for number in range(1, 6):
            raw.send([REQUEST, 2 * number, "hold", None, None, {"depth": number}])
        faults = [await raw.receive_kind(FAULT) for _ in range(2)]
        assert [fault[1] for fault in faults] == [9, 11]
        assert len(hold.calls) == 3


async def test_a_task_that_outlives_its_call_is_not_nested() -> None:
    first, second = Peer(limits=Limits(max_depth=1)), Peer(limits=Limits(max_depth=1))
    tasks: list[asyncio.Task[Any]] = []
    answered = asyncio.Event()
    async with joined(first, second, "memory") as (session, back):

        async def chain(number: int) -> int:
            await answered.wait()
            return int(await back.request("count", number))

        @second.on_request
        async def start(number: int) -> None:
            tasks.append(asyncio.create_task(chain(number)))

        @first.on_request
        async def count(number: int) -> int:
            return number

        await session.request("start", 7)
        answered.set()
        assert await tasks[0] == 7


# -- what must never wait ----------------------------------------------------------------------


async def test_pings_replies_and_cancels_pass_while_all_slots_are_taken() -> None:
    first, second = Peer(), Peer(limits=Limits(max_requests=5))
    hold = Hold()
    second.on_request("hold")(hold)
    first.on_request("answer")(lambda: "answer")
    async with joined(first, second) as (session, back):
        tasks = [asyncio.create_task(session.request("hold")) for _ in range(100)]
        await hold.calls.reaches(5)
        await session.ping()
        assert await back.request("answer") == "answer"
        tasks[0].cancel()
        await hold.cancelled.reaches(1)
        await hold.calls.reaches(6)  # the next has its slot
        hold.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1:] == ["done"] * 99


async def test_the_outbox_is_bounded_and_senders_wait() -> None:
    async with RawPeer.facing(Peer(limits=Limits(outbox=64 * KIB))) as (raw, session):
        sent = 0

        async def send() -> None:
            nonlocal sent
            await session.notify("any", b"x" * 1000)
            sent += 1

        async def ask() -> None:
            await session.request("any", b"x" * 1000, timeout=None)

        # Nothing is read over there.
        asks = [asyncio.create_task(ask()) for _ in range(500)]
        notes = [asyncio.create_task(send()) for _ in range(500)]
        await until(lambda: session.statistics().outbox_size >= 64 * KIB)
        for _ in range(10):
            await asyncio.sleep(0)
        statistics = session.statistics()
        assert 64 * KIB <= statistics.outbox_size < 100 * KIB
        assert statistics.queued + statistics.pending + sent == 1000
        assert statistics.queued > 200
        # Reading makes room.
        seen = 0
        while seen < 1000:
            message = await raw.receive()
            if message[0] == REQUEST:
                raw.send([REPLY, message[1] + 1, None])
            seen += message[0] in (REQUEST, NOTIFY)
            assert session.statistics().outbox_size < 100 * KIB
        await asyncio.gather(*asks, *notes)
        assert session.statistics().outbox_size == session.statistics().queued == 0


@pytest.mark.parametrize("count", [1, 50])
async def test_notifications_alone_wait_for_room_and_get_it(count: int) -> None:
    """No call waits beside them, and none of their credit is under way: nothing else wakes them."""
    async with RawPeer.facing(Peer(limits=Limits(outbox=16 * KIB))) as (raw, session):
        large = asyncio.create_task(session.request("any", bytes(MIB)))
        await until(lambda: session.statistics().bytes_sent > KIB)  # nothing is read over there
        notes = [asyncio.create_task(session.notify("any", number)) for number in range(count)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(note.done() for note in notes)
        async with asyncio.timeout(10):
            seen = [(await raw.receive_kind(NOTIFY))[2] for _ in range(count)]
            await asyncio.gather(*notes)
            await session.notify("any", "and on")
            seen.append((await raw.receive_kind(NOTIFY))[2])
        assert seen == [*([number] for number in range(count)), ["and on"]]
        large.cancel()
        await asyncio.wait([large])


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_notification_behind_a_large_request_arrives(over: str) -> None:
    peer, taken = Peer(), Journal()
    peer.on_request("length")(lambda data: len(data))  # noqa: PLW0108 - its parameter is read
    peer.on_notification("take")(taken.append)
    async with talking(peer, over, first=Peer()) as session, asyncio.timeout(20):
        for number in range(3):
            large = asyncio.create_task(session.request("length", bytes(8 * MIB)))
            await asyncio.sleep(0)
            await session.notify("take", number)
            assert await large == 8 * MIB
        assert await taken.reaches(3) == [0, 1, 2]


async def test_timeouts_hold_while_the_outbox_is_full() -> None:
    async with RawPeer.facing(Peer(limits=Limits(outbox=16 * KIB))) as (_raw, session):
        first = asyncio.create_task(session.request("any", bytes(4 * MIB), timeout=0.05))
        errors = await asyncio.gather(
            *(session.request("any", timeout=0.02) for _ in range(100)), return_exceptions=True
        )
        assert {type(error) for error in errors} == {RequestTimeout}
        assert isinstance(await failure(first), RequestTimeout)
        with pytest.raises(RequestTimeout, match="no answer to a ping within"):
            await session.ping(timeout=0.01)
        assert session.statistics().queued == 0


async def test_a_waiting_notification_can_be_given_up() -> None:
    async with RawPeer.facing(Peer(limits=Limits(outbox=16 * KIB))) as (raw, session):
        task = asyncio.create_task(session.request("any", bytes(4 * MIB)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.notify("any", "given up")
        assert session.statistics().queued == 0
        behind = asyncio.create_task(session.notify("any", "sent"))
        await asyncio.sleep(0)
        task.cancel()  # this makes room, without anything being read over there
        async with asyncio.timeout(10):
            await behind
        await asyncio.wait([task])
        assert session.statistics().outbox_size < 512 * KIB
        assert (await raw.receive_kind(NOTIFY))[2] == ["sent"]


async def test_replies_are_taken_while_the_outbox_is_full() -> None:
    peer = Peer(limits=Limits(outbox=16 * KIB))
    peer.on_request("make")(lambda: "x" * 10_000)
    async with RawPeer.facing(peer) as (raw, session):
        raw.send(*([REQUEST, 2 * n, "make", None, None] for n in range(1, 101)))
        await until(lambda: session.statistics().requests_served == 100)
        replies = [await raw.receive_kind(REPLY) for _ in range(100)]
        assert [reply[1] for reply in replies] == [2 * n + 1 for n in range(1, 101)]


async def test_batches_keep_to_the_other_sides_frame_size() -> None:
    limits = Limits(max_frame=16 * KIB)
    peer = Peer(limits=limits)

    @peer.on_request
    async def echo(value: str) -> str:
        return value

    taken = Journal()
    peer.on_notification("take")(taken.append)
    async with talking(peer, first=Peer(limits=limits)) as session:
        small = ["x" * 1000] * 60  # one batch, were it not for the limit
        results = await asyncio.gather(*(session.request("echo", value) for value in small))
        assert results == small
        values = ["x" * size for size in (10, 500, 3000, 7000, 9000, 17_000, 100_000)] * 10
        results = await asyncio.gather(*(session.request("echo", value) for value in values))
        assert results == values
        await asyncio.gather(*(session.notify("take", value) for value in values))
        assert sorted(await taken.reaches(70)) == sorted(values)


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_both_sides_flood_each_other(over: str) -> None:
    limits = Limits(outbox=32 * KIB, max_requests=20, notification_credit=32 * KIB)

    def peer() -> tuple[Peer, Journal]:
        one, taken = Peer(limits=limits), Journal()

        @one.on_request
        async def echo(value: bytes) -> bytes:
            await asyncio.sleep(0)
            return value

        one.on_notification("take")(lambda value: taken.append(value))  # noqa: PLW0108 - its parameter is read
        return one, taken

    (first, first_taken), (second, second_taken) = peer(), peer()
    async with joined(first, second, over) as pair:

        async def flood(session: Session) -> None:
            for number in range(5):
                size = (10, 1000, 40_000, 200_000)[number % 4]
                assert len(await session.request("echo", bytes(size), timeout=50)) == size
                await session.notify("take", bytes(size))

        await asyncio.gather(*(flood(session) for session in pair * 20))
        await first_taken.reaches(100)
        await second_taken.reaches(100)
        for session in pair:
            statistics = session.statistics()
            assert statistics.pending == statistics.queued == statistics.requests_refused == 0


async def test_many_large_replies_at_once_keep_to_the_other_sides_memory() -> None:
    """At most so many unfinished transfers, and all of them within one max_message."""
    peer = Peer()
    peer.on_request("make")(lambda size: bytes(size))  # noqa: PLW0108 - its parameter is read
    client = Peer(limits=Limits(max_message=MIB))
    async with talking(peer, first=client) as session:
        sizes = [100_000 + n for n in range(200)]
        results = await asyncio.gather(*(session.request("make", size) for size in sizes))
        assert [len(result) for result in results] == sizes


async def test_one_who_asks_on_and_on_and_reads_nothing_is_let_go() -> None:
    peer = Peer()
    peer.on_request("work")(lambda: None)
    async with RawPeer.facing(peer) as (raw, session):
        try:
            for number in range(1, 400_000, 10_000):
                raw.send(*([PING, number + more] for more in range(10_000)))
                await raw.writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        await session.wait_closed()
        assert "reads no answers" in str(session.close_reason)


@pytest.mark.parametrize("what", ["notifications", "progress"])
async def test_one_who_is_sent_more_than_it_reads_may_ask(what: str) -> None:
    """Only what it asks for is held against it, however much else waits for it."""
    peer = Peer(limits=Limits(outbox=64 * MIB))
    sent = asyncio.Event()

    @peer.on_request
    async def work(call: Call) -> None:
        for number in range(110_000):
            await call.progress(number, message="x" * 100)
        sent.set()

    async with RawPeer.facing(peer, notification_credit=64 * MIB) as (raw, session):
        if what == "progress":
            raw.send([REQUEST, 2, "work", None, None])
            await sent.wait()
        else:
            for number in range(110_000):
                await session.notify("any", [number, "x" * 100])
        raw.send([PING, 1])
        assert await raw.receive_kind(PONG) == [PONG, 1]
        assert not session.closed


@pytest.mark.parametrize("how", ["faults", "replies behind progress", "large faults"])
async def test_answers_of_every_kind_are_bounded(how: str) -> None:
    peer = Peer(limits=Limits(max_requests=16, outbox=64 * KIB))
    answered = 0

    @peer.on_request
    def make(call: Call) -> bytes | None:
        nonlocal answered
        answered += 1
        if answered == 1:
            return bytes(MIB)  # nobody reads it, and the transport is blocked
        if how == "faults":
            raise ValueError("no")
        if how == "large faults":
            raise ValueError("no" * 20_000)
        call.report(answered, message="x" * 40_000)
        return None

    async with RawPeer.facing(peer) as (raw, session):
        with contextlib.suppress(ConnectionError):
            for number in range(1, 1000):
                raw.send([REQUEST, 2 * number, "make", None, None])
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await session.wait_closed()
        assert "does not read" in str(session.close_reason)
        assert answered < 100


@pytest.mark.parametrize("size", [10, 30_000, 100_000])
@pytest.mark.parametrize("over", ["socketpair", "pipes"])
async def test_one_who_asks_on_and_on_and_reads_is_served(over: str, size: int) -> None:
    """The outbox is never empty, but nothing stays in it."""
    peer = Peer(limits=Limits(max_requests=16))

    @peer.on_request
    def make(size: int) -> bytes:
        return bytes(size)

    async with talking(peer, over) as session:

        async def ask() -> None:
            for _ in range(50):
                assert len(await session.request("make", size)) == size

        await asyncio.gather(*(ask() for _ in range(16)))


async def test_answers_that_nobody_reads_are_bounded() -> None:
    peer = Peer(limits=Limits(max_requests=16))
    peer.on_request("make")(lambda: "x" * 20_000)
    async with RawPeer.facing(peer) as (raw, session):
        with contextlib.suppress(ConnectionError):
            for number in range(1, 1000):
                raw.send([REQUEST, 2 * number, "make", None, None])
                await asyncio.sleep(0)
        await session.wait_closed()
        assert "does not read" in str(session.close_reason)
        assert session.statistics().requests_served < 200
