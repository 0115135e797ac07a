"""Serving on a unix socket: who owns the path, who may connect, how a server ends."""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncipc import (
    AddressError,
    AddressInUse,
    AuthenticationError,
    Limits,
    Peer,
    PeerDied,
    Session,
    SessionClosed,
    Timeouts,
)
from asyncipc.peer import listening
from asyncipc.peer import server as server_module
from asyncipc.peer.address import UnixAddress
from tests.peer.support import echoing, holding
from tests.raw_client import RawClient, hello


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


async def works(address: str) -> bool:
    async with Peer().connect(address) as session:
        return bool(await session.request("echo", [True]))


# The file


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [None, 0o600, 0o660])
async def test_the_mode_is_never_wider(
    mask: int, mode: int | None, path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            seen.append(mode_of(path))

    monkeypatch.setattr(socket, "socket", Watched)
    expected = mode or 0o600
    with umask(mask):
        async with peer.serve(f"unix:{path}", mode=mode):
            assert seen == [expected & ~mask]
            assert mode_of(path) == expected
            assert mode_of(lock_of(path)) & 0o177 == 0


@pytest.mark.parametrize(
    ("mode", "error"), [("600", TypeError), (-1, ValueError), (0o1777, ValueError)]
)
def test_what_is_no_mode(mode: Any, error: type[Exception], peer: Peer) -> None:
    with pytest.raises(error, match="mode must be"):
        peer.serve("unix:/x", mode=mode)


async def test_a_server_leaves_nothing_behind(path: Path, peer: Peer) -> None:
    for _ in range(2):
        async with peer.serve(f"unix:{path}") as server:
            assert server.address == f"unix:{path}"
            assert await works(server.address)
            assert sorted(os.listdir(path.parent)) == ["app.sock", "app.sock.lock"]
        assert os.listdir(path.parent) == []


async def test_no_folder(path: Path, peer: Peer) -> None:
    with pytest.raises(FileNotFoundError):
        await peer.serve(f"unix:{path}/app.sock")


async def test_a_stale_socket_is_replaced(path: Path, peer: Peer) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    lock_of(path).touch()  # its server left that behind as well
    async with peer.serve(f"unix:{path}") as server:
        assert await works(server.address)
    assert os.listdir(path.parent) == []


async def test_a_live_server_is_left_alone(path: Path, peer: Peer) -> None:
    async with peer.serve(f"unix:{path}") as server:
        with pytest.raises(AddressInUse, match=f"a live server owns unix:{path}"):
            await peer.serve(f"unix:{path}")
        assert await works(server.address)
    async with peer.serve(f"unix:{path}") as server:
        assert await works(server.address)


def listening_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def busy_socket(path: Path) -> socket.socket:
    """Its queue is full."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(0)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
    return sock


def datagram_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    return sock


@pytest.mark.parametrize("make", [listening_socket, busy_socket, datagram_socket])
async def test_a_live_server_that_takes_no_lock(
    make: Callable[[Path], socket.socket], path: Path, peer: Peer
) -> None:
    with make(path):
        before = path.lstat()
        with pytest.raises(AddressInUse, match=f"a live server listens on unix:{path}"):
            await peer.serve(f"unix:{path}")
        assert os.path.samestat(path.lstat(), before)
        assert not lock_of(path).exists()


def make_file(path: Path) -> None:
    path.write_text("precious")


def make_link(path: Path) -> None:
    """Even to a socket that is dead."""
    target = path.with_name("target")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(target))
    path.symlink_to(target)


@pytest.mark.parametrize("make", [make_file, make_link, Path.mkdir])
async def test_what_is_no_socket_is_left_alone(
    make: Callable[[Path], None], path: Path, peer: Peer
) -> None:
    make(path)
    before = path.lstat()
    with pytest.raises(AddressError, match=f"{path} exists and is no socket; it was left alone"):
        await peer.serve(f"unix:{path}")
    assert os.path.samestat(path.lstat(), before)
    assert not lock_of(path).exists()


async def test_only_our_own_socket_is_removed(path: Path, peer: Peer) -> None:
    async with peer.serve(f"unix:{path}"):
        path.unlink()
        foreign = listening_socket(path)
    with foreign:
        assert path.exists()
        with pytest.raises(AddressInUse):
            await peer.serve(f"unix:{path}")


async def test_a_path_that_was_taken_away(path: Path, peer: Peer) -> None:
    async with peer.serve(f"unix:{path}"):
        path.unlink()
        lock_of(path).unlink()
        async with peer.serve(f"unix:{path}") as server:
            second = path.lstat()
            lock = lock_of(path).lstat()
            assert await works(server.address)
            # The first, which is closed now, does not know of the second.
            await next(other for other in peer_servers(peer) if other is not server).aclose()
            assert os.path.samestat(path.lstat(), second)
            assert os.path.samestat(lock_of(path).lstat(), lock)
            assert await works(server.address)


def peer_servers(peer: Peer) -> set[Any]:
    return peer._sessions.here()._servers


async def test_a_lock_that_is_a_link(path: Path, peer: Peer) -> None:
    precious = path.with_name("precious")
    lock_of(path).symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        await peer.serve(f"unix:{path}")
    assert not precious.exists()


@contextlib.contextmanager
def forked(in_child: Callable[[], object]) -> Iterator[None]:
    """A copy of this process that does something and then lives on, till the end of the block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                in_child()
            finally:
                theirs.send(b"done")
                theirs.recv(1)
                os._exit(0)
        try:
            assert ours.recv(4) == b"done"
            yield
        finally:
            ours.send(b"x")
            os.waitpid(pid, 0)


def test_a_fork_does_not_remove_the_socket(path: Path) -> None:
    """When it leaves the ``async with`` of the server, as on its way out."""
    server = listening.listen_unix(UnixAddress(str(path)), 0o600)
    with forked(server.close):
        assert path.exists()
        assert lock_of(path).exists()
        server.close()
        assert os.listdir(path.parent) == []


def test_a_fork_does_not_hold_the_path(path: Path) -> None:
    """The server is killed, its fork lives on."""
    address = UnixAddress(str(path))
    killed = listening.listen_unix(address, 0o600)
    with forked(lambda: None):
        killed.sock.close()
        assert killed._path is not None
        killed._path.drop_lock()
        listening.listen_unix(address, 0o600).close()
    killed._path = None


def test_a_listening_socket_that_was_dropped_gives_the_path_back(path: Path) -> None:
    address = UnixAddress(str(path))
    with pytest.warns(ResourceWarning, match="unclosed"):
        listening.listen_unix(address, 0o600)
    assert os.listdir(path.parent) == []


# Names without a file


@pytest.fixture
def name() -> str:
    return f"asyncipc test {os.getpid()}"


async def test_an_abstract_name(name: str, peer: Peer) -> None:
    async with peer.serve(f"unix:@{name}") as server:
        assert server.address == f"unix:@{name}"
        assert await works(server.address)
        assert f"@{name}" in Path("/proc/net/unix").read_text()
        with pytest.raises(AddressInUse, match=f"somebody listens on unix:@{name} already"):
            await peer.serve(f"unix:@{name}")
        assert await works(server.address)
    with pytest.raises(ConnectionRefusedError):
        await peer.connect(f"unix:@{name}")


# Users


async def test_others_are_refused_by_default(
    path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)  # so we are somebody else
    async with peer.serve(f"unix:{path}") as server:
        with pytest.raises(AuthenticationError, match=f"user {me} may not connect"):
            await peer.connect(server.address)
        assert not server.sessions
    assert f"user {me} may not connect" in caplog.text


@pytest.mark.parametrize("others", [False, True])
async def test_named_users(others: bool, path: Path, peer: Peer) -> None:
    me = os.geteuid()
    async with peer.serve(f"unix:{path}", users=[me + 1] if others else {me, me + 1}) as server:
        assert mode_of(path) == 0o666  # they can reach it, and the kernel tells who they are
        if others:
            with pytest.raises(AuthenticationError, match="users= admits others"):
                await works(server.address)
        else:
            assert await works(server.address)


async def test_everybody(path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    async with peer.serve(f"unix:{path}", users="any") as server:
        assert mode_of(path) == 0o666
        assert await works(server.address)


async def test_users_of_a_name_without_a_file(name: str, peer: Peer) -> None:
    async with peer.serve(f"unix:@{name}", users=[os.geteuid() + 1]) as server:
        with pytest.raises(AuthenticationError):
            await works(server.address)


@pytest.mark.parametrize(
    ("users", "error"),
    [
        ("root", TypeError),
        (b"same", TypeError),
        (0, TypeError),
        (["root"], TypeError),
        ([True], TypeError),
        ([], ValueError),
        (None, TypeError),
    ],
)
def test_what_are_no_users(users: Any, error: type[Exception], peer: Peer) -> None:
    with pytest.raises(error, match="users must"):
        peer.serve("unix:/x", users=users)


# How many


async def test_one_session_too_many(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peer = echoing(limits=Limits(max_sessions=1))
    async with peer.serve(f"unix:{path}") as server:
        async with Peer().connect(server.address) as first:
            with pytest.raises(SessionClosed, match="max_sessions, which is 1, allows no more"):
                await Peer().connect(server.address)
            assert len(server.sessions) == 1
            assert await first.request("echo", [True])
            (ours,) = server.sessions
        await ours.wait_closed()
        assert await works(server.address)
    assert "a connection was refused" in caplog.text


async def test_a_handshake_counts_as_a_session(path: Path) -> None:
    peer = echoing(limits=Limits(max_sessions=1))
    async with peer.serve(f"unix:{path}") as server:
        async with await RawClient.connect(str(path)) as silent:
            with pytest.raises(SessionClosed, match="max_sessions"):
                await Peer().connect(server.address)
            await silent.say_hello()
        (ours,) = server.sessions
        await ours.wait_closed()
        assert await works(server.address)


async def test_a_handshake_that_failed_does_not_count(path: Path) -> None:
    peer = echoing(limits=Limits(max_sessions=1), timeouts=Timeouts(handshake=0.3))
    async with peer.serve(f"unix:{path}") as server:
        async with await RawClient.connect(str(path)) as silent:
            assert await silent.receive_all() == []  # it hung up
        async with await RawClient.connect(str(path)) as wrong:
            await wrong.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
            await wrong.receive_all()
        assert await works(server.address)


async def test_no_descriptors_left(
    path: Path, peer: Peer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection waits in the kernel's queue, and one line is logged, not a flood."""
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", 0)
    async with peer.serve(f"unix:{path}"):
        with socket.socket(socket.AF_UNIX) as sock:
            with all_descriptors_taken():
                sock.connect(str(path))
                while "cannot accept" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0)
                for _ in range(10):  # it tries again and again
                    await asyncio.sleep(0)
            await RawClient(sock).say_hello()
    failures = [record for record in caplog.records if "cannot accept" in record.message]
    assert len(failures) == 1
    assert "Too many open files" in failures[0].message


@contextlib.contextmanager
def all_descriptors_taken() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.ExitStack() as fillers:
            with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012 - in any round
                while True:
                    fillers.enter_context(open(os.devnull, "rb"))
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Each new session


async def test_on_session(path: Path, peer: Peer) -> None:
    met: list[Session] = []
    async with peer.serve(f"unix:{path}", on_session=met.append) as server:
        assert await works(server.address)
    assert len(met) == 1
    assert met[0].credentials is not None
    assert met[0].credentials.uid == os.geteuid()


async def test_on_session_comes_before_the_first_request(path: Path, peer: Peer) -> None:
    """Also when that stands right behind the hello."""

    def meet(session: Session) -> None:
        session.on_request("greet")(lambda: f"hello, {session.credentials and 'you'}")

    async with (
        peer.serve(f"unix:{path}", on_session=meet),
        await RawClient.connect(str(path)) as client,
    ):
        await client.send(hello(), [2, 2, "greet", None])
        assert (await client.receive())[0] == 0
        assert await client.answer(2) == [3, 3, "hello, you"]


async def test_on_session_may_be_a_coroutine_function(path: Path, peer: Peer) -> None:
    async def meet(session: Session) -> None:
        heard.append(await session.request("echo", ["from the server"]))

    heard: list[str] = []
    async with (
        peer.serve(f"unix:{path}", on_session=meet) as server,
        peer.connect(server.address) as session,
    ):
        await session.ping()
        await session.ping()
        assert heard == ["from the server"]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_on_session_that_raises(
    kind: str, path: Path, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(session: Session) -> None:
        raise ZeroDivisionError

    async def fail_later(session: Session) -> None:
        raise ZeroDivisionError

    meet = fail if kind == "plain" else fail_later
    async with peer.serve(f"unix:{path}", on_session=meet) as server:
        async with peer.connect(server.address) as session, asyncio.timeout(5):
            await session.wait_closed()
        assert "on_session failed, so the session is closed" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        caplog.clear()
    assert not caplog.records


async def test_on_session_that_outlives_the_session(
    path: Path, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def meet(session: Session) -> None:
        try:
            await session.request("never")
        finally:
            ended.set()

    client = Peer(timeouts=Timeouts(goodbye=0))

    @client.on_request
    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    asked = asyncio.Event()
    async with peer.serve(f"unix:{path}", on_session=meet) as server:
        async with client.connect(server.address):
            await asked.wait()
        async with asyncio.timeout(5):
            await ended.wait()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# The end


async def test_closing_ends_the_sessions(path: Path, peer: Peer) -> None:
    async with peer.serve(f"unix:{path}") as server:
        async with peer.connect(server.address) as first, Peer().connect(server.address) as second:
            assert len(server.sessions) == 2
            assert peer.sessions == server.sessions | {first}
            waiting = asyncio.create_task(server.wait_closed())
            async with asyncio.timeout(5):
                await server.aclose()
                await waiting
                await first.wait_closed()
                await second.wait_closed()
            assert first.close_reason is None
            assert not server.sessions
            assert not peer.sessions
        assert "closed" in repr(server)


async def test_closing_drops_handshakes(path: Path, peer: Peer) -> None:
    async with (
        await peer.serve(f"unix:{path}") as server,
        await RawClient.connect(str(path)) as early,
        await RawClient.connect(str(path)) as late,
        Peer().connect(server.address),  # so those before it were accepted
        asyncio.timeout(5),
    ):
        await server.aclose()
        assert await early.receive_all() == []
        assert await late.receive_all() == []


async def test_closing_what_was_accepted_just_now(path: Path, peer: Peer) -> None:
    """Its task has not begun."""
    async with await peer.serve(f"unix:{path}") as server:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with await RawClient.connect(str(path)) as client:
                server._accept()
                async with asyncio.timeout(5):
                    await server.aclose()
                    assert await client.receive_all() == []


async def test_closing_twice_and_at_the_same_time(path: Path, peer: Peer) -> None:
    server = await peer.serve(f"unix:{path}")
    async with peer.connect(server.address):
        async with asyncio.timeout(5):
            await asyncio.gather(server.aclose(), server.aclose(), server.wait_closed())
            await server.aclose()


async def test_closing_goes_on_when_its_caller_is_cancelled(path: Path) -> None:
    peer, hold = holding()
    server = await peer.serve(f"unix:{path}")
    async with Peer().connect(server.address) as session:
        waiting = asyncio.create_task(session.request("hold"))
        await hold.started.wait()
        closing = asyncio.create_task(server.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        hold.released.set()
        async with asyncio.timeout(5):
            assert await waiting == "released"
            await server.wait_closed()
            await session.wait_closed()


async def test_a_handler_closes_the_server(path: Path) -> None:
    peer = Peer()

    @peer.on_request
    async def stop() -> str:
        await server.aclose()
        return "stopped"

    server = await peer.serve(f"unix:{path}")
    async with peer.connect(server.address) as session, asyncio.timeout(5):
        assert await session.request("stop") == "stopped"
        await session.wait_closed()
    assert not path.exists()


async def test_a_client_that_dies_is_no_matter(path: Path, peer: Peer) -> None:
    async with peer.serve(f"unix:{path}") as server:
        async with await RawClient.connect(str(path)) as client:
            await client.say_hello()
            (session,) = server.sessions
        async with asyncio.timeout(5):
            await session.wait_closed()
        assert isinstance(session.close_reason, PeerDied)
        assert not server.sessions
        assert await works(server.address)


# What cannot be served


def test_what_cannot_be_listened_on(peer: Peer) -> None:
    for address in ("fd:3", "exec:true"):
        with pytest.raises(AddressError, match=f"{address} cannot"):
            peer.serve(address)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(AddressError, match="TLS is for tcp: addresses"):
        peer.serve("unix:/x", tls=tls)
