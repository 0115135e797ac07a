"""Serving on TCP: never wider than it was asked for."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
import trustme

from asyncipc import (
    NETWORK_LIMITS,
    AddressError,
    AddressInUse,
    AuthenticationError,
    Limits,
    Peer,
    PeerDied,
    Server,
    Session,
    SessionClosed,
    Timeouts,
)
from asyncipc.peer.address import TcpAddress
from asyncipc.peer.listening import listen_tcp
from asyncipc.peer.resolving import Resolved, is_loopback, resolve
from tests.peer.support import echoing

SECRET = "correct horse battery staple"


class Certificates(NamedTuple):
    authority: trustme.CA
    server: ssl.SSLContext
    strict_server: ssl.SSLContext
    client: ssl.SSLContext
    client_with_certificate: ssl.SSLContext


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    authority = trustme.CA()
    identity = authority.issue_cert("localhost", "127.0.0.1")
    contexts = [ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2)]
    contexts += [ssl.create_default_context() for _ in range(2)]
    for context in contexts[:2]:
        identity.configure_cert(context)
    for context in contexts[1:]:
        authority.configure_trust(context)
    contexts[1].verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("client@example.org").configure_cert(contexts[3])
    return Certificates(authority, *contexts)


async def works(server: Server, **options: Any) -> bool:
    async with Peer().connect(server.address, **options) as session:
        return bool(await session.request("echo", [True]))


async def test_tls_to_a_server_without(certificates: Certificates) -> None:
    async with Peer().serve("tcp:127.0.0.1:0", insecure=True) as server:
        with pytest.raises(OSError, match=r"TLS|SSL") as caught:
            await Peer().connect(server.address, tls=certificates.client)
        assert str(caught.value)


async def test_tls_to_one_who_hangs_up(certificates: Certificates) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with tcp_server(hang_up) as address:
        with pytest.raises(ConnectionResetError) as caught:
            await Peer().connect(address, tls=certificates.client)
        expected = f"{address} broke off the TLS handshake; it may not speak TLS"
        assert caught.value.strerror == expected


async def test_tls_to_one_who_is_silent(certificates: Certificates) -> None:
    async def stay(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    impatient = Peer(timeouts=Timeouts(handshake=0.1))
    async with tcp_server(stay) as address:
        with pytest.raises(TimeoutError, match=rf"no TLS with {address} within 0\.1 s"):
            await impatient.connect(address, tls=certificates.client)


@contextlib.asynccontextmanager
async def tcp_server(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server that is no peer; hangs up when ``behave`` is done."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await done.wait()


# What it takes


async def test_a_token(peer: Peer) -> None:
    async with peer.serve("tcp:127.0.0.1:0", token=SECRET) as server:
        assert server.address.startswith("tcp:127.0.0.1:")
        assert not server.address.endswith(":0")
        assert await works(server, token=SECRET)
        assert await works(server, token=SECRET.encode())


@pytest.mark.parametrize("token", [None, "secret"])
async def test_a_wrong_token(
    token: str | None, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async with peer.serve("tcp:127.0.0.1:0", token=SECRET) as server:
        with pytest.raises(AuthenticationError, match="token") as caught:
            await works(server, token=token)
        assert SECRET not in str(caught.value)
        assert not server.sessions
        assert await works(server, token=SECRET)
    assert "no session came of a connection" in caplog.text
    assert SECRET not in caplog.text


async def test_a_listener_that_asks_for_no_token(peer: Peer) -> None:
    """It may be somebody else who took the port."""
    async with peer.serve("tcp:127.0.0.1:0", insecure=True) as server:
        with pytest.raises(AuthenticationError, match="asks for none"):
            await works(server, token=SECRET)
        assert await works(server)


async def test_client_certificates(peer: Peer, certificates: Certificates) -> None:
    async with peer.serve("tcp:127.0.0.1:0", tls=certificates.strict_server) as server:
        assert await works(server, tls=certificates.client_with_certificate)
        with pytest.raises((ssl.SSLError, PeerDied, ConnectionError)):
            await works(server, tls=certificates.client)
        assert not server.sessions


async def test_tls_and_a_token(peer: Peer, certificates: Certificates) -> None:
    async with peer.serve("tcp:127.0.0.1:0", tls=certificates.server, token=SECRET) as server:
        assert await works(server, tls=certificates.client, token=SECRET)
        with pytest.raises(AuthenticationError):
            await works(server, tls=certificates.client, token="wrong")


async def test_a_client_that_does_not_trust(peer: Peer, certificates: Certificates) -> None:
    async with peer.serve("tcp:127.0.0.1:0", tls=certificates.server, token=SECRET) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await works(server, tls=ssl.create_default_context(), token=SECRET)
        assert await works(server, tls=certificates.client, token=SECRET)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_one_side_without_tls(side: str, peer: Peer, certificates: Certificates) -> None:
    options: dict[str, Any] = {"tls": certificates.server} if side == "server" else {}
    async with peer.serve("tcp:127.0.0.1:0", token=SECRET, **options) as server:
        options = {"tls": certificates.client} if side == "client" else {}
        with pytest.raises((ssl.SSLError, PeerDied, ConnectionError, asyncio.CancelledError)):
            await works(server, token=SECRET, **options)
        assert not server.sessions


@pytest.mark.parametrize(
    ("address", "options", "advice"),
    [
        ("tcp:127.0.0.1:0", {}, "give token=, or a tls context that requires client certificates"),
        ("tcp:localhost:0", {}, "give token="),
        ("tcp:0.0.0.0:0", {}, "can be reached from other machines: give tls=, or insecure=True"),
        ("tcp:0.0.0.0:0", {"token": SECRET}, "can be reached from other machines"),
        ("tcp:[::]:0", {"token": SECRET}, "can be reached from other machines"),
        ("tcp:192.0.2.1:0", {"token": SECRET}, "can be reached from other machines"),
    ],
)
async def test_what_is_too_open(
    address: str, options: dict[str, Any], advice: str, peer: Peer
) -> None:
    with pytest.raises(AddressError, match=advice):
        await peer.serve(address, **options)


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:0", "tcp:0.0.0.0:0"])
async def test_tls_alone_lets_anybody_in(
    address: str, peer: Peer, certificates: Certificates
) -> None:
    with pytest.raises(AddressError, match=r"whoever can reach .* could connect"):
        await peer.serve(address, tls=certificates.server)


async def test_beyond_the_loopback(peer: Peer, certificates: Certificates) -> None:
    async with peer.serve("tcp:0.0.0.0:0", tls=certificates.server, token=SECRET) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        async with peer.connect(address, tls=certificates.client, token=SECRET) as session:
            assert await session.request("echo", [1]) == 1


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:0", "tcp:0.0.0.0:0"])
async def test_insecure(address: str, peer: Peer) -> None:
    async with peer.serve(address, insecure=True) as server:
        assert await works(server)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["127.0.0.1"], True),
        (["127.255.0.1", "::1"], True),
        (["127.0.0.1", "192.0.2.1"], False),
        (["0.0.0.0"], False),
        (["::"], False),
        (["fe80::1%lo"], False),
    ],
)
def test_what_only_this_machine_can_reach(hosts: list[str], expected: bool) -> None:
    resolved = [Resolved(socket.AF_INET, 0, (host, 0)) for host in hosts]
    assert is_loopback(resolved) is expected


async def test_a_name_counts_by_all_its_addresses(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(address: TcpAddress) -> list[Resolved]:
        hosts = ("127.0.0.1", "192.0.2.1")
        return [Resolved(socket.AF_INET, 0, (host, address.port)) for host in hosts]

    monkeypatch.setattr("asyncipc.peer.peer.resolving.resolve", resolve)
    with pytest.raises(AddressError, match="from other machines"):
        await peer.serve("tcp:ambiguous:0", token=SECRET)


def test_what_tcp_does_not_take(peer: Peer) -> None:
    for options in ({"users": "any"}, {"users": [0]}, {"mode": 0o600}):
        with pytest.raises(AddressError, match="users= and mode= are for unix sockets"):
            peer.serve("tcp:127.0.0.1:0", token=SECRET, **options)


# The socket


async def test_ipv6(peer: Peer) -> None:
    try:
        server = await peer.serve("tcp:[::1]:0", token=SECRET)
    except OSError as error:
        assert error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # noqa: PT017
        pytest.skip("this machine has no IPv6")
    async with server:
        assert server.address.startswith("tcp:[::1]:")
        assert await works(server, token=SECRET)


async def test_a_port_that_is_taken(peer: Peer) -> None:
    async with peer.serve("tcp:127.0.0.1:0", token=SECRET) as server:
        with pytest.raises(AddressInUse, match=f"somebody listens on {server.address} already"):
            await peer.serve(server.address, token=SECRET)
        assert await works(server, token=SECRET)
    async with peer.serve(server.address, token=SECRET) as again:
        assert await works(again, token=SECRET)


async def test_a_host_that_is_not_here(peer: Peer) -> None:
    with pytest.raises(OSError, match=r"cannot listen on tcp:192\.0\.2\.1:0: Cannot assign"):
        await peer.serve("tcp:192.0.2.1:0", insecure=True)


def test_an_address_that_cannot_be_used_is_passed_over() -> None:
    """A name may have one of IPv6 where that is switched off."""
    address = TcpAddress("localhost", 0)
    unusable = Resolved(socket.AF_INET, 0, ("192.0.2.1", 0))
    usable = Resolved(socket.AF_INET, 0, ("127.0.0.1", 0))
    listening = listen_tcp(address, [unusable, usable])
    try:
        assert listening.sock.getsockname()[0] == "127.0.0.1"
    finally:
        listening.close()


async def test_numbers_are_resolved_at_once() -> None:
    assert [one.native[:2] for one in await resolve(TcpAddress("127.0.0.1", 80))] == [
        ("127.0.0.1", 80)
    ]


async def test_the_options_of_the_sockets(peer: Peer) -> None:
    async with (
        peer.serve("tcp:127.0.0.1:0", token=SECRET) as server,
        peer.connect(server.address, token=SECRET) as session,
    ):
        (accepted,) = server.sessions
        for sock in map(socket_of, (session, accepted)):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


def socket_of(session: Session) -> socket.socket:
    sock = session._connection.transport._sock  # type: ignore[attr-defined]
    assert isinstance(sock, socket.socket)
    return sock


async def test_sessions_from_the_network_have_lower_limits() -> None:
    assert NETWORK_LIMITS.max_message < Limits().max_message
    chosen = Limits(max_message=12345678)
    for limits, expected in ((None, NETWORK_LIMITS), (chosen, chosen)):
        peer = echoing(limits=limits)
        async with (
            peer.serve("tcp:127.0.0.1:0", token=SECRET) as server,
            Peer().connect(server.address, token=SECRET),
        ):
            (accepted,) = server.sessions
            assert accepted._connection.settings.limits == expected


async def test_one_session_too_many() -> None:
    """The reason arrives, although what the client said was never read."""
    peer = echoing(limits=Limits(max_sessions=1))
    async with (
        peer.serve("tcp:127.0.0.1:0", token=SECRET) as server,
        Peer().connect(server.address, token=SECRET) as first,
    ):
        for _ in range(5):
            with pytest.raises(SessionClosed, match="max_sessions, which is 1"):
                await Peer().connect(server.address, token=SECRET)
        assert await first.request("echo", [1]) == 1


# What crosses


class Proxy:
    """Passes everything on, and keeps a copy."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen = bytearray()
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                onward = await asyncio.open_connection("127.0.0.1", self.port)
                there = group.create_task(self.copy(reader, onward[1]))
                back = group.create_task(self.copy(onward[0], writer))
                await asyncio.wait([there, back])

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self.address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield
            server.close()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.seen += data
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_the_token_never_crosses(peer: Peer) -> None:
    async with peer.serve("tcp:127.0.0.1:0", token=SECRET) as server:
        proxy = Proxy(int(server.address.rpartition(":")[2]))
        async with proxy.running():
            async with Peer().connect(proxy.address, token=SECRET) as session:
                assert await session.request("echo", ["something else"]) == "something else"
            with pytest.raises(AuthenticationError):
                await Peer().connect(proxy.address, token="wrong")
    assert b"something else" in proxy.seen
    assert SECRET.encode() not in proxy.seen
    assert b"wrong" not in proxy.seen


async def test_a_handshake_of_tls_that_never_comes(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    peer = echoing(timeouts=Timeouts(handshake=0.05))
    async with peer.serve("tcp:127.0.0.1:0", tls=certificates.server, token=SECRET) as server:
        port = int(server.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert "no session came of a connection" in caplog.text


async def test_closing_in_a_handshake_of_tls(peer: Peer, certificates: Certificates) -> None:
    async with peer.serve("tcp:127.0.0.1:0", tls=certificates.server, token=SECRET) as server:
        port = int(server.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not server._in_handshake:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await server.aclose()
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
