"""Busy polling: a loop stays awake where answers come at once, and only there."""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

import asyncipc
from asyncipc import Peer, Timeouts
from asyncipc.session import busy_poll
from asyncipc.session.busy_poll import FIRST_PAUSE, LONGEST_PAUSE, BusyPoll


class Turns:
    """A loop by hand, with a clock by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        due, self.due = self.due, []
        for callback in due:
            callback()

    @property
    def is_asleep(self) -> bool:
        return not self.due


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    monkeypatch.setattr(busy_poll, "monotonic", lambda: turns.now)
    return turns


def warmed_up(loop: Turns, seconds: float = 1.0) -> BusyPoll:
    """One that has had its first exchanges."""
    poll = BusyPoll(cast("asyncio.AbstractEventLoop", loop), seconds)
    for _ in range(FIRST_PAUSE):
        poll.sent()
        assert loop.is_asleep
        assert not poll.is_waiting
    return poll


def test_the_loop_is_kept_awake_until_something_comes(loop: Turns) -> None:
    poll = warmed_up(loop)
    for _ in range(3):
        poll.sent()
        for _ in range(5):
            assert not loop.is_asleep
            loop.turn(0.1)
        assert poll.is_waiting
        poll.came()
        loop.turn()
        assert loop.is_asleep


def test_the_loop_is_kept_awake_for_no_longer_than_it_may(loop: Turns) -> None:
    poll = warmed_up(loop)
    poll.sent()
    loop.turn(0.9)
    assert not loop.is_asleep
    loop.turn(0.2)
    assert loop.is_asleep
    assert not poll.is_waiting


def test_what_is_sent_meanwhile_begins_the_moment_anew(loop: Turns) -> None:
    poll = warmed_up(loop)
    poll.sent()
    loop.turn(0.9)
    poll.sent()
    loop.turn(0.9)
    assert len(loop.due) == 1  # and not two
    loop.turn(0.2)
    assert loop.is_asleep


def moments_of(loop: Turns, poll: BusyPoll, exchanges: int) -> list[int]:
    """The exchanges, all without an answer in time, at which the loop is kept awake."""
    found = []
    for number in range(exchanges):
        poll.sent()
        if not loop.is_asleep:
            found.append(number)
            loop.turn(1.1)
            assert loop.is_asleep
    return found


def test_where_no_answer_comes_in_time_it_is_tried_ever_more_rarely(loop: Turns) -> None:
    found = moments_of(loop, warmed_up(loop), 20_000)
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(found)]
    assert pauses[0] == FIRST_PAUSE
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE
    assert all(
        later == min(2 * earlier, LONGEST_PAUSE) for earlier, later in itertools.pairwise(pauses)
    )


def test_an_answer_in_time_brings_it_back(loop: Turns) -> None:
    poll = warmed_up(loop)
    moments_of(loop, poll, 5000)
    while loop.is_asleep:
        poll.sent()
    poll.came()
    loop.turn()
    poll.sent()
    assert not loop.is_asleep
    loop.turn(1.1)
    assert moments_of(loop, poll, FIRST_PAUSE + 1) == [FIRST_PAUSE]


def test_it_can_be_switched_off_and_ends_with_its_session(loop: Turns) -> None:
    off = BusyPoll(cast("asyncio.AbstractEventLoop", loop), 0)
    ended = warmed_up(loop)
    ended.sent()
    ended.stop()
    loop.turn()
    for poll in (off, ended):
        for _ in range(5000):
            poll.sent()
        assert loop.is_asleep


@pytest.mark.parametrize("value", [-0.1, 0.011, float("nan")])
def test_a_moment_has_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=r"Timeouts\.busy_poll must be between 0 and 0\.01"):
        Timeouts(busy_poll=value)


def make_peer(**options: Any) -> tuple[Peer, asyncio.Event]:
    peer, may_answer = Peer(**options), asyncio.Event()

    @peer.on_request
    def echo(value: int) -> int:
        return value

    @peer.on_request
    async def slow() -> None:
        await may_answer.wait()

    return peer, may_answer


@pytest.mark.parametrize("seconds", [0, 0.0001, 0.01])
async def test_nothing_is_kept_awake_by_an_answer_that_takes_long(
    tmp_path: Any, seconds: float
) -> None:
    peer, may_answer = make_peer(timeouts=Timeouts(busy_poll=seconds))
    address = f"unix:{tmp_path}/socket"
    async with (
        asyncio.timeout(20),
        peer.serve(address),
        Peer(timeouts=Timeouts(busy_poll=seconds)).connect(address) as session,
    ):
        for number in range(10 * FIRST_PAUSE):
            assert await session.request("echo", number) == number
        waiting = asyncio.ensure_future(session.request("slow"))
        asyncio.get_running_loop().call_later(0.5, may_answer.set)
        began = time.process_time()
        await waiting
        assert time.process_time() - began < 0.25


async def test_sequential_calls_do_not_keep_others_from_their_turn(tmp_path: Any) -> None:
    peer, _ = make_peer()
    address = f"unix:{tmp_path}/socket"
    async with asyncio.timeout(20), peer.serve(address), Peer().connect(address) as session:
        turns = 0
        answered = asyncio.Event()

        async def others() -> None:
            nonlocal turns
            while not answered.is_set():
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        for number in range(100):
            assert await session.request("echo", number) == number
        answered.set()
        await task
        assert turns >= 100
        assert asyncipc.Timeouts().busy_poll > 0
