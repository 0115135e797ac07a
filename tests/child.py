"""A program for tests to start: serves whatever they ask of a child process."""

import asyncio
import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncipc

__all__ = ["CHILD", "main", "peer", "python"]

ROOT = Path(__file__).parents[1]


def python(code: str, *arguments: str) -> list[str]:
    """The command that runs some Python which can import the library and the tests."""
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}",
        *arguments,
    ]


CHILD = python("from tests.child import main; main()")

peer = asyncipc.Peer()


@peer.on_request
def echo(value: Any) -> Any:
    return value


@peer.on_request
async def count(start: int) -> AsyncIterator[int]:
    while True:
        yield start
        start += 1


@peer.on_request
async def deaf(call: asyncipc.Call) -> None:
    call.channel()
    await asyncio.Event().wait()


@peer.on_request
def environment(name: str) -> str | None:
    return os.environ.get(name)


@peer.on_request
def folder() -> str:
    return os.getcwd()


@peer.on_request
def pid() -> int:
    return os.getpid()


@peer.on_request
def descriptors() -> list[str]:
    """What is open here, besides what listing it opens."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue
    return found


@peer.on_request
def print_everywhere() -> str:
    """Write to the standard output in every way there is; return what the standard input has."""
    print("by print")
    os.write(1, b"by os.write\n")
    libc = ctypes.CDLL(None)
    libc.printf(b"by printf\n")
    libc.fflush(None)
    subprocess.run(["sh", "-c", "echo by a subprocess; cat"], check=True)
    return sys.stdin.read()


@peer.on_request
def write_stderr(text: str) -> None:
    os.write(2, text.encode())


@peer.on_request
def leave(code: int) -> None:
    os._exit(code)


@peer.on_request
def kill(number: int) -> None:
    os.kill(os.getpid(), number)


@peer.on_request
async def never() -> None:
    await asyncio.Event().wait()


@peer.on_request
def spin() -> None:
    os.write(2, b"spinning\n")
    while True:
        pass


@peer.on_request
def block() -> None:
    """Wait in the kernel until there is room in a pipe that nobody reads."""
    _, full = os.pipe()
    os.write(2, b"blocking\n")
    while True:
        os.write(full, bytes(65536))


@peer.on_request
def start(argv: list[str]) -> int:
    """Start a program in this process's group, with its stderr; return its process id."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=2).pid


@peer.on_request
async def spawn() -> int:
    """Start a child of one's own; return its process id."""
    session = await asyncipc.Peer().spawn(CHILD)
    session.on_close(lambda _: session)  # it is held by that
    assert session.process is not None
    return session.process.pid


async def serve() -> None:
    async with peer.stdio() as session:
        await session.wait_closed()


def main() -> None:
    asyncipc.run(serve())
