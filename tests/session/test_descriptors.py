"""File descriptors in messages: who owns them, in what order they come, and that none is left."""

import asyncio
import copy
import gc
import os
import pickle
import socket
import sys
import tempfile
import warnings
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from asyncipc import (
    Call,
    EncodeError,
    Fd,
    FrameTooLarge,
    InvalidParams,
    Limits,
    Peer,
    PeerDied,
    RemoteError,
    Session,
    SessionClosed,
    message,
    shared_buffer,
)
from asyncipc.wire.messages import DESCRIPTORS
from tests.session.support import KIB, Journal, RawPeer, failure, joined, settled, talking, until


@message
@dataclass
class Parcel:
    """Descriptors in an object."""

    one: Fd
    others: list[Fd]


def pipe_with(data: bytes) -> Fd:
    """The reading end of a pipe that holds the data and has no writer."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return Fd(reader)


def contents(fd: Fd) -> bytes:
    with fd.as_file() as file:
        data = file.read()
        assert isinstance(data, bytes)
        return data


def reading() -> Peer:
    peer = Peer()

    @peer.on_request
    async def read(*fds: Fd) -> list[bytes]:
        return [contents(fd) for fd in fds]

    return peer


# -- Fd ----------------------------------------------------------------------------------------


def test_an_fd_owns_its_descriptor() -> None:
    with pipe_with(b"x") as fd:
        number = fd.fileno()
        assert not fd.closed
        assert repr(fd) == f"<Fd {number}>"
    assert fd.closed
    assert repr(fd) == "<Fd closed>"
    fd.close()
    with pytest.raises(ValueError, match="was closed, sent or taken over"):
        fd.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_an_fd_can_be_taken_over() -> None:
    fd = pipe_with(b"x")
    with fd.dup() as second:
        os.close(fd.detach())
        assert fd.closed
        assert contents(second) == b"x"
    left, right = socket.socketpair()
    with right, Fd(left.detach()).as_socket() as sock:
        assert (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)


def test_an_fd_is_neither_pickled_nor_copied() -> None:
    """By its number it would be another file elsewhere, and have two owners here."""
    with pipe_with(b"x") as fd:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"neither pickled nor copied: dup\(\) makes"):
                attempt(fd)
        assert not fd.closed


def test_what_cannot_be_taken_over_stays() -> None:
    with pipe_with(b"x") as fd:
        with pytest.raises(OSError, match="socket"):
            fd.as_socket()
        assert not fd.closed
    with Fd(os.open("/", os.O_RDONLY)) as folder:
        with pytest.raises(IsADirectoryError):
            folder.as_file()
        os.fstat(folder.fileno())


def test_a_dropped_fd_is_closed_with_a_warning() -> None:
    fd = pipe_with(b"x")
    number = fd.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed <Fd {number}>"):
        del fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_dropped_fd_is_closed_where_warnings_are_errors() -> None:
    fd = pipe_with(b"x")
    number = fd.fileno()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error", ResourceWarning)
        unraised: list[Any] = []
        patch.setattr(sys, "unraisablehook", lambda what: unraised.append(what.exc_type))
        del fd
    assert unraised == [ResourceWarning]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize(("fd", "error"), [("3", TypeError), (True, TypeError), (-1, ValueError)])
def test_an_fd_is_a_number(fd: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="file descriptor"):
        Fd(fd)


# -- sending -----------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["socketpair", "unix"])
async def test_a_descriptor_anywhere_in_parameters(over: str) -> None:
    peer = Peer()

    @peer.on_request
    async def read(value: Any) -> Any:
        return [contents(value["here"][0]), contents(value["there"])]

    async with talking(peer, over) as session:
        value = {"here": [pipe_with(b"one")], "there": pipe_with(b"two")}
        assert await session.request("read", [value]) == [b"one", b"two"]
        assert session.statistics().descriptors_sent == 2


async def test_an_fd_is_given_away_and_other_objects_are_lent() -> None:
    left, right = socket.socketpair()
    async with talking(reading()) as session:
        with left, right, tempfile.TemporaryFile() as file:
            file.write(b"in the file")
            file.seek(0)
            right.sendall(b"on the socket")
            right.shutdown(socket.SHUT_WR)
            fd = pipe_with(b"in the pipe")
            texts = await session.request("read", [fd, left, file])
            assert texts == [b"in the pipe", b"on the socket", b"in the file"]
            assert fd.closed
            assert left.fileno() >= 0
            assert not file.closed


async def test_what_was_written_to_a_file_is_in_it_when_it_arrives() -> None:
    """Not in a buffer of its object."""
    peer = Peer()

    @peer.on_request
    def read(fd: Fd) -> bytes:
        with fd:
            return os.pread(fd.fileno(), 100, 0)

    async with talking(peer) as session:
        with tempfile.TemporaryFile() as file:
            file.write(b"written")
            assert await session.request("read", [file]) == b"written"
            assert not file.closed


async def test_a_descriptor_as_a_result() -> None:
    peer = Peer()
    kept: list[socket.socket] = []

    @peer.on_request
    def make(kind: str) -> Any:
        if kind == "fd":
            return {"fd": pipe_with(b"result")}
        left, right = socket.socketpair()
        kept.append(left)
        left.sendall(b"result")
        left.shutdown(socket.SHUT_WR)
        with right:
            return Fd(right.detach())

    async with talking(peer) as session:
        assert contents((await session.request("make", "fd"))["fd"]) == b"result"
        with (await session.request("make", "socket")).as_socket() as sock:
            assert sock.recv(10) == b"result"
    for sock in kept:
        sock.close()


async def test_a_descriptor_in_a_notification() -> None:
    peer, taken = Peer(), Journal()
    peer.on_notification("take")(lambda fd: taken.append(contents(fd)))
    async with talking(peer) as session:
        await session.notify("take", pipe_with(b"noted"))
        assert await taken.reaches(1) == [b"noted"]


async def test_received_descriptors_are_not_inherited() -> None:
    peer = Peer()

    @peer.on_request
    def inheritable(fd: Fd) -> bool:
        with fd:
            return os.get_inheritable(fd.fileno())

    async with talking(peer) as session:
        assert await session.request("inheritable", pipe_with(b"")) is False


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_many_frames_with_several_descriptors_keep_their_order(codec: str) -> None:
    """1,000 frames in flight, among small messages and bulk."""
    peer, order = reading(), Journal()
    peer.on_request("small")(order.append)

    async def ask(session: Session, number: int) -> None:
        texts = [f"{number}.{part}".encode() for part in range(number % 4)]
        bulk = [bytes(50_000)] if number % 100 == 0 else []
        fds = [pipe_with(text) for text in texts]
        assert await session.request("check", [fds, bulk]) == texts
        await session.request("small", number)

    @peer.on_request
    async def check(fds: list[Any], bulk: list[bytes]) -> list[bytes]:
        return [contents(fd) for fd in fds]

    async with joined(Peer(codec=codec, timeout=None), peer, "unix") as (session, other):
        await asyncio.gather(*(ask(session, number) for number in range(1000)))
        await settled(session)
        sent = session.statistics().descriptors_sent
        assert sent == other.statistics().descriptors_received == 1500
        assert sorted(order) == list(range(1000))


async def test_descriptors_go_with_messages_of_many_parts() -> None:
    """Partial writes: the descriptors leave with the first byte, and once."""
    peer = Peer()

    @peer.on_request
    async def take(fd: Fd, data: bytes) -> tuple[bytes, int]:
        return contents(fd), len(data)

    quiet = Peer(limits=Limits(shared_memory_above=0))
    async with talking(peer, first=quiet) as session:
        data = os.urandom(3_000_000)
        results = await asyncio.gather(
            *(session.request("take", [pipe_with(b"%d" % n), data]) for n in range(10))
        )
        assert results == [(b"%d" % n, len(data)) for n in range(10)]


async def test_the_same_descriptor_twice() -> None:
    async with talking(reading()) as session:
        fd = pipe_with(b"once")
        assert sorted(await session.request("read", [fd, fd])) == [b"", b"once"]
        assert fd.closed


# -- what cannot be sent -----------------------------------------------------------------------


@pytest.mark.parametrize("over", ["memory", "pipes"])
async def test_other_transports_refuse_at_packing(over: str) -> None:
    peer = Peer()

    @peer.on_request
    def make() -> Fd:
        return kept

    with pipe_with(b"x") as fd, pipe_with(b"y") as kept:
        async with talking(peer, over) as session:
            before = session.statistics()
            for sending in (
                session.request("read", {"fds": [fd]}),
                session.notify("read", {"fds": [fd]}),
            ):
                error = await failure(sending)
                assert isinstance(error, EncodeError)
                assert str(error).startswith("params.fds[0]: a file descriptor (Fd) can only be")
            assert session.statistics() == before
            error = await failure(session.request("make"))
            assert isinstance(error, RemoteError)
            assert "result: a file descriptor (Fd) can only be sent" in error.message
            assert not fd.closed


async def test_a_closed_one_is_refused_with_its_path() -> None:
    sock = socket.socket()
    sock.close()
    with tempfile.TemporaryFile() as file:
        closed = file
    fd = Fd(os.dup(0))
    fd.close()
    async with talking(reading()) as session:
        with pytest.raises(EncodeError, match=r"params\[1\]: this Fd was closed|params\[1\]: .*Fd"):
            await session.request("read", [1, fd])
        with pytest.raises(EncodeError, match=r"params\[0\].a: this socket is closed"):
            await session.request("read", [{"a": sock}])
        with pytest.raises(EncodeError, match=r"params\[0\]: .*closed file"):
            await session.request("read", [closed])


async def test_too_many_for_one_message() -> None:
    peer = reading()
    peer._limits = Limits(max_descriptors=2)
    async with talking(peer) as session:
        fds = [pipe_with(b"x") for _ in range(3)]
        with pytest.raises(FrameTooLarge, match=r"has 3 file descriptors; .*max_descriptors is 2"):
            await session.request("read", fds)
        assert not any(fd.closed for fd in fds)
        assert await session.request("read", fds[1:]) == [b"x", b"x"]
        fds[0].close()


async def test_shared_memory_takes_no_room_of_the_descriptors_beside_it() -> None:
    """Together they would be more than one message may have, so it goes another way."""
    peer = Peer(limits=Limits(max_descriptors=4))

    @peer.on_request
    async def read(views: list[memoryview], fds: list[Fd]) -> list[bytes]:
        return [bytes(view[:1]) for view in views] + [contents(fd) for fd in fds]

    async with talking(peer) as session, asyncio.timeout(20):
        view = memoryview(bytes(300 * KIB))  # for which the arena is announced
        assert await session.request("read", [[view], [pipe_with(b"f")]]) == [b"\0", b"f"]
        for size in (20 * KIB, 300 * KIB):
            for count, own in ((4, 0), (1, 3), (0, 4)):
                views, sent = [shared_buffer(size) for _ in range(5)], []
                for number, view in enumerate(views):
                    view[:1] = sent_byte = b"%d" % number
                    sent.append(sent_byte)
                before = session.statistics().descriptors_sent
                fds = [pipe_with(b"f") for _ in range(count)]
                assert await session.request("read", [views, fds]) == sent + [b"f"] * count
                assert session.statistics().descriptors_sent - before == count + own


# -- in streams --------------------------------------------------------------------------------


async def test_descriptors_as_items() -> None:
    """More of them than may be under way at once, among items without any."""
    peer, count = Peer(), 300

    @peer.on_request
    async def pipes() -> AsyncIterator[Any]:
        for number in range(count):
            yield {"number": number, "fd": pipe_with(b"%d" % number)} if number % 3 else number

    async with talking(peer) as session, session.stream("pipes") as items:
        number = 0
        async for item in items:
            if number % 3:
                assert contents(item["fd"]) == b"%d" % item["number"]
            else:
                assert item == number
            number += 1
        assert number == count
        assert session.statistics().descriptors_received == count - count // 3


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize(("most", "each"), [(8, 1), (8, 4), (4, 3), (16, 1)])
async def test_a_reader_that_stops_holds_few_descriptors(ready: bool, most: int, each: int) -> None:
    """And nothing else of the session waits for it."""
    peer, made = Peer(), Journal()

    @peer.on_request
    async def pipes() -> AsyncIterator[Any]:
        for number in range(40 * most):
            if not ready:
                await asyncio.sleep(0)
            made.append(number)
            yield [pipe_with(b"x") for _ in range(each)]

    @peer.on_request("open")
    async def open_one() -> Fd:
        return pipe_with(b"y")

    reader = Peer(limits=Limits(max_descriptors=most))
    async with joined(reader, peer) as (session, other), asyncio.timeout(30):
        async with session.stream("pipes") as items:
            for fd in await anext(items):
                fd.close()
            await until(lambda: other.statistics().stalls, session, other)
            for _ in range(3 * most):
                assert contents(await session.request("open")) == b"y"
            held = session.statistics().descriptors_received - 3 * most - each
            assert most - each <= held <= most + 2 * each
            taken = 1
            async for fds in items:
                taken += 1
                for fd in fds:
                    fd.close()
        assert taken == len(made) == 40 * most


async def test_descriptors_in_uploads_and_channels() -> None:
    peer = Peer()

    @peer.on_request
    async def read(fds: AsyncIterable[Fd]) -> list[bytes]:
        return [contents(fd) async for fd in fds]

    @peer.on_request
    async def swap(call: Call) -> None:
        async with call.channel() as channel:
            async for fd in channel:
                await channel.send(pipe_with(contents(fd)[::-1]))

    async def fds() -> AsyncIterator[Any]:
        yield pipe_with(b"one")
        with pipe_with(b"two").as_file() as file:
            yield file  # lent until the next is asked for
        assert file.closed

    async with talking(peer) as session:
        assert await session.request("read", {"fds": fds()}) == [b"one", b"two"]
        async with session.channel("swap") as channel:
            fd = pipe_with(b"abc")
            await channel.send(fd)
            assert fd.closed
            assert contents(await channel.receive()) == b"cba"


@pytest.mark.parametrize("ends", [False, True])
async def test_a_stream_left_early_leaves_no_descriptor(ends: bool) -> None:
    """Those that were not read, and those that were not sent, are closed without a warning."""
    peer, given = Peer(), Journal()

    @peer.on_request
    async def pipes() -> AsyncIterator[Fd]:
        for _ in range(10):
            fd = pipe_with(b"x")
            given.append(fd)
            yield fd
        if not ends:
            await asyncio.Event().wait()

    async with joined(Peer(), peer) as (session, other):
        async with session.stream("pipes") as fds:
            assert contents(await anext(fds)) == b"x"
            await until(lambda: session.statistics().descriptors_received == 10, session, other)
        await until(lambda: not other.statistics().running, session, other)
        stream = session.stream("pipes")
        assert contents(await anext(stream)) == b"x"
        await until(lambda: session.statistics().descriptors_received == 20, session, other)
        await until(lambda: session.statistics().pending == (not ends), session, other)
        del stream
        gc.collect()
        await until(lambda: not other.statistics().running, session, other)
        assert all(fd.closed for fd in given)


async def test_items_that_wait_for_credit_are_given_away() -> None:
    """The reader takes nothing, and leaves; what was gathered behind the credit is closed."""
    given = Journal()
    peer = Peer(limits=Limits(stream_credit=16 * KIB))

    @peer.on_request
    async def pipes() -> AsyncIterator[Any]:
        while True:
            fd = pipe_with(b"x")
            given.append(fd)
            yield [fd, "x" * 1000]

    reader = Peer(limits=Limits(stream_credit=16 * KIB))
    async with joined(reader, peer) as (session, other):
        async with session.stream("pipes") as items:
            [fd, _] = await anext(items)
            assert contents(fd) == b"x"
            await until(lambda: other.statistics().stalls, session, other)
            assert not given[-1].closed
        await until(lambda: not other.statistics().running, session, other)
        assert given[-1].closed


async def test_an_item_with_a_descriptor_that_cannot_be_sent() -> None:
    peer = Peer()

    @peer.on_request
    async def pipes() -> AsyncIterator[Any]:
        yield "first"
        with pipe_with(b"x") as fd:
            yield fd
            raise AssertionError("not reached")

    async with talking(peer, "memory") as session:
        stream = session.stream("pipes")
        assert await anext(stream) == "first"
        error = await failure(anext(stream))
        assert isinstance(error, RemoteError)
        assert "unix socket" in str(error)


# -- what nobody takes -------------------------------------------------------------------------


async def test_nothing_is_left_of_what_nobody_takes() -> None:
    """The test of leftovers looks, and no ResourceWarning comes: the library closes them."""
    peer, made = Peer(), Journal()

    @peer.on_request
    async def late(call: Call) -> Fd:
        made.append(call)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return pipe_with(b"late")
        raise AssertionError

    async with joined(Peer(), peer) as (session, other):
        error = await failure(session.request("nobody", pipe_with(b"x")))
        assert isinstance(error, RemoteError)
        await session.notify("nobody", pipe_with(b"x"))
        task = asyncio.create_task(session.request("late"))
        await made.reaches(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: session.statistics().late_replies, session, other)


@pytest.mark.parametrize("kind", ["plain", "async", "stars"])
async def test_nothing_is_left_of_parameters_that_do_not_fit(kind: str) -> None:
    """No ResourceWarning comes either: the function never had them."""
    peer = Peer()

    def plain(number: int, text: str = "") -> None:
        raise AssertionError

    async def waiting(number: int, text: str = "") -> None:
        raise AssertionError

    def stars(*numbers: int, **texts: str) -> None:
        raise AssertionError

    handlers: dict[str, Any] = {"plain": plain, "async": waiting, "stars": stars}
    peer.on_request("take")(handlers[kind])
    peer.on_notification("take")(plain)
    async with joined(Peer(), peer) as (session, other):
        for params in (
            [pipe_with(b"x"), "text"],
            [1, [{"a": (pipe_with(b"x"), {"b": [pipe_with(b"y")]})}]],
            {"number": 1, "text": pipe_with(b"x")},
            {"number": 1, "other": Parcel(pipe_with(b"x"), [pipe_with(b"y")])},
        ):
            error = await failure(session.request("take", params))
            assert isinstance(error, InvalidParams)
        await session.notify("take", [[pipe_with(b"x")]])
        await settled(session, other)
        del error
        gc.collect()
        assert other.statistics().descriptors_received == 7


async def test_a_session_that_ends_leaves_nothing() -> None:
    peer, held = Peer(), Journal()

    @peer.on_request
    async def hold(fds: list[Any]) -> None:
        held.append(fds)
        try:
            await asyncio.Event().wait()
        finally:
            for fd in fds:
                fd.close()

    async with joined(Peer(), peer) as (session, other):
        tasks = [
            asyncio.create_task(session.request("hold", [[pipe_with(b"x") for _ in range(60)]]))
            for _ in range(20)
        ]
        await held.reaches(20)  # more than there is credit for at once
        assert other.statistics().descriptors_received == 1200
        async with asyncio.timeout(10):
            await session.aclose()
            for task in tasks:
                assert isinstance(await failure(task), SessionClosed)


async def test_what_was_not_sent_is_closed_with_the_session() -> None:
    """The other side gives no credit, so nothing leaves."""
    async with RawPeer.facing(Peer(), max_descriptors=4) as (raw, session):
        fds = [pipe_with(b"x"), pipe_with(b"y")]
        tasks = [asyncio.create_task(session.request("take", fd)) for fd in fds]
        assert await raw.receive_kind(DESCRIPTORS) == [DESCRIPTORS, 0]
        assert all(fd.closed for fd in fds)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert session.statistics().descriptors_sent == 0
        raw.close()
        assert isinstance(await failure(tasks[1]), PeerDied)


async def test_a_result_that_comes_too_late_is_closed() -> None:
    peer, made = Peer(), Journal()

    @peer.on_request
    async def late() -> Fd:
        made.append(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            made.append(pipe_with(b"late"))
        fd = made[1]
        assert isinstance(fd, Fd)
        return fd

    async with RawPeer.facing(peer, max_descriptors=4) as (raw, session):
        raw.send([2, 2, "late"])
        await made.reaches(1)
        raw.close()
        await session.wait_closed()
        await made.reaches(2)
        await until(lambda: made[1].closed)
