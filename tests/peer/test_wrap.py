"""Wrapping: whatever moves bytes can carry a session."""

import asyncio
import contextlib
import multiprocessing
import os
import pty
import socket
import ssl
import subprocess
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.stapled import StapledByteStream

from asyncipc import Peer, PeerDied, Session, memory_pair
from asyncipc.transport.pipes import PipeTransport
from asyncipc.transport.sockets import SocketTransport
from tests.peer.support import echoing
from tests.raw_client import frame, hello

# What one end of a connection is made of; the other is the same.
End = tuple[Any, ...]
Pair = tuple[End, End]


async def sockets() -> Pair:
    ours, theirs = socket.socketpair()
    return (ours,), (theirs,)


async def a_socket_twice() -> Pair:
    ours, theirs = socket.socketpair()
    return (ours, ours), (theirs, theirs)


async def socket_descriptors() -> Pair:
    ours, theirs = socket.socketpair()
    return (ours.detach(),), (theirs.detach(),)


async def pipe_descriptors() -> Pair:
    (our_input, their_output), (their_input, our_output) = os.pipe(), os.pipe()
    return (our_input, our_output), (their_input, their_output)


async def pairs_of_sockets() -> Pair:
    (our_input, their_output), (their_input, our_output) = socket.socketpair(), socket.socketpair()
    return (our_input, our_output), (their_input, their_output)


async def files() -> Pair:
    (our_input, our_output), (their_input, their_output) = await pipe_descriptors()
    return (
        (os.fdopen(our_input, "rb"), os.fdopen(our_output, "wb")),
        (os.fdopen(their_input, "rb", 0), os.fdopen(their_output, "w")),
    )


async def a_file_and_a_descriptor() -> Pair:
    (our_input, our_output), theirs = await pipe_descriptors()
    return (os.fdopen(our_input, "rb"), our_output), theirs


async def multiprocessing_pipe() -> Pair:
    ours, theirs = multiprocessing.Pipe()
    return (ours,), (theirs,)


async def multiprocessing_pipes() -> Pair:
    our_input, their_output = multiprocessing.Pipe(duplex=False)
    their_input, our_output = multiprocessing.Pipe(duplex=False)
    return (our_input, our_output), (their_input, their_output)


async def terminal() -> Pair:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return (ours,), (theirs,)


async def asyncio_streams() -> Pair:
    ours, theirs = socket.socketpair()
    return (
        await asyncio.open_unix_connection(sock=ours),
        await asyncio.open_unix_connection(sock=theirs),
    )


async def anyio_streams() -> Pair:
    ours, theirs = socket.socketpair()
    return (
        (await anyio.abc.UNIXSocketStream.from_socket(ours),),
        (await anyio.abc.UNIXSocketStream.from_socket(theirs),),
    )


async def anyio_halves() -> Pair:
    (ours,), (theirs,) = await anyio_streams()
    return (ours, ours), (theirs, theirs)


async def stapled_anyio_streams() -> Pair:
    (ours,), (theirs,) = await anyio_streams()
    return (StapledByteStream(ours, ours),), (StapledByteStream(theirs, theirs),)


async def different_kinds() -> Pair:
    ours, theirs = socket.socketpair()
    return (ours,), await asyncio.open_unix_connection(sock=theirs)


MAKERS: list[Callable[[], Awaitable[Pair]]] = [
    sockets,
    a_socket_twice,
    socket_descriptors,
    pipe_descriptors,
    pairs_of_sockets,
    files,
    a_file_and_a_descriptor,
    multiprocessing_pipe,
    multiprocessing_pipes,
    asyncio_streams,
    anyio_streams,
    anyio_halves,
    stapled_anyio_streams,
    different_kinds,
]


@contextlib.asynccontextmanager
async def wrapped(first: End, second: End) -> AsyncIterator[tuple[Session, Session]]:
    ours, theirs = await asyncio.gather(echoing().wrap(*first), echoing().wrap(*second))
    async with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
async def test_what_can_be_wrapped(make: Callable[[], Awaitable[Pair]]) -> None:
    first, second = await make()
    async with wrapped(first, second) as (ours, theirs), asyncio.timeout(10):
        assert await ours.request("echo", ["there"]) == "there"
        assert await theirs.request("echo", ["back"]) == "back"
        large = b"x" * 1_000_000
        assert await ours.request("echo", [large]) == large
        await ours.aclose()
        await theirs.wait_closed()
        assert ours.close_reason is None
        assert theirs.close_reason is None


async def test_a_terminal() -> None:
    """It works, but drops what was not read when the other end is closed, the goodbye too."""
    first, second = await terminal()
    async with wrapped(first, second) as (ours, theirs), asyncio.timeout(10):
        assert await ours.request("echo", ["there"]) == "there"
        assert await theirs.request("echo", ["back"]) == "back"


@pytest.mark.parametrize("make", [files, multiprocessing_pipe, multiprocessing_pipes])
async def test_objects_are_taken_over(make: Callable[[], Awaitable[Pair]]) -> None:
    """They are closed, so nobody else keeps the connection open or writes into it."""
    first, second = await make()
    async with wrapped(first, second):
        for thing in (*first, *second):
            assert thing.closed


async def test_what_was_written_to_a_file_before_goes_first() -> None:
    (reader, writer), second = await files()
    writer.write(b"Welcome!\n")  # it is still in the file's buffer
    noise: list[bytes] = []
    peer = Peer()
    ours, theirs = await asyncio.gather(Peer().wrap(reader, writer), peer.wrap(*second))
    async with ours, theirs:
        theirs.on_noise(noise.append)
        assert theirs.statistics().noise_received == len(b"Welcome!\n")


def over_a_pipe() -> tuple[Any, Any, int, int]:
    """Files to read and write, as of a subprocess, and the descriptors at their other ends."""
    (our_input, their_output), (their_input, our_output) = os.pipe(), os.pipe()
    return os.fdopen(our_input, "rb"), os.fdopen(our_output, "wb"), their_input, their_output


def over_a_socket() -> tuple[Any, Any, int, int]:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(1000)  # which nobody must wait for
        return ours.makefile("rb"), ours.makefile("wb", 0), theirs.fileno(), theirs.detach()


@pytest.mark.parametrize("make", [over_a_pipe, over_a_socket])
async def test_what_a_file_has_read_ahead_comes_first(make: Callable[[], Any]) -> None:
    reader, writer, their_input, their_output = make()
    os.write(their_output, b"Welcome!\n" + frame(hello()) + frame([2, 2, "echo", ["first"]])[:20])
    assert reader.readline() == b"Welcome!\n"
    os.write(their_output, frame([2, 2, "echo", ["first"]])[20:])
    async with asyncio.timeout(10), echoing().wrap(reader, writer):
        received = b""
        while b"first" not in received:
            received += await asyncio.to_thread(os.read, their_input, 65536)
        os.close(their_output)
    if their_input != their_output:
        os.close(their_input)


async def test_a_file_that_has_read_nothing_is_not_waited_for() -> None:
    for make in (over_a_pipe, over_a_socket):
        reader, writer, their_input, their_output = make()
        opening = asyncio.create_task(echoing().wrap(reader, writer))
        await asyncio.sleep(0)  # it is wrapped before anything came
        async with Peer().wrap(their_input, their_output) as session, await opening:
            assert await session.request("echo", [1]) == 1


async def test_sockets_have_the_transport_of_sockets() -> None:
    """Also where only their number is known: it tells more, and tolerates no noise."""
    for make in (sockets, a_socket_twice, socket_descriptors, multiprocessing_pipe):
        first, second = await make()
        async with wrapped(first, second) as (ours, _):
            assert isinstance(ours._connection.transport, SocketTransport)
            assert ours.credentials is None  # both ends are here, and could be anywhere
    for make in (pipe_descriptors, files, pairs_of_sockets):
        first, second = await make()
        async with wrapped(first, second) as (ours, _):
            assert isinstance(ours._connection.transport, PipeTransport)


async def test_a_subprocess_of_asyncio() -> None:
    program = await asyncio.create_subprocess_exec(
        "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stdin is not None
    with pytest.raises(Exception, match="echoes"):
        await Peer().wrap(program.stdout, program.stdin)
    assert await program.wait() == 0


async def test_the_other_side_is_no_peer() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"hello?")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Exception, match=r"b'hello\?'"):
            await Peer().wrap(ours)
    assert ours.fileno() == -1


async def test_the_other_side_dies() -> None:
    (ours,), (theirs,) = await sockets()
    async with wrapped((ours,), (theirs,)) as (session, other):
        waiting = asyncio.create_task(session.request("nothing", timeout=None))
        await asyncio.sleep(0)
        other._connection.transport.close()
        with pytest.raises(PeerDied):
            await waiting


# What cannot be wrapped


class NoStream:
    def fileno(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("things", "named"),
    [
        (("text",), "got str and NoneType"),
        ((None,), "got NoneType and NoneType"),
        ((True,), "got bool and NoneType"),
        ((3.5, 4), "got float and int"),
        ((NoStream(),), "got NoStream and NoneType"),
        ((0, "text"), "got int and str"),
    ],
)
async def test_what_cannot_be_wrapped(things: End, named: str, peer: Peer) -> None:
    with pytest.raises(TypeError, match=f"expected asyncio's StreamReader .*{named}"):
        await peer.wrap(*things)


async def test_halves_that_do_not_fit(peer: Peer) -> None:
    (reader, writer), (other_reader, other_writer) = await asyncio_streams()
    (stream,), (other,) = await anyio_streams()
    ours, theirs = socket.socketpair()
    try:
        for wrong in (
            (reader,),
            (writer, reader),
            (reader, stream),
            (stream, writer),
            (reader, ours),
            (ours, writer),
            (stream, ours),
            (ours, stream),
        ):
            with pytest.raises(TypeError, match="expected asyncio's StreamReader"):
                await peer.wrap(*wrong)
    finally:
        ours.close()
        theirs.close()
        for each in (writer, other_writer):
            each.close()
            await each.wait_closed()
        await stream.aclose()
        await other.aclose()
    assert reader.at_eof() or other_reader is not None


async def test_sockets_of_other_kinds(peer: Peer) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    with ours, theirs:
        for thing in (ours, ours.fileno()):
            with pytest.raises(TypeError, match=r"expected a stream socket, got .* SOCK_DGRAM"):
                await peer.wrap(thing)
        assert ours.fileno() >= 0  # it was left alone
    context = ssl.create_default_context()
    with (
        socket.socket() as plain,
        context.wrap_socket(plain, server_hostname="x") as secure,
        pytest.raises(TypeError, match="expected a plain socket"),
    ):
        await peer.wrap(secure)


async def test_descriptors_that_are_not_open(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await peer.wrap(-1)
    with open(tmp_path / "file", "wb") as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        await peer.wrap(file)


# A pair in memory


async def test_a_pair_in_memory() -> None:
    first, second = echoing(), echoing()
    async with memory_pair(first, second) as (ours, theirs):
        assert await ours.request("echo", [1]) == 1
        assert await theirs.request("echo", [2]) == 2
        assert first.sessions == {ours}
        assert second.sessions == {theirs}
    assert ours.closed
    assert theirs.closed
    assert not first.sessions | second.sessions


async def test_a_pair_of_one_peer(peer: Peer) -> None:
    async with memory_pair(peer, peer) as (ours, theirs):
        assert peer.sessions == {ours, theirs}
        assert await ours.request("echo", [1]) == 1
