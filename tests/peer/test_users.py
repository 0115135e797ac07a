"""Whose listener it may be that one connects to."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncipc import AddressError, AuthenticationError, HandshakeTimeout, Peer, Timeouts
from asyncipc.peer.options import Users

ME = os.geteuid()
NAME = "asyncipc-test-users"


@pytest.mark.parametrize("users", ["any", "same", [ME], {ME, ME + 1}])
async def test_those_who_are_admitted(users: Users, path: Path, peer: Peer) -> None:
    for address in (f"unix:{path}", f"unix:@{NAME}"):
        async with peer.serve(address), Peer().connect(address, users=users) as session:
            assert await session.request("echo", [1]) == 1


async def test_a_listener_of_somebody_else_is_sent_nothing(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        expected = f"user {ME} listens on unix:{path}; users= admits others"
        with pytest.raises(AuthenticationError, match=expected):
            await Peer().connect(f"unix:{path}", users=[ME + 1], retry_for=60)
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""


@pytest.mark.skipif(ME != 0, reason="only root can listen as another user")
async def test_a_name_that_another_user_took_first() -> None:
    other = 65534
    peer = Peer(timeouts=Timeouts(handshake=0.1))
    with socket.socket(socket.AF_UNIX) as listener:
        os.seteuid(other)
        try:
            listener.bind(f"\0{NAME}")
            listener.listen()
        finally:
            os.seteuid(ME)
        with pytest.raises(AuthenticationError, match=f"user {other} listens on unix:@{NAME}"):
            await peer.connect(f"unix:@{NAME}", users="same")
        with pytest.raises(HandshakeTimeout):  # it was let in, and says nothing
            await peer.connect(f"unix:@{NAME}", users=[other])


@pytest.mark.parametrize("address", ["tcp:localhost:1", "fd:3", "exec:true"])
def test_only_unix_sockets_tell_the_user(address: str) -> None:
    with pytest.raises(AddressError, match="users= is for unix: addresses, not for"):
        Peer().connect(address, users="same")


@pytest.mark.parametrize("users", ["me", 0, ["root"], []])
@pytest.mark.parametrize("open_", [Peer.connect, Peer.serve], ids=["connect", "serve"])
def test_what_are_no_users(users: Users, open_: Callable[..., object]) -> None:
    with pytest.raises((TypeError, ValueError), match="users must"):
        open_(Peer(), "unix:/x", users=users)
