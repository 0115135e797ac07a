"""What is special about sockets: options, credentials, resets, replies behind a failed write."""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncipc.transport.base import Credentials
from asyncipc.transport.sockets import SocketTransport, peer_credentials
from tests.transport.recorder import MIB, End, pattern, turns


@pytest.fixture
def unix() -> Iterator[tuple[End, socket.socket]]:
    """A transport that is not started, and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    end = End(SocketTransport(ours, description="test"))
    with theirs:
        yield end, theirs
    end.call("close")
    assert end.heard.violations == []


@pytest.fixture
def tcp() -> Iterator[tuple[End, socket.socket, socket.socket]]:
    """The same over TCP, and our own socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    end = End(SocketTransport(ours, description="test"))
    with theirs:
        yield end, ours, theirs
    end.call("close")
    assert end.heard.violations == []


def reset(sock: socket.socket) -> None:
    """Close a TCP connection with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_options_of_tcp(tcp: tuple[End, socket.socket, socket.socket]) -> None:
    _, ours, _ = tcp
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
    idle = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    interval = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
    count = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
    assert idle + interval * count == 120
    assert not ours.getblocking()


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    us = Credentials(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("socket")
        listener.listen()
        client.connect("socket")
        assert peer_credentials(client) == us
        end = End(SocketTransport(listener.accept()[0], description="test"))
        assert end.transport.credentials == us
        end.call("close")
        assert end.transport.credentials == us


def test_nobody_knows_who_has_the_other_end_of_a_pair_made_here(
    unix: tuple[End, socket.socket],
) -> None:
    end, theirs = unix
    assert end.transport.credentials is None
    assert peer_credentials(theirs) is None
    maker = os.getpid()
    with forked_end(theirs) as told:
        assert told == f"{maker} {os.getuid()}"


@contextlib.contextmanager
def forked_end(sock: socket.socket) -> Iterator[str]:
    """What a forked process sees at the other end of a socket."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = peer_credentials(sock)
        os.write(theirs, (f"{found.pid} {found.uid}" if found else "nobody").encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as told:
        yield told.read()
    os.waitpid(pid, 0)


def test_no_credentials(tcp: tuple[End, socket.socket, socket.socket]) -> None:
    end, *_ = tcp
    assert end.transport.credentials is None
    with socket.socket(socket.AF_UNIX) as unconnected:
        assert peer_credentials(unconnected) is None


async def test_a_reset_is_an_error(tcp: tuple[End, socket.socket, socket.socket]) -> None:
    end, _, theirs = tcp
    end.start()
    theirs.send(b"before")
    await end.heard.received(6)
    reset(theirs)
    assert isinstance(await end.lost(), ConnectionResetError)
    assert end.heard.events == ["data", "lost"]


async def test_a_reset_behind_the_end_of_input(
    tcp: tuple[End, socket.socket, socket.socket],
) -> None:
    end, _, theirs = tcp
    end.start()
    theirs.shutdown(socket.SHUT_WR)
    await end.heard.heard("end_of_input")
    reset(theirs)
    assert isinstance(await end.lost(), BrokenPipeError)  # so Linux calls it then


async def test_a_reset_while_paused(tcp: tuple[End, socket.socket, socket.socket]) -> None:
    end, _, theirs = tcp
    end.start()
    end.call("pause_reading")
    theirs.send(b"last words")
    await turns()
    reset(theirs)
    assert isinstance(await end.lost(), ConnectionResetError)
    assert end.heard.data == b"last words"


async def test_closed_without_reading_what_was_sent(unix: tuple[End, socket.socket]) -> None:
    end, theirs = unix
    end.start()
    end.write(b"never read")
    theirs.send(b"reply")
    theirs.close()
    assert isinstance(await end.lost(), ConnectionResetError)
    assert end.heard.data == b"reply"


@pytest.mark.parametrize("paused", [False, True])
async def test_the_reply_behind_a_failed_write(
    unix: tuple[End, socket.socket], paused: bool
) -> None:
    end, theirs = unix
    end.start()
    if paused:
        end.call("pause_reading")
    reply = pattern(100_000)
    theirs.sendall(reply)
    theirs.close()
    assert end.write(b"too late") is False
    assert end.write(b"still too late") is False
    assert isinstance(await end.lost(), BrokenPipeError)
    assert end.heard.data == reply
    assert end.heard.events == ["data", "lost"]


async def test_a_peer_that_stops_reading_but_not_writing(unix: tuple[End, socket.socket]) -> None:
    end, theirs = unix
    end.start()
    theirs.setblocking(False)
    theirs.shutdown(socket.SHUT_RD)

    def send_more(_: str) -> None:
        with contextlib.suppress(OSError):
            theirs.send(bytes(50_000))

    end.heard.on_event = send_more  # as fast as it is read
    send_more("")
    assert end.write(b"unwanted") is False
    assert isinstance(await end.lost(), BrokenPipeError)


async def test_a_hangup_with_bytes_unsent(unix: tuple[End, socket.socket]) -> None:
    end, theirs = unix
    end.start()
    assert end.write(bytes(8 * MIB)) is False
    theirs.close()
    assert isinstance(await end.lost(), BrokenPipeError | ConnectionResetError)
    assert "writable" not in end.heard.events


async def test_both_directions_ended_by_the_other_side(unix: tuple[End, socket.socket]) -> None:
    end, theirs = unix
    end.start()
    theirs.send(b"x")
    theirs.shutdown(socket.SHUT_RDWR)
    assert await end.lost() is None
    assert end.heard.events == ["data", "lost"]


async def test_pausing_with_no_descriptor_left(unix: tuple[End, socket.socket]) -> None:
    """The hang-up cannot be watched for then, and nothing else is wrong."""
    end, theirs = unix
    end.start()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest, 3), limits[1]))
    try:
        end.call("pause_reading")
        end.call("resume_reading")
        end.call("pause_reading")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    theirs.send(b"x")
    theirs.close()
    end.call("resume_reading")
    assert await end.lost() is None
    assert end.heard.data == b"x"


async def test_what_has_come_is_read_at_once(unix: tuple[End, socket.socket]) -> None:
    end, theirs = unix
    end.start()
    end.call("pause_reading")
    data = pattern(100_000)
    theirs.sendall(data)
    end.transport.read_available()
    assert end.heard.data == data
    theirs.close()
    end.transport.read_available()
    assert end.heard.events == ["data"]
    assert await end.lost() is None


async def test_reading_at_once_from_a_reset_connection(
    tcp: tuple[End, socket.socket, socket.socket],
) -> None:
    end, _, theirs = tcp
    end.start()
    reset(theirs)
    await asyncio.to_thread(lambda: None)
    end.transport.read_available()
    assert isinstance(await end.lost(), ConnectionResetError)


async def test_a_forked_copy_does_not_end_the_connection_of_its_parent(
    unix: tuple[End, socket.socket],
) -> None:
    end, theirs = unix
    end.start()
    theirs.setblocking(False)
    pid = os.fork()
    if pid == 0:
        end.transport.close()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    end.call("close")
    assert theirs.recv(1) == b""
