"""Connecting: who is not there, who is no peer, and what is left when it fails."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncipc import (
    AddressError,
    HandshakeTimeout,
    Peer,
    PeerDied,
    RemoteProtocolError,
    SessionClosed,
    Timeouts,
)
from asyncipc.peer.connecting import NOT_THERE_YET, retry
from asyncipc.wire.framing import MAGIC
from tests.peer.support import strange_server
from tests.raw_client import frame

IMPATIENT = Timeouts(handshake=0.1)


# Nobody there


async def test_no_socket(path: Path, peer: Peer) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot connect to unix:{path}: No such file"):
        await peer.connect(f"unix:{path}")


async def test_nobody_listens_on_a_path(path: Path, peer: Peer) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to unix:{path}: Connection"):
        await peer.connect(f"unix:{path}")


async def test_nobody_listens_on_a_port(peer: Peer) -> None:
    address = f"tcp:127.0.0.1:{unused_port()}"
    with pytest.raises(ConnectionRefusedError, match=f"cannot connect to {address}"):
        await peer.connect(address)


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".com"])
async def test_what_can_be_no_host(host: str, peer: Peer) -> None:
    with pytest.raises(AddressError, match="can be no host"):
        await peer.connect(f"tcp:{host}:80")


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop asks the system past Python
async def test_an_unknown_host(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(socket.gaierror, match=r"not known \(tcp:nowhere:80\)"):
        await peer.connect("tcp:nowhere:80")


async def test_a_host_by_name(peer: Peer) -> None:
    async with peer.serve("tcp:localhost:0", token="secret") as server:
        assert server.address.startswith("tcp:localhost:")
        async with peer.connect(server.address, token="secret") as session:
            assert await session.request("echo", [1]) == 1


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop asks the system past Python
async def test_all_addresses_of_a_host_are_tried(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = unused_port()
    ask = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if host != "double":
            return ask(host, port, *more, **options)
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "no number")
        return [*ask("127.0.0.1", dead, *more), *ask("127.0.0.1", port, *more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with peer.serve("tcp:127.0.0.1:0", token="secret") as server:
        port = server.address.rpartition(":")[2]
        async with peer.connect(f"tcp:double:{port}", token="secret") as session:
            assert await session.request("echo", [1]) == 1
    with pytest.raises(ConnectionRefusedError):
        await peer.connect(f"tcp:double:{dead}", token="secret")


# Retrying


async def test_retry_until_somebody_listens(path: Path, peer: Peer) -> None:
    connecting = asyncio.create_task(peer.connect(f"unix:{path}", retry_for=30))
    await asyncio.sleep(0)  # the first attempt fails
    assert not connecting.done()
    async with peer.serve(f"unix:{path}"), await connecting as session:
        assert await session.request("echo", [1]) == 1


async def test_a_server_that_goes_in_the_handshake_is_waited_for(path: Path, peer: Peer) -> None:
    came = asyncio.Event()

    async def go(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        came.set()

    async with strange_server(go, path) as address:
        connecting = asyncio.create_task(peer.connect(address, retry_for=30))
        await came.wait()
    async with peer.serve(address), await connecting as session:
        assert await session.request("echo", [1]) == 1


async def test_retry_for_a_while_only(path: Path, peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(FileNotFoundError):
        await peer.connect(f"unix:{path}", retry_for=0.05)
    assert 0.04 <= loop.time() - begun < 5  # uvloop's clock has milliseconds


async def test_what_will_not_change_is_not_tried_again(path: Path, peer: Peer) -> None:
    with pytest.raises(NotADirectoryError):
        await peer.connect(f"unix:{__file__}/app.sock", retry_for=1000)


async def test_pauses_grow_and_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += seconds

    async def attempt() -> None:
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: SimpleNamespace(time=lambda: now))
        patch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(ConnectionRefusedError):
            await retry(attempt, NOT_THERE_YET, 5)
    assert 5 <= now < 5.001
    assert pauses[0] <= 0.01
    assert max(pauses) <= 1
    assert len(pauses) < 30


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), ("5", TypeError), (None, TypeError)]
)
def test_retry_for_must_be_seconds(value: Any, error: type[Exception], peer: Peer) -> None:
    with pytest.raises(error, match="retry_for must"):
        peer.connect("unix:/x", retry_for=value)


# Somebody, but no peer


async def test_a_server_that_is_silent(path: Path) -> None:
    async def read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with strange_server(read_on, path) as address:
        with pytest.raises(HandshakeTimeout, match=r"no hello came within 0\.1 s"):
            await Peer(timeouts=IMPATIENT).connect(address)


async def test_a_server_of_http(path: Path, peer: Peer) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with strange_server(refuse, path) as address:
        with pytest.raises(RemoteProtocolError, match=r"HTTP/1\.1 400 Bad Request") as caught:
            await peer.connect(address)
        assert not isinstance(caught.value, HandshakeTimeout)


async def test_a_server_that_echoes(path: Path, peer: Peer) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()

    async with strange_server(echo, path) as address:
        with pytest.raises(RemoteProtocolError, match="echoes"):
            await peer.connect(address)


@pytest.mark.parametrize("reads_first", [True, False])
async def test_a_server_that_hangs_up(reads_first: bool, path: Path, peer: Peer) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads_first:
            await reader.read(1000)

    async with strange_server(hang_up, path) as address:
        with pytest.raises(PeerDied):
            await peer.connect(address)


@pytest.mark.parametrize("sent", [MAGIC[:2], MAGIC + b"\0\0\0\5\0\0\0\0\x92\0"])
async def test_a_server_that_stops_in_the_middle(sent: bytes, path: Path) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()

    async with strange_server(begin, path) as address:
        with pytest.raises(HandshakeTimeout, match=r"within 0\.1 s"):
            await Peer(timeouts=IMPATIENT).connect(address)


async def test_a_hello_without_the_rest(path: Path) -> None:
    """A listener that asks for a proof, and never answers it."""

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = [0, {"versions": [1, 1], "instance": bytes(16), "codec": "msgpack"}]
        hello[1]["auth"] = ["hmac-sha256"]  # type: ignore[index]
        writer.write(frame(hello))
        await reader.read()

    async with strange_server(ask, path) as address:
        with pytest.raises(HandshakeTimeout, match=r"handshake .* within 0\.1 s"):
            await Peer(timeouts=IMPATIENT).connect(address, token="secret")


# A full queue of connections: the loops would take it for a connection


@contextlib.contextmanager
def full_queue(path: Path) -> Iterator[list[socket.socket]]:
    """Sockets that wait to be accepted by the first of them; there is room for no more."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_UNIX))]
        sockets[0].bind(str(path))
        sockets[0].listen(0)
        sockets[0].setblocking(False)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(path))
            except BlockingIOError:
                break
            sockets.append(waiting)
        yield sockets


async def test_a_queue_that_stays_full(path: Path) -> None:
    with full_queue(path):
        with pytest.raises(TimeoutError, match=r"queue of connections was full for 0\.1 s") as info:
            await Peer(timeouts=IMPATIENT).connect(f"unix:{path}")
        assert info.value.errno == errno.ETIMEDOUT


async def test_a_queue_that_has_room_again(path: Path, peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    with full_queue(path) as (listening, *waiting):
        connecting = asyncio.create_task(peer.connect(f"unix:{path}"))
        await asyncio.sleep(0)  # the first attempt fails
        for _ in waiting:
            listening.accept()[0].close()
        accepted, _ = await loop.sock_accept(listening)
        async with peer.wrap(accepted) as other, await connecting:
            assert await other.request("echo", [1]) == 1


# Descriptors


async def test_a_descriptor(peer: Peer) -> None:
    ours, theirs = socket.socketpair()
    ours.set_inheritable(True)
    fd = ours.detach()
    session, other = await asyncio.gather(peer.connect(f"fd:{fd}"), peer.wrap(theirs))
    async with session, other:
        assert not os.get_inheritable(fd)
        assert await session.request("echo", [1]) == 1
        assert await other.request("echo", [2]) == 2
        await session.aclose()
        async with asyncio.timeout(5):
            await other.wait_closed()  # the descriptor was taken over, so nobody keeps it open
        assert other.close_reason is None


async def test_a_descriptor_that_cannot_be_used(peer: Peer) -> None:
    read_end, write_end = os.pipe()
    with (
        open(read_end, "rb"),
        open(write_end, "wb"),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as unconnected,
    ):
        for fd, reason in {
            read_end: "is not an open socket",
            datagrams.fileno(): "is a SOCK_DGRAM socket; expected a stream socket",
            unconnected.fileno(): "is not a connected socket",
        }.items():
            with pytest.raises(AddressError, match=f"file descriptor {fd} {reason}"):
                await peer.connect(f"fd:{fd}")
            os.fstat(fd)  # it was left alone
        unused = read_end + 1000
        with pytest.raises(AddressError, match=f"file descriptor {unused} is not an open socket"):
            await peer.connect(f"fd:{unused}")


# What does not go together


def test_what_an_address_does_not_take(peer: Peer) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for address in ("unix:/x", "fd:3", "exec:true"):
        with pytest.raises(AddressError, match="TLS is for tcp: addresses, not for"):
            peer.connect(address, tls=tls)
    with pytest.raises(AddressError, match="exec: takes no token"):
        peer.connect("exec:true", token="secret")


@pytest.mark.parametrize(("token", "error"), [("", ValueError), (b"", ValueError), (1, TypeError)])
def test_what_is_no_token(token: Any, error: type[Exception], peer: Peer) -> None:
    with pytest.raises(error, match="a token must"):
        peer.connect("unix:/x", token=token)
    with pytest.raises(error, match="a token must"):
        peer.serve("unix:/x", token=token)


# What is returned: a coroutine


async def test_an_opening_can_be_a_task(path: Path, peer: Peer) -> None:
    async with (
        asyncio.TaskGroup() as group,
        await group.create_task(peer.serve(f"unix:{path}")) as server,
        await group.create_task(peer.connect(server.address)) as session,
    ):
        assert await session.request("echo", [1]) == 1


async def test_an_opening_is_good_once(path: Path, peer: Peer) -> None:
    opening = peer.connect(f"unix:{path}")
    with pytest.raises(FileNotFoundError):
        await opening
    with pytest.raises(RuntimeError, match="already awaited"):
        await opening


async def test_an_opening_that_was_forgotten(peer: Peer) -> None:
    with pytest.warns(RuntimeWarning, match="never awaited"):
        peer.connect("unix:/x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peer.connect("unix:/x").close()


async def test_cancelled_in_the_handshake(path: Path, peer: Peer) -> None:
    heard = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        heard.set()
        await reader.read()

    async with strange_server(listen, path) as address:
        connecting = asyncio.create_task(peer.connect(address))
        await heard.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert not peer.sessions


async def test_the_peer_is_closed_in_the_handshake(path: Path, peer: Peer) -> None:
    heard = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        heard.set()
        await reader.read()

    async with strange_server(listen, path) as address:
        connecting = asyncio.create_task(peer.connect(address))
        await heard.wait()
        assert not peer.sessions  # it does not stand yet
        await peer.aclose()
        with pytest.raises(SessionClosed, match="this side closed the session"):
            await connecting
