"""Dispatch: which handler gets a call, where it runs, and what it knows."""

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from asyncipc import Call, MethodNotFound, Peer, RemoteError, current_call
from tests.session.support import (
    TRANSPORTS,
    Hold,
    Journal,
    RawPeer,
    failure,
    joined,
    loop_errors,
    talking,
    until,
)

REQUEST, REPLY, FAULT, GOODBYE = 2, 3, 4, 12


# -- which handler -----------------------------------------------------------------------------


async def test_nobody_takes_it() -> None:
    async with joined(Peer(), Peer()) as (session, other):
        with pytest.raises(MethodNotFound, match="no handler takes the method 'nothing'"):
            await session.request("nothing")
        assert other.statistics().faults_sent == 1
        assert other.statistics().requests_served == 1


async def test_a_very_long_name_of_nobody() -> None:
    async with talking(Peer()) as session:
        error = await failure(session.request("n" * 1_000_000))
        assert isinstance(error, MethodNotFound)
        assert len(str(error)) < 100_000


async def test_the_star_takes_what_no_other_takes() -> None:
    peer = Peer()

    @peer.on_request("*")
    def rest(*args: Any, call: Call) -> str:
        return f"{call.method}{args}"

    @peer.on_request
    async def known() -> str:
        return "known"

    async with talking(peer, "memory") as session:
        assert await session.request("known") == "known"
        assert await session.request("unknown", [1]) == "unknown(1,)"
        assert await session.request("*") == "*()"


async def test_the_star_for_notifications() -> None:
    peer, taken = Peer(), Journal()

    @peer.on_notification("*")
    async def rest(call: Call) -> None:
        taken.append(call.method)

    async with talking(peer, "memory") as session:
        await session.notify("one")
        await session.notify("two")
        assert await taken.reaches(2) == ["one", "two"]
        with pytest.raises(MethodNotFound):
            await session.request("one")


@pytest.mark.parametrize("kinds", ["iii", "aaa", "ttt", "iat", "ati", "tia", "ita"])
async def test_not_implemented_passes_on_through_all_kinds_of_handlers(kinds: str) -> None:
    peer = Peer()
    asked: list[str] = []

    def add(kind: str, name: str, result: Any) -> None:
        if kind == "a":

            async def in_a_task() -> Any:
                asked.append(name)
                return result

            peer.on_request("work")(in_a_task)
            return

        def plain() -> Any:
            asked.append(name)
            return result

        peer.on_request("work", thread=kind == "t")(plain)

    add(kinds[2], "last", "answer")
    add(kinds[1], "middle", NotImplemented)
    add(kinds[0], "first", NotImplemented)
    async with joined(Peer(), peer, "memory") as (session, other):
        assert await session.request("work") == "answer"
        assert asked == ["first", "middle", "last"]
        peer.on_request("never")(lambda: NotImplemented)
        with pytest.raises(MethodNotFound):
            await session.request("never")
        assert other.statistics().running == 0


@pytest.mark.parametrize("kind", ["inline", "task", "thread"])
async def test_if_all_pass_it_on_nobody_has_taken_it(kind: str) -> None:
    peer = Peer()

    async def task() -> Any:
        return NotImplemented

    if kind == "task":
        peer.on_request("work")(task)
    else:
        peer.on_request("work", thread=kind == "thread")(lambda: NotImplemented)
    async with talking(peer, "memory") as session:
        with pytest.raises(MethodNotFound, match="'work'"):
            await session.request("work")


async def test_not_implemented_passes_notifications_on() -> None:
    peer, taken = Peer(), Journal()

    @peer.on_notification("work")
    async def last() -> None:
        taken.append("last")

    @peer.on_notification("work", thread=True)
    def middle() -> Any:
        loop.call_soon_threadsafe(taken.append, "middle")
        return NotImplemented

    @peer.on_notification("work")
    def first() -> Any:
        taken.append("first")
        return NotImplemented

    loop = asyncio.get_running_loop()
    async with joined(Peer(), peer, "memory") as (session, other):
        await session.notify("work")
        assert await taken.reaches(3) == ["first", "middle", "last"]
        await until(lambda: other.statistics().running == 0)
        assert other.statistics().notifications_unhandled == 0


async def test_params_that_do_not_fit_are_not_passed_on() -> None:
    peer = Peer()
    peer.on_request("work")(lambda *_: "the other one")

    @peer.on_request("work")
    def work(number: int) -> int:
        return number

    async with talking(peer, "memory") as session:
        error = await failure(session.request("work", "text"))
        assert isinstance(error, RemoteError)
        assert "number" in error.message


async def test_the_sessions_handlers_are_asked_before_the_peers() -> None:
    peer = Peer()
    peer.on_request("who")(lambda _="": "peer")
    async with joined(Peer(), peer, "memory") as (session, other):

        @other.on_request
        def who(ask: str = "session") -> Any:
            return NotImplemented if ask == "peer" else ask

        @other.on_request("*")
        def rest() -> str:
            return "session's rest"

        async with talking(peer, "memory") as elsewhere:
            assert await session.request("who") == "session"
            assert await session.request("who", "peer") == "peer"
            assert await elsewhere.request("who") == "peer"
            assert await session.request("else") == "session's rest"
            with pytest.raises(MethodNotFound):
                await elsewhere.request("else")
            other.remove(who)
            assert await session.request("who") == "peer"


async def test_handlers_come_and_go_while_sessions_are_open() -> None:
    peer, hold = Peer(), Hold()
    async with talking(peer, "memory") as session:
        with pytest.raises(MethodNotFound):
            await session.request("hold")
        peer.on_request("hold")(hold)
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        peer.remove("hold")
        with pytest.raises(MethodNotFound):
            await session.request("hold")
        hold.release()
        assert await task == "done"  # what runs goes on


# -- where it runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_where_handlers_run(over: str) -> None:
    peer = Peer()

    @peer.on_request("inline")
    def inline_without_a_task() -> tuple[int, bool]:
        return threading.get_ident(), asyncio.current_task() is None

    @peer.on_request
    async def in_a_task() -> tuple[int, bool]:
        return threading.get_ident(), asyncio.current_task() is not None

    @peer.on_request(thread=True)
    def in_a_thread() -> tuple[int, bool]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return threading.get_ident(), True

    async with talking(peer, over) as session:
        here = threading.get_ident()
        assert await session.request("inline") == (here, True)
        assert await session.request("in_a_task") == (here, True)
        thread, _ = await session.request("in_a_thread")
        assert thread != here


async def test_threads_run_beside_each_other() -> None:
    peer = Peer()
    barrier = threading.Barrier(3)

    @peer.on_request(thread=True)
    def meet() -> bool:
        barrier.wait(10)
        return True

    async with talking(peer) as session:
        assert await asyncio.gather(*(session.request("meet") for _ in range(3))) == [True] * 3


async def test_a_blocking_thread_does_not_hold_up_the_session() -> None:
    peer = Peer()
    go_on = threading.Event()

    @peer.on_request(thread=True)
    def work() -> str:
        go_on.wait(10)
        return "done"

    @peer.on_request
    def quick() -> str:
        return "quick"

    async with talking(peer) as session:
        task = asyncio.create_task(session.request("work"))
        assert await session.request("quick") == "quick"
        assert not task.done()
        go_on.set()
        assert await task == "done"


# -- what it knows -----------------------------------------------------------------------------


async def test_what_a_call_says_about_itself() -> None:
    peer = Peer()
    seen = Journal()

    @peer.on_request
    def inline(first: int, call: Call) -> None:
        seen.append(call)

    @peer.on_request
    async def in_a_task(call: Call | None, *, first: int) -> None:
        seen.append(call)

    @peer.on_request(thread=True)
    def in_a_thread(*, first: int, call: Call) -> None:
        seen.append(call)

    async with joined(Peer(), peer, "memory") as (session, other):
        for method in ("inline", "in_a_task", "in_a_thread"):
            await session.request(method, {"first": 1}, timeout=100, metadata={"a": 1})
            call = seen[-1]
            assert call.method == method
            assert call.session is other
            assert call.metadata == {"a": 1}
            assert call.deadline is not None
            assert 90 < call.remaining <= 100
            assert not call.cancelled
            assert call.depth == 0
            assert repr(call) == f"<Call '{method}'>"


async def test_the_current_call_is_known_in_nested_functions_tasks_and_threads() -> None:
    peer = Peer()

    def deep_down() -> Call:
        return current_call()

    @peer.on_request
    def inline(call: Call) -> bool:
        return deep_down() is call

    @peer.on_request
    async def in_a_task(call: Call) -> bool:
        async def child() -> bool:
            return deep_down() is call

        return all(
            [
                deep_down() is call,
                await child(),
                await asyncio.create_task(child()),
                await asyncio.to_thread(deep_down) is call,
            ]
        )

    @peer.on_request(thread=True)
    def in_a_thread(call: Call) -> bool:
        return deep_down() is call

    async with talking(peer, "memory") as session:
        for method in ("inline", "in_a_task", "in_a_thread"):
            assert await session.request(method)
    with pytest.raises(Exception, match="no call is being served here"):
        deep_down()


async def test_each_handler_has_a_fresh_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="fresh")
    variable.set("of whoever opened the session")
    peer = Peer()

    @peer.on_request
    def inline() -> str:
        found = variable.get()
        variable.set("of another handler")
        return found

    @peer.on_request
    async def in_a_task() -> str:
        found = variable.get()
        variable.set("of another handler")
        await asyncio.sleep(0)
        return found

    @peer.on_request(thread=True)
    def in_a_thread() -> str:
        found = variable.get()
        variable.set("of another handler")
        return found

    taken = Journal()

    @peer.on_notification
    def notified() -> None:
        taken.append(inline())

    for over in TRANSPORTS:
        async with talking(peer, over) as session:
            for method in ("inline", "in_a_task", "in_a_thread") * 2:
                assert await session.request(method) == "fresh"
            taken.clear()
            await session.notify("notified")
            await session.notify("notified")
            assert await taken.reaches(2) == ["fresh", "fresh"]
    assert variable.get() == "of whoever opened the session"


async def test_a_session_opened_by_a_handler_does_not_inherit_its_call() -> None:
    inner, outer = Peer(), Peer()
    seen = Journal()

    @inner.on_request
    def inline() -> str:
        return current_call().method

    @outer.on_request
    async def work() -> Any:
        async with joined(Peer(), inner) as (session, other):
            other.on_close(lambda _: seen.append(asyncio.current_task()))
            return await session.request("inline")

    async with talking(outer) as session:
        assert await session.request("work") == "inline"


# -- what other sides may do -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_fields", "complaint"),
    [
        ([3, "any", None, None], "ids are even and count up"),
        ([2, 7, None, None], "the method"),
        (["2", "any", None, None], "the id"),
        ([2, "any", "scalar", None], None),
        ([2], "the method"),
        ([2, "any", None, "5"], "the timeout"),
        ([2, "any", None, None, "metadata"], "the metadata"),
        ([2, "any", None, None, {"depth": 0}], "depth should be a positive integer"),
        ([2, "any", None, None, {"depth": "x"}], "depth should be a positive integer"),
    ],
)
async def test_requests_that_break_the_rules(
    request_fields: list[Any], complaint: str | None
) -> None:
    with loop_errors() as errors:
        async with RawPeer.facing(Peer()) as (raw, session):
            raw.send([REQUEST, *request_fields])
            message = await raw.receive()
            if complaint is None:
                assert message[0] == FAULT
                return
            assert message[0] == GOODBYE
            assert complaint in message[3]
            await session.wait_closed()
            assert complaint in str(session.close_reason)
    assert not errors


async def test_ids_must_count_up() -> None:
    async with RawPeer.facing(Peer()) as (raw, session):
        raw.send([REQUEST, 4, "any", None, None])
        assert (await raw.receive())[:2] == [FAULT, 5]
        raw.send([REQUEST, 4, "any", None, None])
        goodbye = await raw.receive_kind(GOODBYE)
        assert "a request with the id 4 after 4" in goodbye[3]
        await session.wait_closed()


async def test_short_requests_are_as_good_as_long_ones() -> None:
    peer = Peer()
    peer.on_request("args")(lambda *args: len(args))
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send(
            [REQUEST, 2, "args"],
            [REQUEST, 4, "args", [1]],
            [REQUEST, 6, "args", [1, 2], 5],
            [REQUEST, 8, "args", [1, 2, 3], None, {}],
            [REQUEST, 10, "args", [1], None, None, "of a later version"],
        )
        replies = [await raw.receive_kind(REPLY) for _ in range(5)]
        assert replies == [[REPLY, 3 + 2 * n, count] for n, count in enumerate([0, 1, 2, 3, 1])]
