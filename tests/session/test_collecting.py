"""What belongs to a call goes when the call is over, and not with the next garbage collection."""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import numpy
import pytest

from asyncipc import Peer, RequestTimeout, Session, memory_pair
from tests.session.support import KIB, joined, until


@contextmanager
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("started", [True, False])
async def test_regions_of_a_cancelled_handler_go_back_at_once(started: bool) -> None:
    began = asyncio.Event()
    peer = Peer(timeout=None)

    @peer.on_request
    async def hold(_data: memoryview) -> None:
        began.set()
        await asyncio.Event().wait()

    async with joined(Peer(timeout=None), peer, "socketpair") as (session, other):
        data = memoryview(bytes(512 * KIB))
        await asyncio.gather(session.request("hold", [data], timeout=0.01), return_exceptions=True)
        with no_collections():
            if started:
                began.clear()
                waiting = asyncio.ensure_future(session.request("hold", [data]))
                await began.wait()
                waiting.cancel()
                await asyncio.wait([waiting])
            else:  # the request and its cancellation leave in one turn, and are read in one
                work = session.request("hold", [data])
                work.send(None)
                with pytest.raises(asyncio.CancelledError):
                    work.throw(asyncio.CancelledError())
            await until(lambda: not session.statistics().arena_used, session, other)


async def test_the_params_of_a_request_that_failed_go_with_its_error() -> None:
    peer = Peer()

    @peer.on_request
    async def never(_data: numpy.ndarray[Any, Any]) -> None:
        await asyncio.Event().wait()

    async def ask(session: Session) -> "ref[Any]":
        data = numpy.zeros(KIB)
        with pytest.raises(RequestTimeout):
            await session.request("never", [data], timeout=0.01)
        return ref(data)

    async with memory_pair(Peer(), peer) as (session, _):
        with no_collections():
            data = await ask(session)
            await until(lambda: data() is None, session)
