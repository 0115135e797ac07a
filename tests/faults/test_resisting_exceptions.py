"""Row 18 of `docs/faults.md`: exceptions that resist, and those that are meant to kill.

The rows are those of the list that this library was built against; each was a bug in one that
people trust. More of them are in ``tests/session/test_errors.py``.
"""

import asyncio
import os
import signal
from typing import Any

import pytest

from asyncipc import Peer, PeerDied, RemoteError
from tests.child import python
from tests.session.support import failure

CHILD = python("""
import asyncio, asyncipc
from tests.child import main, peer

class Unprintable(Exception):
    def __str__(self): raise ZeroDivisionError
    __repr__ = __str__

class Unpicklable(Exception):
    def __init__(self, needed):
        super().__init__("a text")
        self.needed = lambda: needed
    def __reduce__(self): raise TypeError("it resists")

EXCEPTIONS = {
    "unprintable": Unprintable(),
    "unpicklable": Unpicklable(object()),
    "surrogates": ValueError("\\ud800"),
    "SystemExit": SystemExit(7),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
}

@peer.on_request
def inline(name): raise EXCEPTIONS[name]

@peer.on_request
async def task(name): raise EXCEPTIONS[name]

@peer.on_request(thread=True)
def thread(name): raise EXCEPTIONS[name]

@peer.on_notification
async def note(name): raise EXCEPTIONS[name]

main()
""")

NAMES = [
    "unprintable",
    "unpicklable",
    "surrogates",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
]


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_row_18_the_caller_hears_of_it_and_the_process_goes_on() -> None:
    async with Peer().spawn(CHILD, stderr="capture") as session:
        for kind in ("inline", "task", "thread"):
            for name in NAMES:
                error: Any = await failure(session.request(kind, [name]))
                assert type(error) is RemoteError, (kind, name)
                if name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
                    assert error.type == name
                assert await session.request("echo", [name]) == name
            await failure(session.request(kind, ["CancelledError"]))
        for name in NAMES:
            await session.notify("note", [name])
        assert await session.request("echo", ["at the end"]) == "at the end"


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("doing", ["nothing", "after SystemExit", "a task", "a thread"])
async def test_row_18_sigterm_still_ends_the_process(doing: str) -> None:
    async with Peer().spawn(CHILD, stderr="capture") as session:
        assert session.process is not None
        waiting: list[asyncio.Task[Any]] = []
        if doing == "after SystemExit":
            for kind in ("inline", "task", "thread"):
                await failure(session.request(kind, ["SystemExit"]))
        elif doing == "a task":
            waiting.append(asyncio.create_task(session.request("never")))
            await session.ping()
        elif doing == "a thread":
            await failure(session.request("thread", ["unprintable"]))
        os.kill(session.process.pid, signal.SIGTERM)
        async with asyncio.timeout(5):
            await session.wait_closed()
        reason = session.close_reason
        assert isinstance(reason, PeerDied)
        assert reason.signal == signal.SIGTERM
        for task in waiting:
            assert isinstance(await failure(task), PeerDied)
