"""Functions that are told of something: refused when they cannot be, and of no harm to others."""

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncipc import Peer
from tests.session.support import Journal, joined, talking


async def waits(*_: object) -> None:
    raise AssertionError("it was called")


class Waits:
    async def __call__(self, *_: object) -> None:
        raise AssertionError("it was called")

    async def method(self, *_: object) -> None:
        raise AssertionError("it was called")


ASYNC = [waits, functools.partial(waits, 1), Waits(), Waits().method]


def places() -> Iterator[tuple[str, Callable[[Any, Any, Any], object]]]:
    """What takes callbacks: a session, a server, a child."""
    yield "on_close", lambda session, _server, _child: session.on_close
    yield "on_noise", lambda session, _server, _child: session.on_noise
    yield "on_close", lambda _session, server, _child: server.on_close
    yield "on_exit", lambda _session, _server, child: child.on_exit


async def test_who_could_not_be_told_is_refused_at_once() -> None:
    program = [sys.executable, "-c", "import asyncipc, asyncio\n" + CHILD]
    async with (
        talking(Peer()) as session,
        Peer().serve("unix:@asyncipc-test-callbacks") as server,
        Peer().spawn(program) as child,
    ):
        for name, of in places():
            register: Any = of(session, server, child.process)
            for nothing in (5, None, "function"):
                with pytest.raises(TypeError, match=f"{name} must be a function, not {nothing!r}"):
                    register(nothing)
            for function in ASYNC:
                with pytest.raises(TypeError, match=f"{name} must be a plain function, not the"):
                    register(function)
        with pytest.raises(TypeError, match="on_progress must be a function, not 5"):
            await session.request("echo", on_progress=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="on_session must be a function, not 5"):
            Peer().serve("unix:@asyncipc-test-other", on_session=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="stderr must be a plain function, not the async def"):
            await Peer().spawn(program, stderr=waits)


CHILD = """
async def main():
    async with asyncipc.Peer().stdio() as parent:
        await parent.wait_closed()
asyncio.run(main())
"""


async def test_a_coroutine_that_nobody_awaits_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    told = Journal()
    with caplog.at_level(logging.ERROR, "asyncipc"):
        async with joined(Peer(), Peer()) as (session, _other):
            session.on_close(lambda _: waits())
            session.on_close(told.append)
    assert told == [None]
    assert "returned a coroutine, which nobody awaits" in caplog.text


async def test_a_late_callback_that_fails_is_logged_like_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        told.append("fails")
        raise ValueError("in a callback")

    told = Journal()
    server = await Peer().serve("unix:@asyncipc-test-callbacks")
    server.on_close(fails)
    server.on_close(lambda: told.append("behind it"))
    with caplog.at_level(logging.ERROR, "asyncipc"):
        async with joined(Peer(), Peer()) as (session, _other):
            pass
        session.on_close(fails)
        await told.reaches(1)
        await server.aclose()
        assert told == ["fails", "fails", "behind it"]
        server.on_close(fails)
        await told.reaches(4)
    assert caplog.text.count("a callback of the session on") == 1
    assert caplog.text.count("a callback of the server on unix:@asyncipc-test-callbacks") == 2
