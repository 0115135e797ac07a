"""A handler that asks its caller to wait longer."""

import asyncio
import threading
from time import monotonic

import pytest

from asyncipc import Call, Peer, RequestTimeout, current_call
from tests.session.support import talking

# Seconds. Far from each other, so that a busy machine tells them apart.
SHORT, LONG = 0.2, 30.0


async def test_an_extended_call_outlives_its_timeout() -> None:
    server = Peer()
    released = asyncio.Event()

    @server.on_request("work")
    async def work(call: Call) -> float:
        call.extend_deadline(LONG)
        await released.wait()
        assert call.remaining is not None
        return call.remaining

    async with talking(server) as client:
        request = asyncio.create_task(client.request("work", timeout=SHORT))
        begin = monotonic()
        done, _ = await asyncio.wait({request}, timeout=2 * SHORT)
        assert not done, "it timed out although it was extended"
        assert monotonic() - begin > SHORT
        released.set()
        assert SHORT < await request <= LONG


async def test_an_extension_ends_too() -> None:
    server = Peer()

    @server.on_request("work")
    async def work(call: Call) -> None:
        call.extend_deadline(2 * SHORT)
        await asyncio.get_running_loop().create_future()

    async with talking(server) as client:
        begin = monotonic()
        with pytest.raises(RequestTimeout, match="work"):
            await client.request("work", timeout=SHORT)
        assert monotonic() - begin >= 2 * SHORT - 0.01


async def test_a_deadline_is_never_brought_forward() -> None:
    server = Peer()

    @server.on_request("work")
    def work() -> float:
        call = current_call()
        call.extend_deadline(0)
        assert call.remaining is not None
        return call.remaining

    async with talking(server) as client:
        assert await client.request("work", timeout=LONG) > LONG / 2


async def test_a_call_without_a_timeout_has_nothing_to_extend() -> None:
    server = Peer()

    @server.on_request("work")
    def work(call: Call) -> bool:
        call.extend_deadline(LONG)
        return call.deadline is None

    async with talking(server) as client:
        assert await client.request("work", timeout=None)


async def test_a_thread_extends_its_call() -> None:
    server = Peer()
    released = threading.Event()

    @server.on_request("work", thread=True)
    def work(call: Call) -> str:
        call.extend_deadline(LONG)
        assert released.wait(LONG)
        return "done"

    async with talking(server) as client:
        request = asyncio.create_task(client.request("work", timeout=SHORT))
        done, _ = await asyncio.wait({request}, timeout=2 * SHORT)
        assert not done
        released.set()
        assert await request == "done"


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
async def test_only_finite_seconds_extend(seconds: float) -> None:
    server = Peer()

    @server.on_request("work")
    def work(call: Call) -> str:
        with pytest.raises(ValueError, match="finite seconds from 0"):
            call.extend_deadline(seconds)
        with pytest.raises(TypeError, match="takes seconds"):
            call.extend_deadline("soon")  # type: ignore[arg-type]
        return "done"

    async with talking(server) as client:
        assert await client.request("work", timeout=LONG) == "done"
