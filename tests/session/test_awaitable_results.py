"""Plain handlers that return something to be awaited: a lambda around an ``async def``, mostly."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asyncipc import Call, MethodNotFound, Peer, RemoteError, current_call
from tests.session.support import Hold, Journal, RawPeer, failure, joined, talking, until

REQUEST, REPLY, FAULT, CANCEL = 2, 3, 4, 6


async def double(value: int) -> int:
    assert current_call().method == "double"
    await asyncio.sleep(0)
    return 2 * value


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind one that does not tell what it returns."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Doubles:
    def __init__(self, value: int) -> None:
        self.value = value

    def __await__(self) -> Any:
        return double(self.value).__await__()


@pytest.mark.parametrize(
    "handler",
    [
        plain(double),
        lambda value: asyncio.ensure_future(double(value)),
        plain(Doubles),
    ],
    ids=["coroutine", "task", "awaitable"],
)
@pytest.mark.parametrize("thread", [False, True])
async def test_what_a_plain_handler_returns_is_awaited(
    handler: Callable[[int], Any], thread: bool
) -> None:
    peer = Peer()
    if thread:
        handler = plain(Doubles)
    peer.on_request("double", thread=thread)(handler)
    async with joined(Peer(), peer) as (session, other):
        assert await asyncio.gather(*(session.request("double", n) for n in range(3))) == [0, 2, 4]
        assert other.statistics().running == 0


async def test_what_it_raises_is_the_answer() -> None:
    async def fails() -> None:
        raise ValueError("later")

    peer = Peer()
    peer.on_request("fail")(plain(fails))
    async with talking(peer) as session:
        with pytest.raises(RemoteError, match="later"):
            await session.request("fail")


async def test_it_may_pass_the_call_on() -> None:
    async def passes(*_: object) -> Any:
        return NotImplemented

    peer = Peer()
    peer.on_request("taken")(lambda value: value + 1)
    for _ in range(2):
        peer.on_request("taken")(plain(passes))
    peer.on_request("nobody")(plain(passes))
    async with talking(peer) as session:
        assert await session.request("taken", 1) == 2
        with pytest.raises(MethodNotFound):
            await session.request("nobody")


async def test_the_caller_may_give_it_up() -> None:
    hold = Hold()
    peer = Peer()
    peer.on_request("hold")(lambda: hold(call=current_call()))
    async with joined(Peer(), peer) as (session, other):
        task = asyncio.create_task(session.request("hold"))
        await hold.calls.reaches(1)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: other.statistics().running == 0, session)


async def test_it_may_be_given_up_before_it_has_begun() -> None:
    peer = Peer()
    peer.on_request("double")(plain(double))
    async with RawPeer.facing(peer) as (raw, _session):
        raw.send([[REQUEST, 2, "double", [1], None], [CANCEL, 2]])  # in one turn of the loop
        assert (await raw.receive())[:2] in ([FAULT, 3], [REPLY, 3])


async def test_only_what_is_returned_itself_is_awaited() -> None:
    peer = Peer()
    coroutines: list[Any] = []

    @peer.on_request
    def within() -> Any:
        coroutines.append(double(1))
        return coroutines

    async with talking(peer) as session:
        error = await failure(session.request("within"))
        assert "coroutine cannot be sent" in str(error)
    coroutines[0].close()


async def test_notifications() -> None:
    taken = Journal()

    async def take(value: int, call: Call) -> Any:
        await asyncio.sleep(0)
        assert current_call() is call
        taken.append(value)
        return NotImplemented if value == 2 else None

    peer = Peer()
    peer.on_notification("take")(lambda value: taken.append(("behind", value)))
    peer.on_notification("take")(lambda value: take(value, current_call()))
    async with joined(Peer(), peer) as (session, other):
        await session.notify("take", {"value": 1})
        await session.notify("take", {"value": 2})
        await taken.reaches(3)
        await until(lambda: not other.statistics().running, session)
    assert taken == [1, 2, ("behind", 2)]
