"""More descriptors under way than the kernel lets one user have, in all sockets together."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from typing import Any

from asyncipc import Fd, Peer, Session
from asyncipc.transport.sockets import SocketTransport
from tests.programs import run
from tests.transport.recorder import WAIT, End

# As somebody who is not root, whom the limit spares.
PROGRAM = """
import array, asyncio, errno, os, resource, socket
from asyncipc import Fd, Peer

def lower():
    if not os.geteuid():
        os.setegid(65534)
        os.seteuid(65534)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def fill(sock):
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 8))
    for _ in range(1000):
        try:
            sock.sendmsg([b"x"], [rights])
        except OSError as error:
            assert error.errno == errno.ETOOMANYREFS, error
            return
    raise AssertionError("there is no limit")


async def opened(peer, sock):
    return await peer.wrap(sock)


async def main():
    peer = Peer(timeout=20)

    @peer.on_request
    def take(fds):
        for fd in fds:
            fd.close()
        return len(fds)

    ours, theirs = socket.socketpair()
    session, other_session = await asyncio.gather(opened(peer, ours), opened(peer, theirs))
    async with session, other_session:
        assert await session.request("take", [[Fd(os.dup(0))]]) == 1
        lower()  # now that everything is imported, from where only root may
        one, other = socket.socketpair()
        fill(one)
        tasks = [
            asyncio.create_task(session.request("take", [[Fd(os.dup(0)) for _ in range(9)]])),
            asyncio.create_task(session.request("take", [[]])),
        ]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        one.close()
        other.close()
        assert await asyncio.gather(*tasks) == [9, 0]
    print("ok")


asyncio.run(main())
"""


def test_they_wait_until_there_are_fewer() -> None:
    finished = run("-c", PROGRAM)
    assert (finished.stderr, finished.stdout, finished.returncode) == ("", "ok\n", 0)


class Crowded(socket.socket):
    """Passes no descriptors for some attempts."""

    refusals = 3
    attempts = 0

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), *more: Any) -> int:
        if ancillary:
            self.attempts += 1
            if self.attempts <= self.refusals:
                raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return super().sendmsg(buffers, ancillary, *more)


def crowded() -> tuple[Crowded, End, End]:
    ours, theirs = socket.socketpair()
    sock = Crowded(fileno=ours.detach())
    end, other = (End(SocketTransport(each, description="test")) for each in (sock, theirs))
    return sock, end, other


async def test_what_stands_behind_waits_too_and_nothing_is_sent_twice() -> None:
    sock, end, other = crowded()
    for each in (end, other):
        each.start()
    other.call("accept_descriptors")
    async with asyncio.timeout(WAIT):
        assert not end.call("write_with_descriptors", [b"with ", b"one"], [0])
        await end.heard.heard("writable")
        assert end.write(b", and more")
        await other.heard.received(18)
    assert other.heard.data == b"with one, and more"
    assert sock.attempts == 4
    [[fd]] = other.heard.descriptors
    os.close(fd)
    for each in (end, other):
        each.call("close")
        assert each.heard.violations == []


async def test_the_end_comes_all_the_same() -> None:
    """Of this side, while it waits; the timer is gone with it."""
    sock, end, other = crowded()
    sock.refusals = 1_000_000
    end.start()
    assert not end.call("write_with_descriptors", [b"with ", b"one"], [0])
    end.call("close")
    assert await end.lost() is None
    assert sock.attempts == 1
    other.call("close")


async def opened(peer: Peer, sock: socket.socket) -> Session:
    return await peer.wrap(sock)


async def test_a_session_goes_on() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer()

    @peer.on_request
    def take(fd: Fd) -> None:
        fd.close()

    sock = Crowded(fileno=ours.detach())
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        opening = [group.create_task(opened(peer, each)) for each in (sock, theirs)]
        session, other = [await task for task in opening]
        for _ in range(3):
            await session.request("take", Fd(os.dup(0)))
        await asyncio.gather(session.aclose(), other.aclose())
    assert sock.attempts == 6
