"""Both sides prove that they know the token, and neither can make the other prove it for him."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncipc import AuthenticationError, Peer, Session, SessionClosed
from asyncipc.wire.authentication import make_proof
from tests.peer.support import echoing
from tests.raw_client import RawClient, hello, pack

TOKEN = "secret"
SCHEME = "hmac-sha256"


class Listener:
    """A listener by hand that a real peer connects to."""

    def __init__(self, client: RawClient, connecting: asyncio.Task[Session]) -> None:
        self.client = client
        self.connecting = connecting

    async def challenge(self) -> tuple[bytes, bytes, bytes]:
        """Ask for a proof; both hellos, and the proof."""
        theirs, _ = await self.client.receive_frame()
        ours = pack(hello(auth=[SCHEME], instance=bytes(16)))
        await self.client.send(ours)
        kind, proof = await self.client.receive()
        assert kind == 1
        return theirs, ours, proof


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    ours, theirs = socket.socketpair()
    peer = Peer()
    async with RawClient(ours) as client, peer:
        connecting = asyncio.create_task(peer.connect(f"fd:{theirs.detach()}", token=TOKEN))
        yield Listener(client, connecting)


async def test_both_sides_prove_it(listener: Listener) -> None:
    theirs, ours, proof = await listener.challenge()
    assert proof == make_proof(TOKEN.encode(), "connecting", theirs, ours)
    await listener.client.send([1, make_proof(TOKEN.encode(), "listening", theirs, ours)])
    async with asyncio.timeout(5):
        session = await listener.connecting
    assert not session.closed


async def test_a_proof_that_is_reflected(listener: Listener) -> None:
    """A listener that does not know the token sends back what it was sent."""
    _, _, proof = await listener.challenge()
    await listener.client.send([1, proof])
    with pytest.raises(AuthenticationError, match="does not know the token"):
        await listener.connecting


async def test_a_proof_by_another_token(listener: Listener) -> None:
    theirs, ours, _ = await listener.challenge()
    await listener.client.send([1, make_proof(b"wrong", "listening", theirs, ours)])
    with pytest.raises(AuthenticationError, match="does not know the token"):
        await listener.connecting


async def test_a_listener_that_lets_everybody_in(listener: Listener) -> None:
    """It would get to know nothing from us, and we would believe it."""
    await listener.client.receive()
    await listener.client.send(hello(instance=bytes(16)))
    with pytest.raises(AuthenticationError, match="asks for none"):
        await listener.connecting


async def test_a_listener_with_schemes_of_its_own(listener: Listener) -> None:
    await listener.client.receive()
    await listener.client.send(hello(instance=bytes(16), auth=["plain"]))
    with pytest.raises(AuthenticationError, match="plain"):
        await listener.connecting


async def test_a_listener_that_talks_before_its_proof(listener: Listener) -> None:
    await listener.challenge()
    await listener.client.send([2, 2, "echo", ["let me in"]])
    with pytest.raises(Exception, match=r"before the session stood|sent kind 2"):
        await listener.connecting


async def test_a_proof_is_good_for_one_session(path: Path) -> None:
    """One that was overheard opens no other: each listener's hello has a new instance."""
    peer = echoing()
    async with peer.serve(f"unix:{path}", token=TOKEN):
        ours = hello()
        async with await RawClient.connect(str(path)) as client:
            await client.send(ours)
            theirs, _ = await client.receive_frame()
            proof = make_proof(TOKEN.encode(), "connecting", pack(ours), theirs)
            await client.send([1, proof])
            kind, _ = await client.receive()
            assert kind == 1
        async with await RawClient.connect(str(path)) as thief:
            await thief.send(ours)
            await thief.receive()
            await thief.send([1, proof])
            goodbye, *_ = await thief.receive_all()
            assert goodbye[0] == 12


async def test_a_request_before_the_proof(path: Path) -> None:
    served = []
    peer = Peer()
    peer.on_request("spy")(lambda: served.append(1))
    async with peer.serve(f"unix:{path}", token=TOKEN) as server:
        async with await RawClient.connect(str(path)) as client:
            await client.send(hello(), [2, 2, "spy", None])
            messages = await client.receive_all()
        assert [message[0] for message in messages] == [0, 12]
        assert not server.sessions
    assert not served


async def test_a_token_on_a_unix_socket(path: Path) -> None:
    peer = echoing()
    async with peer.serve(f"unix:{path}", token=TOKEN) as server:
        async with Peer().connect(server.address, token=TOKEN) as session:
            assert await session.request("echo", [1]) == 1
        for token in (None, "wrong"):
            with pytest.raises((AuthenticationError, SessionClosed), match="token"):
                await Peer().connect(server.address, token=token)
