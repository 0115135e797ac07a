"""Requests: what a caller may write, what arrives, and how long it waits."""

import asyncio
import dataclasses
import datetime
import decimal
import enum
import itertools
import math
import types
import uuid
from collections import OrderedDict
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from asyncipc import (
    JSON,
    Call,
    EncodeError,
    Peer,
    RequestTimeout,
    current_call,
    message,
)
from asyncipc.session.deadlines import Deadlines
from tests.session.support import (
    TRANSPORTS,
    Hold,
    Journal,
    failure,
    holding,
    joined,
    talking,
    until,
)


@message(name="test_requests.Point")
@dataclasses.dataclass
class Point:
    x: int
    y: int


@message(name="test_requests.Color")
class Color(enum.Enum):
    RED = 1


def showing() -> Peer:
    """A peer whose methods show what arrived."""
    peer = Peer()

    @peer.on_request("arguments")
    def arguments(*args: Any, **kwargs: Any) -> list[Any]:
        return [list(args), kwargs]

    @peer.on_request("echo")
    def echo(value: Any) -> Any:
        return value

    @peer.on_request(Point)
    def mirrored(point: Point) -> Point:
        return Point(point.y, point.x)

    @peer.on_request("metadata")
    def metadata(call: Call) -> dict[str, Any]:
        return call.metadata

    @peer.on_request("remaining")
    def remaining(call: Call) -> float | None:
        return call.remaining

    return peer


# -- what is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize("over", TRANSPORTS)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_both_sides_ask(over: str, codec: str) -> None:
    first, second = Peer(codec=codec), Peer(codec=codec)

    @first.on_request
    async def add(a: int, b: int) -> int:
        return a + b

    @second.on_request
    def multiply(a: int, b: int) -> int:
        return a * b

    async with joined(first, second, over) as (session, other):
        assert await session.request("multiply", {"a": 6, "b": 7}, timeout=5) == 42
        assert await other.request("add", [6, 7], timeout=5) == 13


@pytest.mark.parametrize(
    ("params", "args", "kwargs"),
    [
        (None, [], {}),
        ({}, [], {}),
        ([], [], {}),
        ({"a": 1, "b": [2]}, [], {"a": 1, "b": [2]}),
        (OrderedDict(b=1, a=2), [], {"b": 1, "a": 2}),
        (types.MappingProxyType({"a": 1}), [], {"a": 1}),
        ([1, "two", None], [1, "two", None], {}),
        (7, [7], {}),
        (False, [False], {}),
        ("text", ["text"], {}),
        (b"bytes", [b"bytes"], {}),
        ((1, 2), [(1, 2)], {}),
        ({1, 2}, [{1, 2}], {}),
        (Point(1, 2), [Point(1, 2)], {}),
        ([[1, 2]], [[1, 2]], {}),
    ],
)
async def test_what_params_become(params: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    async with talking(showing(), "memory") as session:
        assert await session.request("arguments", params) == [args, kwargs]


async def test_a_message_object_is_method_and_parameter() -> None:
    async with talking(showing(), "memory") as session:
        assert await session.request(Point(1, 2)) == Point(2, 1)
        with pytest.raises(TypeError, match="nothing can stand beside it"):
            await session.request(Point(1, 2), {"x": 1})


@pytest.mark.parametrize("method", [None, 1, b"echo", ["echo"], Color.RED, object()])
async def test_a_method_is_a_name_or_a_message(method: Any) -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(TypeError, match="the method must be a string or an object of a class"):
            await session.request(method, 1)
        assert await session.request("echo", 1) == 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**63,
        2**64,
        -(2**200),
        0.1,
        math.inf,
        "",
        "žluťoučký \U0001f40e \0",
        b"",
        b"\x00\xff" * 50_000,
        bytearray(b"abc"),
        bytearray(100_000),
        memoryview(b"abc"),
        [],
        [[], {}, [[1]]],
        {"nested": {"list": [1, {"deep": None}]}},
        {1: "int key", (1, 2): "tuple key", None: 0},
        (1, (2, 3)),
        {1, 2, 3},
        frozenset({1}),
        1 + 2j,
        range(1, 10, 2),
        decimal.Decimal("1.10"),
        uuid.UUID(int=7),
        Path("/tmp/x"),
        datetime.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=datetime.UTC),
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3),
        datetime.timedelta(days=-1, microseconds=1),
        Color.RED,
        Point(1, 2),
        [Point(1, 2), {"p": Point(3, 4)}],
        "x" * 300_000,
        list(range(100_000)),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r:.10}",  # no addresses: the same each time
)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_results_of_every_kind(value: Any, codec: str) -> None:
    async with talking(showing(), "memory", first=Peer(codec=codec)) as session:
        result = await session.request("echo", [value])
        assert result == value
        assert type(result) is type(value)


async def test_a_codec_with_extensions_of_ones_own() -> None:
    async with talking(Peer(codec=JSON()), "memory", first=Peer(codec=JSON())) as session:
        assert await session.ping() > 0


async def test_what_cannot_be_sent_names_its_path_and_the_session_goes_on() -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(EncodeError, match=r"params\.items\[1\]\.when"):
            await session.request("echo", {"items": [{}, {"when": object()}]})
        assert session.statistics().requests_sent == 0
        assert session.statistics().pending == 0
        assert await session.request("echo", 1) == 1


async def test_handlers_start_in_the_order_of_their_requests() -> None:
    peer = Peer()
    order = []

    @peer.on_request
    async def late(number: int) -> int:
        order.append(number)
        await asyncio.sleep(0)
        return number

    @peer.on_request
    def inline(number: int) -> int:
        order.append(number)
        return number

    async with talking(peer) as session:
        calls = [session.request(("late", "inline")[i == 50], i) for i in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))
    # An inline handler does not wait for the first step of the tasks before it.
    assert [number for number in order if number != 50] == [i for i in range(100) if i != 50]


async def test_answers_come_in_any_order() -> None:
    peer = Peer()
    turns = [asyncio.Event() for _ in range(5)]

    @peer.on_request
    async def wait(number: int) -> int:
        await turns[number].wait()
        return number

    async with talking(peer) as session:
        calls = [asyncio.create_task(session.request("wait", i)) for i in range(5)]
        for number in (3, 0, 4, 1, 2):
            turns[number].set()
            assert await calls[number] == number


# -- how long it may take ----------------------------------------------------------------------


async def test_the_peers_timeout_is_the_default() -> None:
    peer, hold = holding()
    async with talking(peer, "memory", first=Peer(timeout=0.01)) as session:
        with pytest.raises(RequestTimeout, match=r"no answer to 'hold' within 0\.01 s") as caught:
            await session.request("hold")
        assert isinstance(caught.value, TimeoutError)
        await hold.cancelled.reaches(1)


async def test_a_timeout_of_ones_own_counts() -> None:
    async with talking(showing(), "memory", first=Peer(timeout=1000)) as session:
        assert 900 < await session.request("remaining") <= 1000
        assert 90 < await session.request("remaining", timeout=100) <= 100
        assert 1900 < await session.request("remaining", timeout=2000) <= 2000
        assert await session.request("remaining", timeout=None) is None


@pytest.mark.parametrize("default", [None, math.inf])
async def test_no_timeout_at_all(default: float | None) -> None:
    async with talking(showing(), "memory", first=Peer(timeout=default)) as session:
        assert await session.request("remaining") is None


async def test_an_infinite_timeout_is_none() -> None:
    async with talking(showing(), "memory") as session:
        assert await session.request("remaining", timeout=math.inf) is None
        result = await session.request("metadata", timeout=math.inf, metadata={"a": 1})
        assert result == {"a": 1}


@pytest.mark.parametrize(
    "timeout", [1e300, 10**30, 10**400, 2**63], ids=["float", "int", "huge", "64 bits"]
)
async def test_an_enormous_timeout(timeout: float) -> None:
    async with talking(showing(), "memory") as session:
        assert await session.request("echo", 1, timeout=timeout) == 1
        assert await session.request("metadata", timeout=timeout, metadata={"a": 1}) == {"a": 1}


async def test_a_timeout_of_zero_is_over_at_once() -> None:
    peer, hold = holding()
    async with talking(peer, "memory") as session:
        started = monotonic()
        with pytest.raises(RequestTimeout, match="within 0 s"):
            await session.request("hold", timeout=0)
        assert monotonic() - started < 1
        await until(lambda: session.statistics().pending == 0, session)
        assert len(hold.calls) == len(hold.cancelled)


@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan])
async def test_a_negative_timeout(timeout: float) -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(ValueError, match="timeout must not be negative, but is"):
            await session.request("echo", 1, timeout=timeout)
        with pytest.raises(ValueError, match="timeout must not be negative, but is"):
            await session.ping(timeout=timeout)
        with pytest.raises(ValueError, match="timeout must not be negative, but is"):
            Peer(timeout=timeout)


@pytest.mark.parametrize("timeout", ["5", True, datetime.timedelta(seconds=1), decimal.Decimal(1)])
async def test_a_timeout_of_another_type(timeout: Any) -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(TypeError, match="timeout must be seconds or None, not"):
            await session.request("echo", 1, timeout=timeout)
        with pytest.raises(TypeError, match="timeout must be seconds or None, not"):
            await session.ping(timeout=timeout)
        with pytest.raises(TypeError, match="timeout must be seconds or None, not"):
            Peer(timeout=timeout)


async def test_deadlines_pass_in_their_order() -> None:
    now = monotonic()
    expired = Journal()
    live = {1, 2, 3, 4, 5, 6}
    deadlines = Deadlines(
        asyncio.get_running_loop(), live, lambda call, method, timeout: expired.append(call)
    )
    for call, delay in {1: 0.03, 2: 0.01, 3: 0.05, 4: 0.02, 5: -1, 6: 0.04, 7: 0.0}.items():
        deadlines.add(call, now + delay, "any", delay)
    live.remove(6)  # answered
    assert await expired.reaches(5) == [5, 2, 4, 1, 3]


async def test_many_timeouts_at_once() -> None:
    peer, hold = holding()
    async with talking(peer, "memory") as session:
        calls = [session.request("hold", timeout=0.001 * number) for number in range(50)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, RequestTimeout) for error in errors)
        await until(lambda: session.statistics().pending == 0, session)
        assert len(hold.calls) == len(hold.cancelled)


async def test_answered_calls_leave_no_deadlines_behind() -> None:
    async with talking(showing(), "memory") as session:
        for _ in range(30):
            await asyncio.gather(*(session.request("echo", 1, timeout=1000) for _ in range(100)))
        assert len(session._connection.exchange.calls._deadlines._heap) <= 1025


# -- calls within calls ------------------------------------------------------------------------


async def remaining_when_asked(
    timeout: float | None, nested: dict[str, Any], *, same_session: bool = True
) -> float | None:
    """What is left for a call made by a handler whose caller waits ``timeout`` seconds."""
    asking, middle = showing(), Peer(timeout=500)
    last = showing()
    async with joined(asking, middle, "memory") as (session, back), talking(last, "memory") as on:

        @middle.on_request
        async def ask() -> Any:
            return await (back if same_session else on).request("remaining", **nested)

        result: float | None = await session.request("ask", timeout=timeout)
        return result


@pytest.mark.parametrize("same_session", [True, False])
@pytest.mark.parametrize(
    ("timeout", "nested", "expected"),
    [
        (100, {}, 100),  # what the caller leaves
        (None, {}, 500),  # the default of the peer in the middle, or that of its session
        (100, {"timeout": 50}, 50),
        (100, {"timeout": 1000}, 100),
        (None, {"timeout": 1000}, 1000),
        (100, {"timeout": None}, None),  # said explicitly: goes on without the caller
    ],
)
async def test_calls_within_calls_inherit_what_remains(
    timeout: float | None, nested: dict[str, Any], expected: float | None, same_session: bool
) -> None:
    remaining = await remaining_when_asked(timeout, nested, same_session=same_session)
    if not nested and not same_session:  # the default of the peer that opened the other session
        expected = 30
    if expected is None:
        assert remaining is None
    else:
        assert remaining is not None
        assert expected - 20 < remaining <= expected


async def test_a_task_that_outlives_its_handler_does_not_inherit() -> None:
    asking, serving = showing(), Peer(timeout=500)
    answered = asyncio.Event()
    background: list[asyncio.Task[Any]] = []

    async with joined(asking, serving, "memory") as (session, back):

        async def later() -> Any:
            await answered.wait()
            return await back.request("remaining")

        @serving.on_request
        async def start() -> None:
            background.append(asyncio.create_task(later()))

        await session.request("start", timeout=0.2)
        call_deadline = monotonic() + 0.2
        answered.set()
        remaining = await background[0]
        assert 400 < remaining <= 500
        assert call_deadline > 0


# -- what travels along ------------------------------------------------------------------------


async def test_metadata_travels_along() -> None:
    async with talking(showing(), "memory") as session:
        assert await session.request("metadata") == {}
        metadata: dict[Any, Any] = {"trace": "abc", "n": [1, (2,)], 3: None}
        assert await session.request("metadata", metadata=metadata) == metadata
        assert await session.request("metadata", metadata=types.MappingProxyType({"a": 1})) == {
            "a": 1
        }


async def test_metadata_that_cannot_be_sent() -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(EncodeError, match=r"metadata\.what"):
            await session.request("metadata", metadata={"what": object()})
        assert await session.request("echo", 1) == 1


@pytest.mark.parametrize("depth", [3, "deep", -1, None])
async def test_a_users_own_depth_does_not_disturb_the_librarys(depth: Any) -> None:
    async with talking(showing(), "memory") as session:
        with pytest.raises(ValueError, match="'depth'"):
            await session.request("metadata", metadata={"depth": depth})
        assert await session.request("echo", 1) == 1


async def test_request_ids_from_an_iterator() -> None:
    client = Peer(request_ids=(f"req-{n}" for n in itertools.count(1)))
    async with talking(showing(), "memory", first=client) as session:
        assert await session.request("metadata") == {"request_id": "req-1"}
        assert await session.request("metadata", metadata={"a": 1}) == {
            "request_id": "req-2",
            "a": 1,
        }
        own = await session.request("metadata", metadata={"request_id": "mine"})
        assert own == {"request_id": "mine"}


async def test_request_ids_from_a_function() -> None:
    async with talking(showing(), "memory", first=Peer(request_ids=uuid.uuid4)) as session:
        first = (await session.request("metadata"))["request_id"]
        second = (await session.request("metadata"))["request_id"]
        assert isinstance(first, uuid.UUID)
        assert first != second


async def test_request_ids_that_run_out() -> None:
    async with talking(showing(), "memory", first=Peer(request_ids=iter(["only"]))) as session:
        assert await session.request("metadata") == {"request_id": "only"}
        error = await failure(session.request("metadata"))
        assert "request_ids" in str(error)
        assert session.statistics().pending == 0


@pytest.mark.parametrize("request_ids", [7, "abc", ["a"]])
def test_request_ids_are_an_iterator_or_a_function(request_ids: Any) -> None:
    with pytest.raises(TypeError, match="request_ids must be an iterator or a function"):
        Peer(request_ids=request_ids)


async def test_current_call_is_for_handlers() -> None:
    peer = Peer()
    hold = Hold()
    peer.on_request("hold")(hold)

    @peer.on_request
    def method() -> str:
        return current_call().method

    async with talking(peer, "memory") as session:
        assert await session.request("method") == "method"
        error = await failure(asyncio.to_thread(current_call))
        assert "no call is being served here" in str(error)
