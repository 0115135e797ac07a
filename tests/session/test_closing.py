"""The end of a session: in good order or not, from wherever, once, and told to everybody."""

import asyncio
import gc
import os
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncipc import (
    Limits,
    Peer,
    PeerDied,
    RemoteError,
    RequestRefused,
    RequestTimeout,
    Session,
    SessionClosed,
    Timeouts,
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
    loop_errors,
    settled,
    talking,
    until,
)

REQUEST, REPLY, FAULT, NOTIFY, CANCEL, GOODBYE = 2, 3, 4, 5, 6, 12
PING = 65

QUICK = Timeouts(goodbye=0.05)


# -- in good order -----------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_both_sides_know_that_it_ended_in_good_order(over: str) -> None:
    async with joined(Peer(), Peer(), over) as (session, other):
        reasons = Journal()
        session.on_close(reasons.append)
        other.on_close(reasons.append)
        assert not session.closed
        await session.aclose()
        assert session.closed
        await other.wait_closed()
        assert other.closed
        assert reasons == [None, None]
        assert session.close_reason is other.close_reason is None


async def test_a_copy_of_the_socket_does_not_hide_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours.dup():  # as a process has that was forked meanwhile
        opening = Peer().wrap(ours), Peer(timeouts=Timeouts(goodbye=60)).wrap(theirs)
        session, other = await asyncio.gather(*opening)
        await session.aclose()
        async with asyncio.timeout(10):
            await other.wait_closed()
        assert other.close_reason is None


async def test_a_copy_of_a_pipe_does_not_hide_the_end() -> None:
    (our_input, their_output), (their_input, our_output) = os.pipe(), os.pipe()
    copies = os.dup(our_input), os.dup(our_output)
    opening = (
        Peer().wrap(our_input, our_output),
        Peer(timeouts=QUICK).wrap(their_input, their_output),
    )
    session, other = await asyncio.gather(*opening)
    await session.aclose()
    async with asyncio.timeout(10):
        await other.wait_closed()
    assert other.close_reason is None
    for copy in copies:
        os.close(copy)


async def test_one_who_says_goodbye_and_stays_is_left() -> None:
    async with RawPeer.facing(Peer(timeouts=QUICK)) as (raw, session):
        raw.send([GOODBYE, 0, 0, ""])
        async with asyncio.timeout(10):
            await session.wait_closed()
        assert session.close_reason is None


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "timed out"])
async def test_one_who_says_goodbye_and_owes_answers_is_not_left(answered: bool) -> None:
    async with RawPeer.facing(Peer(timeouts=QUICK)) as (raw, session):
        loop, timeout = asyncio.get_running_loop(), 30 if answered else 0.2
        calls = [asyncio.create_task(session.request("slow", timeout=timeout)) for _ in range(2)]
        ids = [(await raw.receive_kind(REQUEST))[1] for _ in calls]
        raw.send([GOODBYE, ids[-1], 0, ""])
        for number, wire_id in enumerate(ids if answered else ()):
            loop.call_later((number + 1) * 3 * QUICK.goodbye, raw.send, [REPLY, wire_id + 1, 7])
        async with asyncio.timeout(10):
            results = await asyncio.gather(*calls, return_exceptions=True)
            await session.wait_closed()
        if answered:
            assert results == [7, 7]
        else:
            assert [type(result) for result in results] == [RequestTimeout] * 2
        assert session.close_reason is None


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_what_this_side_serves_may_finish(over: str) -> None:
    peer, hold = holding()
    async with joined(Peer(), peer, over) as (session, other):
        tasks = [asyncio.create_task(session.request("hold")) for _ in range(3)]
        await hold.calls.reaches(3)
        closing = asyncio.create_task(other.aclose())
        await until(lambda: session._connection._refusal is not None)
        assert not closing.done()
        assert not other.closed
        hold.release()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        await closing
        await session.wait_closed()
        assert session.close_reason is None


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_a_large_reply_still_arrives(over: str) -> None:
    peer = Peer()
    go_on, made = asyncio.Event(), bytes(range(256)) * 32 * KIB

    @peer.on_request
    async def make() -> bytes:
        await go_on.wait()
        return made

    async with joined(Peer(), peer, over) as (session, other):
        task = asyncio.create_task(session.request("make"))
        await until(lambda: other.statistics().running)
        closing = asyncio.create_task(other.aclose())
        go_on.set()
        assert await task == made
        await closing


async def test_a_reply_arrives_also_where_the_caller_goes_on_sending() -> None:
    """Over TCP, closing a socket that has unread data would throw away what was sent."""
    server, client = Peer(), Peer()
    go_on, made = asyncio.Event(), bytes(range(256)) * 32 * KIB

    @server.on_request
    async def make() -> bytes:
        await go_on.wait()
        return made

    accepted: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
    async with (
        server.serve("tcp:127.0.0.1:0", insecure=True, on_session=accepted.set_result) as listener,
        client.connect(listener.address) as session,
    ):
        other = await accepted
        task = asyncio.create_task(session.request("make"))
        await until(lambda: other.statistics().running)

        async def chatter() -> None:
            while True:
                await session.notify("chatter", bytes(1000))
                await asyncio.sleep(0)

        server.on_notification("chatter")(lambda _: None)
        talker = asyncio.create_task(chatter())
        await settled(session)
        closing = asyncio.create_task(other.aclose())
        go_on.set()
        assert await task == made
        await closing
        assert isinstance(await failure(talker), RequestRefused | SessionClosed)


async def test_notifications_that_are_under_way_are_served() -> None:
    peer, hold = Peer(), Hold()
    peer.on_notification("hold")(hold)
    async with joined(Peer(), peer) as (session, other):
        await session.notify("hold")
        await session.notify("hold", bytes(MIB))
        await session.aclose()  # what was sent before it arrives, and is begun
        await hold.calls.reaches(2)
        await other.wait_closed()


async def test_what_was_notified_before_closing_arrives() -> None:
    peer, taken = Peer(), Journal()
    peer.on_notification("take")(taken.append)
    async with joined(Peer(), peer) as (session, other):
        for number in range(200):
            await session.notify("take", number)
        await session.notify("take", bytes(4 * MIB))
        await session.aclose()
        await other.wait_closed()
        assert taken[:200] == list(range(200))
        assert len(taken[200]) == 4 * MIB


async def test_new_requests_are_refused_and_were_not_started() -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, other):
        first = asyncio.create_task(session.request("hold", 1))
        await hold.calls.reaches(1)
        closing = asyncio.create_task(other.aclose())
        await asyncio.sleep(0)
        # Sent before the goodbye has come, and refused over there, or after, and refused here.
        early = asyncio.create_task(session.request("hold", 2))
        error = await failure(early)
        assert type(error) is RequestRefused
        assert "clos" in str(error)
        error = await failure(session.request("hold", 3))
        assert type(error) is RequestRefused
        assert str(error) == "the other side is closing the session"
        assert type(await failure(session.notify("hold"))) is RequestRefused
        assert len(hold.calls) == 1
        hold.release()
        assert await first == "done"
        await closing


async def test_requests_in_line_are_refused_at_once() -> None:
    peer, hold = holding(peer=Peer(limits=Limits(max_requests=1)))
    async with joined(Peer(), peer) as (session, other):
        first = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        waiting = [asyncio.create_task(session.request("hold")) for _ in range(40)]
        await settled(session)
        assert session.statistics().queued == 40
        closing = asyncio.create_task(other.aclose())
        errors = [await failure(task) for task in waiting]  # while the first still runs
        assert {type(error) for error in errors} == {RequestRefused}
        assert len(set(map(id, errors))) == 40
        assert not first.done()
        hold.release()
        assert await first == "done"
        await closing
        assert len(hold.calls) == 1


async def test_the_goodbye_says_what_was_accepted() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None], [REQUEST, 4, "hold", None, None])
        await hold.calls.reaches(2)
        closing = asyncio.create_task(session.aclose())
        assert await raw.receive_kind(GOODBYE) == [GOODBYE, 4, 0, ""]
        raw.send([REQUEST, 6, "hold", None, None])
        fault = await raw.receive_kind(FAULT)
        assert fault[:3] == [FAULT, 7, 6]
        assert fault[3] == "the session is closing"
        assert session.statistics().requests_refused == 1
        hold.release()
        assert (await raw.receive_kind(REPLY))[1] == 3
        assert (await raw.receive_kind(REPLY))[1] == 5
        await closing


async def test_only_requests_behind_the_goodbyes_id_are_refused() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        calls = [asyncio.create_task(session.request("any", n)) for n in range(3)]
        ids = [(await raw.receive_kind(REQUEST))[1] for _ in range(3)]
        raw.send([GOODBYE, ids[1], 0, ""])
        assert type(await failure(calls[2])) is RequestRefused
        assert not calls[0].done()
        raw.send([REPLY, ids[1] + 1, "second"], [REPLY, ids[0] + 1, "first"])
        assert await calls[0] == "first"
        assert await calls[1] == "second"
        raw.close()
        await session.wait_closed()
        assert session.close_reason is None


async def test_a_large_request_that_is_refused_is_not_sent_to_its_end() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any", bytes(16 * MIB)))
        assert (await raw.receive())[0] == 9  # it has begun
        raw.send([GOODBYE, 0, 0, ""])
        assert type(await failure(task)) is RequestRefused
        assert session.statistics().outbox_size < MIB


async def test_calls_of_this_side_fail_and_are_cancelled_over_there() -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, _other):
        tasks = [asyncio.create_task(session.request("hold")) for _ in range(3)]
        await hold.calls.reaches(3)
        await session.aclose()
        errors = [await failure(task) for task in tasks]
        assert {type(error) for error in errors} == {SessionClosed}
        assert {str(error) for error in errors} == {"this side closed the session"}
        assert len(set(map(id, errors))) == 3  # one's own traceback for each
        await hold.cancelled.reaches(3)
        for use in (session.request("hold"), session.notify("hold"), session.ping()):
            assert str(await failure(use)) == "this side closed the session"


async def test_calls_within_what_finishes_fail_clearly() -> None:
    first, second = Peer(), Peer()
    started, go_on = asyncio.Event(), asyncio.Event()
    async with joined(first, second) as (session, back):

        @second.on_request
        async def work() -> Any:
            started.set()
            await go_on.wait()
            return await back.request("more")

        task = asyncio.create_task(session.request("work"))
        await started.wait()
        closing = asyncio.create_task(back.aclose())
        await asyncio.sleep(0)
        go_on.set()
        error = await failure(task)
        assert isinstance(error, RemoteError)
        assert error.type == "SessionClosed"
        await closing


async def test_both_sides_close_at_once() -> None:
    first, second = Peer(), Peer()
    hold = Hold()
    first.on_request("hold")(hold)
    second.on_request("hold")(hold)
    for _ in range(20):
        async with joined(first, second) as (session, other):
            tasks = [asyncio.create_task(one.request("hold")) for one in (session, other)]
            await settled(session, other)
            await asyncio.gather(session.aclose(), other.aclose())
            for task in tasks:
                assert isinstance(await failure(task), SessionClosed | RequestRefused)
            assert session.close_reason is other.close_reason is None


# -- bounded -----------------------------------------------------------------------------------


async def test_handlers_that_take_too_long_are_cancelled() -> None:
    peer, hold = holding(peer=Peer(timeouts=QUICK))
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        await other.aclose()
        assert other.closed
        [call] = await hold.cancelled.reaches(1)
        assert call.cancelled
        assert isinstance(await failure(task), SessionClosed)


async def test_no_time_for_a_goodbye_at_all() -> None:
    peer, hold = holding(peer=Peer(timeouts=Timeouts(goodbye=0)))
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        await other.aclose()
        await hold.cancelled.reaches(1)
        assert isinstance(await failure(task), SessionClosed)


async def test_one_who_does_not_read_does_not_hold_up_the_end() -> None:
    async with RawPeer.facing(Peer(timeouts=QUICK)) as (_raw, session):
        task = asyncio.create_task(session.request("any", bytes(16 * MIB)))
        await until(lambda: session.statistics().bytes_sent > 100 * KIB)
        await session.aclose()
        assert session.closed
        assert isinstance(await failure(task), SessionClosed)


# -- from wherever -----------------------------------------------------------------------------


async def test_twice_and_by_several_tasks() -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        reasons = Journal()
        other.on_close(reasons.append)
        closing = [asyncio.create_task(other.aclose()) for _ in range(5)]
        await settled_turns()
        assert not any(each.done() for each in closing)
        hold.release()
        await asyncio.gather(*closing)
        await other.aclose()
        await other.aclose()
        assert await task == "done"
        assert reasons == [None]


async def settled_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("over", ["memory", "socketpair"])
async def test_from_a_handler_of_its_own(over: str) -> None:
    peer = Peer()
    ended = Journal()

    @peer.on_request
    async def stop() -> str:
        await other.aclose()  # only begins: it waits for this very handler
        ended.append(other.closed)
        return "stopped"

    @peer.on_request
    def stop_inline() -> str:
        tasks.append(asyncio.get_running_loop().create_task(other.aclose()))
        return "stopped"

    @peer.on_notification("stop")
    async def stop_notified() -> None:
        await other.aclose()
        ended.append(other.closed)

    tasks: list[asyncio.Task[None]] = []
    async with joined(Peer(), peer, over) as (session, other):
        assert await session.request("stop") == "stopped"
        await asyncio.gather(session.wait_closed(), other.wait_closed())
    async with joined(Peer(), peer, over) as (session, other):
        assert await session.request("stop_inline") == "stopped"
        await asyncio.gather(session.wait_closed(), other.wait_closed(), *tasks)
    async with joined(Peer(), peer, over) as (session, other):
        await session.notify("stop")
        await asyncio.gather(session.wait_closed(), other.wait_closed())
    assert ended == [False, False]


async def test_a_handler_may_use_async_with_on_its_own_session() -> None:
    peer = Peer()

    @peer.on_request
    async def stop() -> str:
        async with other:
            return "stopped"

    async with joined(Peer(), peer) as (session, other):
        assert await session.request("stop") == "stopped"
        await asyncio.gather(session.wait_closed(), other.wait_closed())


async def test_a_handler_closes_the_whole_peer() -> None:
    peer = Peer()

    @peer.on_request
    async def shutdown() -> str:
        await peer.aclose()
        return "bye"

    async with joined(Peer(), peer) as (session, other):
        assert await session.request("shutdown") == "bye"
        await asyncio.gather(session.wait_closed(), other.wait_closed())


async def test_while_cancelled() -> None:
    peer, hold = holding()
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        closing = asyncio.create_task(other.aclose())
        await settled_turns()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not other.closed  # but it goes on
        hold.release()
        assert await task == "done"
        await other.wait_closed()


async def test_in_a_task_that_was_cancelled_before() -> None:
    async with joined(Peer(), Peer()) as (session, other):

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await session.aclose()

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.closed
        await other.wait_closed()


async def test_waiting_for_the_end_can_be_given_up() -> None:
    async with joined(Peer(), Peer()) as (session, _other):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await session.wait_closed()
        assert not session.closed
        await session.ping()


# -- who is told -------------------------------------------------------------------------------


async def test_on_close() -> None:
    told = Journal()

    def fails(_: SessionClosed | None) -> None:
        told.append("fails")
        raise ValueError("in on_close")

    with loop_errors() as errors:
        async with joined(Peer(), Peer()) as (session, _other):
            session.on_close(lambda reason: told.append(("first", reason)))
            session.on_close(fails)
            session.on_close(lambda reason: told.append(("second", reason, session.closed)))
        assert told == [("first", None), "fails", ("second", None, True)]
        session.on_close(lambda reason: told.append(("late", reason)))
        assert len(told) == 3
        await told.reaches(4)
        assert told[3] == ("late", None)
    assert not errors


async def test_on_close_may_use_the_peer() -> None:
    first, second = Peer(), Peer()
    done = asyncio.Event()
    async with joined(first, second) as (session, other):

        def reconnect(_: SessionClosed | None) -> None:
            assert type(other.statistics().pending) is int
            done.set()

        other.on_close(reconnect)
        await session.aclose()
        await done.wait()


async def test_the_peers_know_which_sessions_stand() -> None:
    first, second = Peer(), Peer()
    async with joined(first, second) as (session, other):
        assert first.sessions == {session}
        assert second.sessions == {other}
        await session.aclose()
        assert not first.sessions
        await other.wait_closed()
        assert not second.sessions


async def test_every_waiter_gets_the_reason() -> None:
    peer = Peer(limits=Limits(outbox=16 * KIB))
    async with RawPeer.facing(peer, max_requests=1, notification_credit=16 * KIB) as (raw, session):
        served = Journal()

        @session.on_request
        async def flood(call: Any) -> None:
            served.append(call)
            while True:
                await call.progress(1, message="x" * 1000)

        started = asyncio.create_task(session.request("any"))
        waiters: list[Awaitable[Any]] = [
            started,
            asyncio.create_task(session.request("any")),  # waits for a slot
            asyncio.create_task(session.ping()),
            asyncio.create_task(session.notify("any", bytes(16 * KIB))),
            asyncio.create_task(session.notify("any")),  # waits for credit
        ]
        await until(lambda: session.statistics().queued == 2)
        raw.writer.transport.abort()
        errors = await asyncio.gather(*waiters, return_exceptions=True)
        assert errors[3] is None  # it had been sent
        rest = [error for error in errors if error is not None]
        assert len(rest) == 4
        assert {type(error) for error in rest} == {PeerDied}
        assert len(set(map(id, rest))) == 4
        await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)
        assert session.statistics().pending == session.statistics().queued == 0


async def test_a_session_can_be_forgotten() -> None:
    """Nothing keeps a session that has ended, and its handlers, alive."""
    first, second = Peer(), Peer()
    second.on_request("echo")(lambda value: value)

    async def use() -> list[weakref.ref[Any]]:
        async with joined(first, second) as (session, other):
            handler = Hold()
            other.on_request("hold")(handler)
            await session.request("echo", 1, on_progress=lambda _: None)
            await failure(session.request("hold", timeout=0))
            return [weakref.ref(session), weakref.ref(other), weakref.ref(handler)]

    references = await use()
    await settled_turns()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


# -- half closed -------------------------------------------------------------------------------


async def test_end_of_input_is_no_end_for_what_runs() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None], [REQUEST, 4, "hold", None, None])
        raw.writer.write_eof()
        await hold.calls.reaches(2)
        await until(lambda: session._connection.state.name == "CLOSING")
        assert not session.closed
        hold.release()
        assert (await raw.receive_kind(REPLY))[1] == 3
        assert (await raw.receive_kind(REPLY))[1] == 5
        await session.wait_closed()


async def test_end_of_input_ends_calls_whose_answer_cannot_come() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None])
        tasks = [
            asyncio.create_task(session.request("any")),
            asyncio.create_task(session.ping()),
        ]
        await hold.calls.reaches(1)
        raw.writer.write_eof()
        for task in tasks:
            error = await failure(task)
            assert isinstance(error, SessionClosed)
            assert "sends no more" in str(error)
        assert not session.closed
        hold.release()
        assert (await raw.receive_kind(REPLY))[1] == 3
        await session.wait_closed()


async def test_closing_after_end_of_input_is_bounded() -> None:
    peer, hold = holding(peer=Peer(timeouts=QUICK))
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None])
        await hold.calls.reaches(1)
        raw.writer.write_eof()
        await until(lambda: session._connection.state.name == "CLOSING")
        await session.aclose()
        assert session.closed
        await hold.cancelled.reaches(1)


async def test_a_hang_up_after_end_of_input_cancels_what_runs() -> None:
    peer, hold = holding()
    async with RawPeer.facing(peer) as (raw, session):
        raw.send([REQUEST, 2, "hold", None, None])
        await hold.calls.reaches(1)
        raw.writer.write_eof()
        await until(lambda: session._connection.state.name == "CLOSING")
        raw.close()
        await hold.cancelled.reaches(1)
        await session.wait_closed()


# -- not in good order -------------------------------------------------------------------------


async def broken_off(end: Callable[[RawPeer], object]) -> tuple[BaseException, SessionClosed]:
    """What a caller gets, and the reason that the session gives."""
    async with RawPeer.facing(Peer()) as (raw, session):
        task = asyncio.create_task(session.request("any"))
        await raw.receive_kind(REQUEST)
        end(raw)
        error = await failure(task)
        await session.wait_closed()
        reason = session.close_reason
        assert reason is not None
        return error, reason


@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        (RawPeer.close, PeerDied, "the other side hung up without a goodbye"),
        (
            lambda raw: (raw.writer.write(b"\xf3\x4a\x9d\xe2\0\0\0\x09\0\0\0\0\x93"), raw.close()),
            PeerDied,
            "hung up without a goodbye, 13 bytes into a frame",
        ),
        (
            lambda raw: raw.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            SessionClosed,
            "does not speak this protocol",
        ),
        (lambda raw: raw.send([GOODBYE, 0, 1, "you broke it"]), SessionClosed, "you broke it"),
        (lambda raw: raw.send([GOODBYE, 0, 4, "too many"]), SessionClosed, "too many"),
    ],
)
async def test_ends_that_are_not_in_good_order(
    end: Callable[[RawPeer], object], kind: type[SessionClosed], text: str
) -> None:
    error, reason = await broken_off(end)
    assert type(error) is type(reason) is kind
    assert text in str(error)
    assert text in str(reason)


async def test_a_reset_is_a_death() -> None:
    peer = Peer()
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    other = Peer()

    async def open_them() -> tuple[Session, Session]:
        return tuple(await asyncio.gather(*map(opened, (peer.wrap(ours), other.wrap(theirs)))))  # type: ignore[return-value]

    session, remote = await open_them()
    async with session, remote:
        hold = Hold()
        remote.on_request("hold")(hold)
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        remote._connection.transport.close()  # with a reset instead of a FIN
        error = await failure(task)
        assert type(error) is PeerDied
        assert isinstance(error.__cause__, ConnectionResetError)
        await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)


async def opened(opening: Any) -> Session:
    session = await opening
    assert isinstance(session, Session)
    return session


async def test_a_goodbye_and_then_a_broken_frame() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        raw.send([GOODBYE, 0, 0, ""])
        raw.writer.write(b"what is this?")
        await session.wait_closed()
        assert session.close_reason is not None
        assert "does not speak this protocol" in str(session.close_reason)


async def test_opening_that_is_cancelled_leaves_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        task = asyncio.create_task(opened(Peer().wrap(ours)))
        await settled_turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        theirs.settimeout(5)
        assert theirs.recv(4) == b"\xf3\x4a\x9d\xe2"
        while theirs.recv(1000):
            pass  # until its end


async def test_pings_after_the_end() -> None:
    async with talking(Peer()) as session:
        assert 0 < await session.ping() < 10
    assert isinstance(await failure(session.ping()), SessionClosed)
