"""The path of a unix socket, as its server was told it, and where it cannot be made."""

import os
import socket
from pathlib import Path

import pytest

from asyncipc import AddressInUse, Peer


async def test_a_relative_path_is_given_back_from_anywhere(
    path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    async with peer.serve("unix:app.sock") as server:
        assert server.address == "unix:app.sock"
        with pytest.raises(AddressInUse, match=r"a live server owns unix:app\.sock"):
            await peer.serve("unix:app.sock")
        monkeypatch.chdir("/")
        async with Peer().connect(f"unix:{path}") as session:
            assert await session.request("echo", [1]) == 1
    assert os.listdir(path.parent) == []


async def test_a_short_way_to_a_long_path(
    path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = path.parent / ("long" * 40)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("app.sock")
    async with peer.serve("unix:app.sock") as server, Peer().connect(server.address) as session:
        assert await session.request("echo", [1]) == 1
    assert os.listdir(folder) == []


async def test_a_directory_that_is_not_there(path: Path, peer: Peer) -> None:
    missing = path.parent / "missing"
    with pytest.raises(FileNotFoundError) as caught:
        await peer.serve(f"unix:{missing}/app.sock")
    assert caught.value.strerror == (
        f"cannot listen on unix:{missing}/app.sock: there is no directory {missing}"
    )


async def test_a_lock_that_cannot_be_made(path: Path, peer: Peer) -> None:
    path.with_name("app.sock.lock").mkdir()
    with pytest.raises(IsADirectoryError, match=f"cannot listen on unix:{path}: ") as caught:
        await peer.serve(f"unix:{path}")
    assert caught.value.filename == f"{path}.lock"
