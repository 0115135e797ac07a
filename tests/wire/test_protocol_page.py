"""docs/protocol.md says what the code does: its tables, its links, and its worked example."""

import asyncio
import contextlib
import os
import re
import struct
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgpack
import pytest

from asyncipc import NETWORK_LIMITS, Call, FaultCode, Limits, MessagePack, Peer
from asyncipc.errors import RemoteError, RequestTimeout
from asyncipc.wire.handshake import HANDSHAKE_MAX_FRAME, SMALLEST_LIMITS, VERSIONS, RemoteLimits
from asyncipc.wire.messages import _FIELDS, FIRST_IGNORABLE, GoodbyeCode
from asyncipc.wire.transfers import MAX_SEGMENTS, MAX_TRANSFERS
from asyncipc.wire.values import BY_CODE, MAX_DIGITS, MAX_EXTENSION_DEPTH
from tests.raw_client import RawClient, hello

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def table(first_heading: str, *, behind: str = "# ") -> Iterator[list[str]]:
    """The rows of the table whose first column has this heading, without that of the headings."""
    _, _, rest = PAGE.partition(behind)
    _, heading, rest = rest.partition(f"\n| {first_heading} |")
    assert heading, f"no table begins with {first_heading}"
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


# Tables


def test_the_kinds() -> None:
    known = {}
    for number, name, described, kind_class in table("kind"):
        assert kind_class == ("critical" if int(number) < FIRST_IGNORABLE else "ignorable")
        if not name.startswith("reserved"):
            known[int(number)] = (name, described)
    for kind, (name, rows) in _FIELDS.items():
        marked = ", ".join(row[0] + "?" * row[3] for row in rows)
        assert known.pop(kind) == (name, marked)
    assert not known


def test_every_field_has_a_type() -> None:
    described = {name.strip() for names, _ in table("field") for name in names.split(",")}
    assert described == {row[0] for _, rows in _FIELDS.values() for row in rows}


@pytest.mark.parametrize(
    ("codes", "behind"), [(FaultCode, "## 15. Faults"), (GoodbyeCode, "## 13. The end")]
)
def test_the_codes(codes: Any, behind: str) -> None:
    described = {int(code): name for code, name, _ in table("code", behind=behind)}
    assert described == {code.value: code.name.lower().replace("_", " ") for code in codes}


def test_the_extension_codes() -> None:
    described = {int(code): name for code, name, _ in table("code", behind="## 16. Values")}
    assert described == {code: row.name for code, row in BY_CODE.items()}


def test_the_limits() -> None:
    described = {row[0].strip("`"): [in_bytes(cell) for cell in row[2:]] for row in table("limit")}
    assert described == {
        name: [getattr(limits, name) for limits in (SMALLEST_LIMITS, Limits(), NETWORK_LIMITS)]
        for name in RemoteLimits._fields
    }


def in_bytes(text: str) -> int:
    number, _, unit = text.partition(" ")
    return int(number) * {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]


@pytest.mark.parametrize(
    "text",
    [
        f"protocol, version {VERSIONS[1]}\n",
        f"E + A is at most {HANDSHAKE_MAX_FRAME} ",
        f"1 to {MAX_SEGMENTS} segments",
        f"At most {MAX_TRANSFERS} transfers",
        f"at most {MAX_DIGITS} characters",
        f"again, {MAX_EXTENSION_DEPTH} deep at most",
        f"the calls that it makes (the library: {Limits().max_depth})",
    ],
)
def test_the_numbers(text: str) -> None:
    assert text in PAGE


def test_every_link_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]*)\)", PAGE))
    assert links
    assert links <= anchors


# What the page allows and the library does not do itself


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_early_messages(tmp_path: Path, codec: str) -> None:
    path = f"{tmp_path}/socket"
    request = b'[2, 2, "add", {"a": 1, "b": 2}]'
    if codec == "msgpack":
        request = msgpack.packb([2, 2, "add", {"a": 1, "b": 2}])
    async with listening_peer().serve(f"unix:{path}"), await RawClient.connect(path) as client:
        await client.send(hello(codec=codec), request)
        assert (await client.receive())[0] == 0
        envelope, _ = await client.receive_frame()
        assert envelope == {"msgpack": b"\x93\x03\x03\x03", "json": b"[3,3,3]"}[codec]


async def test_early_messages_where_a_token_is_asked_for(tmp_path: Path) -> None:
    path = f"{tmp_path}/socket"
    peer = listening_peer()
    async with peer.serve(f"unix:{path}", token="x"), await RawClient.connect(path) as client:
        await client.send(hello(), [2, 2, "add", [1, 2]])
        assert [message[:3] for message in await client.receive_all()] == [
            [0, ANY],
            [12, 0, 1],
        ]


# The worked example


class Tap:
    """Stands between two peers and writes down the frames, in the order in which they pass."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, bytes, bytes, bytes]] = []
        self._news = asyncio.Event()

    async def join(self, front: Path, back: Path) -> asyncio.Server:
        """Take one connection at ``front`` and lead it to ``back``."""

        async def connected(reader: Any, writer: Any) -> None:
            other_reader, other_writer = await asyncio.open_unix_connection(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(">", reader, other_writer))
                group.create_task(self._pump("<", other_reader, writer))

        return await asyncio.start_unix_server(connected, front)

    async def until(self, envelope: bytes) -> None:
        """Wait for an envelope that begins so."""
        while not any(frame[2].startswith(envelope) for frame in self.frames):
            self._news.clear()
            await self._news.wait()

    async def _pump(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await reader.readexactly(12)
                _, size, attached = struct.unpack(">4sII", header)
                frame = header, await reader.readexactly(size), await reader.readexactly(attached)
                self.frames.append((direction, *frame))
                self._news.set()
                writer.write(b"".join(frame))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def render(frames: list[tuple[str, bytes, bytes, bytes]]) -> str:
    """Frames as they stand on the page."""
    lines = []
    for direction, header, envelope, attached in frames:
        message = msgpack.unpackb(envelope, strict_map_key=False, ext_hook=Shown)
        text = textwrap.wrap(repr(message), 98, break_long_words=False, break_on_hyphens=False)
        lines += [f"{direction} {text[0]}", *(f"  {line}" for line in text[1:])]
        lines.append(f"      {header.hex(' ', 4)}")
        lines += hexadecimal("      ", envelope)
        lines += hexadecimal("    + ", attached)
        lines.append("")
    return "\n".join(lines[:-1])


def hexadecimal(margin: str, data: bytes) -> Iterator[str]:
    for start in range(0, len(data), 30):
        yield margin + data[start : start + 30].hex(" ")


class Shown:
    def __init__(self, code: int, payload: bytes) -> None:
        self.text = f"ext({code}, {msgpack.unpackb(payload)!r})"

    def __repr__(self) -> str:
        return self.text


def listening_peer() -> Peer:
    peer = Peer(tracebacks=False, codec=MessagePack(attach_above=16))

    @peer.on_request
    def add(a: int, b: int) -> int:
        return a + b

    @peer.on_request
    def count(n: int, call: Call) -> int:
        for done in range(n):
            call.report(done + 1, n)
        return n

    @peer.on_request
    def fail(why: str) -> None:
        raise ValueError(why)

    @peer.on_request
    async def greet(call: Call) -> str:
        return f"hello, {await call.session.request('name', timeout=None)}"

    @peer.on_request
    async def wait() -> None:
        await asyncio.Event().wait()

    @peer.on_request
    def size(data: bytes) -> int:
        return len(data)

    @peer.on_notification
    async def log(text: str) -> None:
        pass

    listen_to_streams(peer)
    return peer


def listen_to_streams(peer: Peer) -> None:
    @peer.on_request
    async def squares(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number * number

    @peer.on_request
    async def total(numbers: Any) -> int:
        return sum([number async for number in numbers])


async def talk(address: str, tap: Tap) -> None:
    """The session of the example; each step is over before the next begins."""
    peer = Peer(timeout=None, codec=MessagePack(attach_above=16))
    peer.on_request("name")(lambda: "example")
    async with peer.connect(address) as session:
        assert await session.request("add", {"a": 1, "b": 2}, timeout=5) == 3
        with pytest.raises(RemoteError):
            await session.request("fail", ["no luck"])
        assert await session.request("count", [2], on_progress=lambda _: None) == 2
        assert await session.request("greet") == "hello, example"
        with pytest.raises(RequestTimeout):
            await session.request("wait", timeout=0)
        await tap.until(msgpack.packb([4, 11, 7, "cancelled by the caller", None]))
        assert await session.request("size", [b"sixteen bytes or"]) == 16
        assert [square async for square in session.stream("squares", [3])] == [0, 1, 4]
        assert await session.request("total", {"numbers": numbers()}) == 3
        await session.notify("log", {"text": "bye"})
        await session.ping()


async def numbers() -> AsyncIterator[int]:
    yield 1
    yield 2


@contextlib.asynccontextmanager
async def tapped(folder: Path) -> AsyncIterator[tuple[str, Tap]]:
    tap = Tap()
    async with listening_peer().serve(f"unix:{folder}/back"):
        server = await tap.join(folder / "front", folder / "back")
        try:
            yield f"unix:{folder}/front", tap
        finally:
            server.close()
            await server.wait_closed()


@pytest.fixture
def fixed_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = iter((bytes(range(16)), bytes(range(16, 32))))
    random: Callable[[int], bytes] = os.urandom
    monkeypatch.setattr(os, "urandom", lambda size: next(instances) if size == 16 else random(size))


async def test_the_example(tmp_path: Path, fixed_instances: None) -> None:
    async with tapped(tmp_path) as (address, tap):
        await talk(address, tap)
    _, _, rest = PAGE.partition("<!-- example: made by tests/wire/test_protocol_page.py -->\n```\n")
    shown, _, _ = rest.partition("```\n<!-- end of the example -->")
    made = render(tap.frames) + "\n"
    assert shown == made, f"the page should show:\n{made}"


def test_limits_of_the_hello_are_fields_of_limits() -> None:
    assert set(RemoteLimits._fields) <= {field.name for field in fields(Limits)}
