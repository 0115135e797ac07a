"""Row 23 of `docs/faults.md`: two servers on one socket path.

A live socket is never unlinked, and a dead one is no obstacle.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncipc import Peer
from tests.child import python
from tests.peer.support import socket_path

# Serves for as long as its input goes on, and says what came of it.
SERVER = """
import asyncio, os, sys
from asyncipc import AddressInUse, Peer

peer = Peer()
peer.on_request("pid")(os.getpid)

async def main():
    try:
        async with peer.serve(f"unix:{sys.argv[1]}"):
            print("serving", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
    except AddressInUse:
        print("in use", flush=True)

asyncio.run(main())
"""

# Serves again and again, for no time at all. Whoever connects while it does gets to nobody else.
CONTENDER = """
import asyncio, os, sys
from asyncipc import AddressInUse, Peer

peer = Peer()
peer.on_request("pid")(os.getpid)

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    while won < 50:
        try:
            async with peer.serve(f"unix:{sys.argv[1]}") as server:
                async with Peer().connect(server.address) as session:
                    assert await session.request("pid") == os.getpid()
                won += 1
        except AddressInUse:
            pass  # again at once: that is the contest
    print("done", flush=True)

asyncio.run(main())
"""


class Program:
    """A program that answers to lines with lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        return self.process.wait(10)

    def finish(self) -> None:
        self.go_on()
        assert self.ended() == 0


@contextlib.contextmanager
def started(code: str, path: Path) -> Iterator[Program]:
    with subprocess.Popen(
        python(code, str(path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as path:
        yield path


async def server_at(path: Path) -> int:
    """The process that answers there."""
    async with Peer().connect(f"unix:{path}") as session:
        pid = await session.request("pid")
    assert isinstance(pid, int)
    return pid


on_one_loop = pytest.mark.asyncio(loop_factories=["uvloop"])


@on_one_loop
async def test_row_23_one_after_the_other(path: Path) -> None:
    """The first exits while the second serves, and takes nothing with it; then the other way."""
    with started(SERVER, path) as first:
        assert first.said() == "serving"
        with started(SERVER, path) as refused:
            assert refused.said() == "in use"
            assert refused.ended() == 0
        assert await server_at(path) == first.pid
        first.finish()
        assert not path.exists()
        with started(SERVER, path) as second:
            assert second.said() == "serving"
            assert await server_at(path) == second.pid
            second.finish()
    assert os.listdir(path.parent) == []


@on_one_loop
async def test_row_23_a_killed_server_is_no_obstacle(path: Path) -> None:
    with started(SERVER, path) as first:
        assert first.said() == "serving"
        first.process.send_signal(signal.SIGKILL)
        first.ended()
        assert path.exists()
    with started(SERVER, path) as second, started(SERVER, path) as third:
        # Both find the socket of the dead at the same moment: one of them gets it.
        said = {second.said(): second, third.said(): third}
        assert said.keys() == {"serving", "in use"}
        assert await server_at(path) == said["serving"].pid
        said["serving"].finish()
    assert os.listdir(path.parent) == []


def test_row_23_at_the_same_moment(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(started(CONTENDER, path)) for _ in range(3)]
        for contender in contenders:
            assert contender.said() == "ready"
        for contender in contenders:
            contender.go_on()
        assert [contender.said() for contender in contenders] == ["done"] * 3
        assert [contender.ended() for contender in contenders] == [0] * 3
    assert os.listdir(path.parent) == []
