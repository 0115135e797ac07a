"""What is special about other libraries' streams: subprocesses, TLS, and streams that fail."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.streams.tls
import pytest

from asyncipc.transport.streams import StreamTransport
from tests.contract.transports import contexts, tcp_sockets
from tests.transport.recorder import MIB, End, pattern, turns

ECHO = """
import os
while data := os.read(0, 99999):
    while data:
        data = data[os.write(1, data):]
"""


class Faulty(anyio.abc.ByteStream):
    """A stream that does what its test says."""

    def __init__(self, **behaviour: Any) -> None:
        self.behaviour = behaviour
        self.closed = 0

    async def _do(self, what: str) -> Any:
        outcome = self.behaviour.get(what)
        if isinstance(outcome, list):
            outcome = outcome.pop(0) if outcome else None
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is None:
            await anyio.sleep_forever()
        return outcome

    async def receive(self, max_bytes: int = 65536) -> bytes:
        result = await self._do("receive")
        assert isinstance(result, bytes)
        return result

    async def send(self, item: bytes) -> None:
        await self._do("send")

    async def send_eof(self) -> None:
        await self._do("send_eof")

    async def aclose(self) -> None:
        self.closed += 1
        await self._do("aclose")


@asynccontextmanager
async def wrapped(**behaviour: Any) -> AsyncIterator[tuple[End, Faulty]]:
    stream = Faulty(**{"aclose": "at once"} | behaviour)
    end = End(StreamTransport.from_anyio(stream, stream))
    end.start()
    yield end, stream
    end.call("close")
    await end.lost()
    assert end.heard.violations == []
    assert stream.closed


# Subprocesses


async def test_the_pipes_of_asyncios_subprocess() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ECHO, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    end = End(StreamTransport.from_asyncio(process.stdout, process.stdin))
    assert end.transport.tolerates_noise
    end.start()
    data = pattern(MIB)
    await end.send(data)
    await end.heard.received(len(data))
    assert end.heard.data == data
    end.call("write_eof")
    assert await end.lost() is None
    assert await process.wait() == 0


async def test_the_pipes_of_anyios_subprocess() -> None:
    async with await anyio.open_process([sys.executable, "-c", ECHO], stderr=None) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        end = End(StreamTransport.from_anyio(process.stdout, process.stdin))
        end.start()
        await end.send(b"through anyio")
        await end.heard.received(13)
        end.call("write_eof")
        assert await end.lost() is None
        assert await process.wait() == 0


async def test_a_subprocess_that_dies() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "input(); print('bye', end='')"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    end = End(StreamTransport.from_asyncio(process.stdout, process.stdin))
    end.start()
    await end.send(b"\n")
    await end.heard.until(lambda: {"end_of_input", "lost"} & set(end.heard.events))
    assert end.heard.data == b"bye"
    if "lost" not in end.heard.events:
        end.call("close")
    await end.lost()
    await process.wait()


# TLS of anyio


@pytest.mark.parametrize("standard", [True, False])
async def test_tls_of_anyio(standard: bool) -> None:
    client, server = contexts()
    left, right = [await anyio.abc.SocketStream.from_socket(s) for s in await tcp_sockets()]
    wrap = anyio.streams.tls.TLSStream.wrap
    secured: list[anyio.streams.tls.TLSStream | None] = [None, None]

    async def secure(number: int, *arguments: Any, **options: Any) -> None:
        secured[number] = await wrap(*arguments, standard_compatible=standard, **options)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(secure(0, left, ssl_context=client, hostname="server.example"))
        group.create_task(secure(1, right, ssl_context=server, server_side=True))
    ends = [End(StreamTransport.from_anyio(s, s)) for s in secured if s is not None]
    for end in ends:
        assert not end.transport.tolerates_noise
        end.start()
    await ends[0].send(b"private")
    await ends[1].heard.received(7)
    ends[0].call("write_eof")  # cannot be told, so both directions end
    assert await ends[0].lost() is None
    await ends[1].heard.until(lambda: {"end_of_input", "lost"} & set(ends[1].heard.events))
    ends[1].call("close")
    await ends[1].lost()


# Streams that fail


async def test_an_error_while_reading() -> None:
    async with wrapped(receive=[b"x", ZeroDivisionError("the library's fault")]) as (end, _):
        assert isinstance(await end.lost(), ZeroDivisionError)
        assert end.heard.data == b"x"


async def test_the_systems_error_is_shown() -> None:
    broken = anyio.BrokenResourceError()
    broken.__cause__ = ConnectionResetError("by peer")
    async with wrapped(receive=broken) as (end, _):
        assert await end.lost() is broken.__cause__


async def test_an_error_while_writing() -> None:
    async with wrapped(send=anyio.BrokenResourceError(), receive=anyio.EndOfStream()) as (end, _):
        await end.heard.heard("end_of_input")
        assert end.write(b"x") is False
        assert isinstance(await end.lost(), anyio.BrokenResourceError)


async def test_the_reply_behind_a_failed_write() -> None:
    broken = anyio.BrokenResourceError()
    async with wrapped(send=broken, receive=[b"reply", anyio.EndOfStream()]) as (end, _):
        end.call("pause_reading")
        assert end.write(b"x") is False
        assert await end.lost() is broken
        assert end.heard.data == b"reply"


async def test_a_failed_write_and_nothing_more_to_read() -> None:
    """The stream could still bring a reply: it gets a moment, and no more than that."""
    async with wrapped(send=anyio.BrokenResourceError()) as (end, _):
        assert end.write(b"x") is False
        assert isinstance(await end.lost(), anyio.BrokenResourceError)


async def test_empty_reads_are_not_the_end() -> None:
    async with wrapped(receive=[b"", b"x", b"", anyio.EndOfStream()]) as (end, _):
        await end.heard.heard("end_of_input")
        assert end.heard.data == b"x"


async def test_an_error_while_closing() -> None:
    async with wrapped(aclose=OSError("cannot close")) as (end, _):
        end.call("close")
        assert await end.lost() is None


async def test_a_stream_that_does_not_close() -> None:
    async with wrapped(aclose=None) as (end, _):
        end.call("close")
        assert await end.lost() is None


async def test_closing_while_a_write_is_under_way() -> None:
    async with wrapped() as (end, _):
        assert end.write(b"x") is False
        await turns()
        end.call("close")
        assert await end.lost() is None
        assert "writable" not in end.heard.events


async def test_closed_before_it_was_started() -> None:
    stream = Faulty(aclose="at once")
    transport = StreamTransport.from_anyio(stream, stream)
    transport.close()
    await turns()
    assert stream.closed
