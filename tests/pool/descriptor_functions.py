"""Functions for workers to run that take file descriptors, or give them."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asyncipc import Fd
from tests.pool.support import ask


class Unloadable:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return unload, ()


def unload() -> None:
    raise LookupError("not to be loaded")


def pipe_with(data: bytes) -> Fd:
    """The reading end of a pipe that holds the data and has no writer."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return Fd(reader)


def read(fd: Fd) -> bytes:
    with fd, fd.as_file() as file:
        data = file.read()
        assert isinstance(data, bytes)
        return data


def read_many(fds: list[Fd]) -> list[bytes]:
    return [read(fd) for fd in fds]


def answer(sock: socket.socket) -> tuple[str, float | None]:
    """Answer in capitals; tell what came."""
    with sock:
        sock.sendall(sock.recv(100).upper())
        return type(sock).__name__, sock.gettimeout()


def same(values: dict[str, Any]) -> bool:
    """Whether it is the same socket in two places."""
    with values["a"] as sock:
        return sock is values["b"]


def write_behind(file: Any, text: Any) -> tuple[str, str]:
    """Write to what is open already; tell what came."""
    with file:
        file.write(text)
        return type(file).__name__, getattr(file, "encoding", "")


def read_file(file: Any) -> Any:
    with file:
        return file.read()


def give(count: int) -> list[Fd]:
    return [pipe_with(b"%d" % number) for number in range(count)]


def give_one(number: int) -> Fd:
    return pipe_with(b"%d" % number)


def give_socket() -> dict[str, socket.socket]:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"from the worker")
    return {"sock": theirs}


def give_items(count: int) -> Iterator[Any]:
    for number in range(count):
        yield {"fd": pipe_with(b"%d" % number)}


async def give_items_async(count: int) -> AsyncIterator[Any]:
    for number in range(count):
        yield {"fd": pipe_with(b"%d" % number)}


def read_unless_first(fd: Fd, address: bytes) -> bytes:
    """Die if told to, else read."""
    if ask(address) == "die":
        os._exit(1)
    return read(fd)


def count_open() -> int:
    return len(os.listdir("/proc/self/fd"))
