"""What is special about TLS: handshakes that fail, and what comes before the start."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable

import pytest
import trustme

from asyncipc.transport import tls
from tests.contract.transports import contexts, tcp_sockets
from tests.transport.recorder import WAIT, End, pattern, turns


@pytest.fixture(params=["tcp", "unix"])
async def sockets(request: pytest.FixtureRequest) -> tuple[socket.socket, socket.socket]:
    return await tcp_sockets() if request.param == "tcp" else socket.socketpair()


async def failure(attempt: Awaitable[object]) -> BaseException:
    try:
        async with asyncio.timeout(WAIT):
            await attempt
    except Exception as error:  # noqa: BLE001 - it is what the tests look at
        return error
    pytest.fail("that should not have worked")


async def test_the_name_must_fit(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = contexts()
    errors = await asyncio.gather(
        failure(tls.connect(sockets[0], client, "other.example", handshake_timeout=WAIT)),
        failure(tls.accept(sockets[1], server, handshake_timeout=WAIT)),
    )
    assert isinstance(errors[0], ssl.SSLCertVerificationError)
    assert isinstance(errors[1], OSError)


async def test_a_server_without_tls(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, _ = contexts()
    with sockets[1] as other:
        other.send(b"220 some other protocol\r\n")
        error = await failure(
            tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT)
        )
    assert isinstance(error, ssl.SSLError)


async def test_a_client_without_tls(sockets: tuple[socket.socket, socket.socket]) -> None:
    _, server = contexts()
    with sockets[0] as other:
        other.send(b"GET / HTTP/1.1\r\n\r\n")
        error = await failure(tls.accept(sockets[1], server, handshake_timeout=WAIT))
    assert isinstance(error, ssl.SSLError)


async def test_a_peer_that_hangs_up(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, _ = contexts()
    sockets[1].close()
    error = await failure(tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT))
    assert isinstance(error, OSError)


async def test_a_peer_that_says_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = contexts()
    with sockets[1]:
        connecting = tls.connect(sockets[0], client, "server.example", handshake_timeout=0.05)
        assert isinstance(await failure(connecting), ConnectionAbortedError)
    ours, theirs = socket.socketpair()
    with theirs:
        accepting = tls.accept(ours, server, handshake_timeout=0.05)
        assert isinstance(await failure(accepting), ConnectionAbortedError)


async def test_given_up_by_the_caller(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, _ = contexts()
    with sockets[1]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT)
        await turns()


async def test_client_certificates(sockets: tuple[socket.socket, socket.socket]) -> None:
    authority = trustme.CA()
    client, server = contexts()
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("client@example.org").configure_cert(client)
    left, right = await asyncio.gather(
        tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT),
        tls.accept(sockets[1], server, handshake_timeout=WAIT),
    )
    assert "TLS connection with" in left.description
    for transport in left, right:
        end = End(transport)
        end.start()
        end.call("close")
        assert await end.lost() is None


async def test_much_before_start(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = contexts()
    connected, accepted = await asyncio.gather(
        tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT),
        tls.accept(sockets[1], server, handshake_timeout=WAIT),
    )
    left, right = End(connected), End(accepted)
    left.start()
    data = pattern(3_000_000)
    left.write(data)
    await turns(100)
    assert right.heard.events == []
    right.start()
    right.call("pause_reading")
    right.call("resume_reading")
    await right.heard.received(len(data))
    assert right.heard.data == data
    left.call("close")
    assert await right.lost() is None
    assert await left.lost() is None


async def test_lost_before_start(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, server = contexts()
    connected, accepted = await asyncio.gather(
        tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT),
        tls.accept(sockets[1], server, handshake_timeout=WAIT),
    )
    left, right = End(connected), End(accepted)
    left.start()
    await left.send(b"early")
    left.call("close")
    assert await left.lost() is None
    right.start()
    assert await right.lost() is None
    assert right.heard.data == b"early"


async def test_a_peer_that_has_stopped_does_not_hold_up_the_end() -> None:
    client, server = contexts()
    sockets = socket.socketpair()
    connected, accepted = await asyncio.gather(
        tls.connect(sockets[0], client, "server.example", handshake_timeout=WAIT),
        tls.accept(sockets[1], server, handshake_timeout=WAIT),
    )
    left, right = End(connected), End(accepted)
    left.start()
    right.start()
    right.call("pause_reading")  # so it answers no goodbye
    left.call("close")
    async with asyncio.timeout(5):
        assert await left.lost() is None
    right.call("close")
    await right.lost()
