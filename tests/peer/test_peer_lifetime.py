"""The life of a peer: what it opened it closes, in each event loop on its own."""

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import asyncipc
from asyncipc import Peer, Session, Timeouts, memory_pair
from tests.peer.support import echoing, holding, socket_path


async def test_a_peer_closes_what_it_opened(path: Path) -> None:
    async with echoing() as peer:
        server = await peer.serve(f"unix:{path}")
        session = await peer.connect(server.address)
        assert len(peer.sessions) == 2
    async with asyncio.timeout(5):
        await server.wait_closed()
        await session.wait_closed()
    assert session.close_reason is None
    assert not peer.sessions
    assert not path.exists()


async def test_a_peer_closes_when_its_block_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - only one can raise it
        async with echoing() as peer:
            await peer.serve(f"unix:{path}")
            raise ZeroDivisionError
    assert not path.exists()


async def test_a_peer_can_be_used_again(path: Path) -> None:
    peer = echoing()
    for _ in range(2):
        async with peer:
            server = await peer.serve(f"unix:{path}")
            session = await peer.connect(server.address)
            assert await session.request("echo", [1]) == 1


async def test_a_peer_that_opened_nothing() -> None:
    async with Peer() as peer:
        assert peer.sessions == frozenset()
    await peer.aclose()


async def test_closing_goes_on_when_its_caller_is_cancelled(path: Path) -> None:
    peer, hold = holding()
    server = await peer.serve(f"unix:{path}")
    client = await Peer().connect(server.address)
    session = await peer.connect(server.address)
    waiting = asyncio.create_task(client.request("hold"))
    await hold.started.wait()
    closing = asyncio.create_task(peer.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    hold.released.set()
    async with asyncio.timeout(5):
        assert await waiting == "released"
        await server.wait_closed()
        await session.wait_closed()
        await client.wait_closed()


async def test_a_handler_closes_its_peer() -> None:
    peer = Peer()

    @peer.on_request
    async def stop() -> str:
        await peer.aclose()
        return "stopped"

    async with memory_pair(Peer(), peer) as (session, other), asyncio.timeout(5):
        assert await session.request("stop") == "stopped"
        await other.wait_closed()


async def test_sessions_that_closed_are_not_kept() -> None:
    peer = echoing()
    async with memory_pair(peer, peer) as (ours, theirs):
        references = [weakref.ref(ours), weakref.ref(theirs)]
    del ours, theirs
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# Several loops


def ask(peer: Peer, address: str, count: int = 1) -> list[Any]:
    """In a loop of its own."""

    async def main() -> list[Any]:
        async with peer.connect(address) as session:
            return [await session.request("echo", [number]) for number in range(count)]

    return asyncipc.run(main)


def test_loops_one_after_the_other() -> None:
    """A peer at module level, with a server in each."""
    peer = echoing()

    async def main() -> list[Session]:
        async with peer.serve(f"unix:{path}") as server, peer.connect(server.address) as session:
            assert await session.request("echo", [1]) == 1
            assert peer.sessions == {session} | server.sessions
            return [session, *server.sessions]

    with socket_path() as path:
        for runner in (asyncio.run, asyncipc.run, asyncio.run):
            sessions = runner(main())
            assert all(session.closed for session in sessions)
            assert not peer.sessions
    assert len(peer._sessions._holdings) == 1  # closed loops are let go of


@pytest.fixture
def served(path: Path) -> Iterator[str]:
    """A peer served by a loop in another thread."""
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        async with echoing().serve(f"unix:{path}"):
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(5)
    yield f"unix:{path}"
    done.set()
    thread.join()


def test_two_threads_at_once(served: str) -> None:
    """They share the handlers, the settings and the request ids, and none of the sessions."""
    peer = Peer(request_ids=itertools.count(1))
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: ask(peer, served, 100), range(4)))
    assert results == [list(range(100))] * 4


def test_closing_leaves_other_threads_alone(served: str) -> None:
    peer = Peer(timeouts=Timeouts(goodbye=1))
    opened, close = threading.Event(), threading.Event()

    async def stay() -> Any:
        async with peer.connect(served) as session:
            opened.set()
            await asyncio.to_thread(close.wait)
            return await session.request("echo", ["still here"])

    async def come_and_go() -> None:
        async with peer:
            session = await peer.connect(served)
            assert len(peer.sessions) == 2
        assert session.closed
        assert len(peer.sessions) == 1

    with ThreadPoolExecutor(1) as threads:
        staying = threads.submit(asyncio.run, stay())
        assert opened.wait(5)
        asyncio.run(come_and_go())
        close.set()
        assert staying.result(5) == "still here"


def test_a_loop_that_was_closed_with_sessions_open(served: str) -> None:
    """That is a mistake, but the peer does not keep them for ever."""
    peer = Peer()

    async def forget() -> weakref.ref[Session]:
        return weakref.ref(await peer.connect(served))

    with pytest.warns(ResourceWarning):  # noqa: PT031 - whichever makes it happen
        forgotten = asyncio.run(forget())
        assert forgotten() is not None
        assert ask(peer, served) == [0]
        gc.collect()
    assert forgotten() is None
