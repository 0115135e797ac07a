"""The client that was written from docs/protocol.md alone talks to the library."""

import ast
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest

from asyncipc import Call, Fd, Limits, Peer, Session, shared_buffer
from tests import independent_carrier, independent_client, independent_values
from tests.independent_carrier import Carrier
from tests.independent_client import Client, Fault, Gone, Refused
from tests.independent_values import Descriptor

T = TypeVar("T")

BULK = bytes(range(256)) * 800  # 200 KiB: several parts in each direction


class Other:
    """The library's side: a served peer, and the session with the client."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.peer = Peer(limits=Limits(max_requests=4, notification_credit=16384), timeout=10)
        self.heard: list[Any] = []
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._register(self.peer)
        self._register_streams(self.peer)

    def _register(self, peer: Peer) -> None:
        @peer.on_request
        def add(a: int, b: int) -> int:
            return a + b

        @peer.on_request
        def echo(value: Any) -> Any:
            return value

        @peer.on_request
        def fail(text: str) -> None:
            error = ValueError(text)
            error.add_note("a note")
            raise error

        @peer.on_request
        async def count(n: int, call: Call) -> str:
            for done in range(n):
                await call.progress(done + 1, n, f"step {done + 1}")
            return "counted"

        @peer.on_request
        async def wait() -> None:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        @peer.on_request
        async def ask_back(method: str, params: Any, call: Call) -> Any:
            return await call.session.request(method, params)

        @peer.on_request
        async def say(text: str, call: Call) -> None:
            await call.session.notify("said", [text])

        @peer.on_notification
        async def note(text: Any) -> None:
            self.heard.append(text)

    def _register_streams(self, peer: Peer) -> None:
        @peer.on_request
        async def produce(count: int, size: int) -> AsyncIterator[str]:
            try:
                for number in range(count):
                    yield f"{number} ".ljust(size, "x")
                if not size:
                    raise ValueError("nothing to give")
            finally:
                self.cancelled.set()

        @peer.on_request
        async def store(name: str, content: Any) -> list[Any]:
            sizes = [len(item) async for item in content]
            return [name, len(sizes), sum(sizes)]

        @peer.on_request
        async def chat(call: Call) -> str:
            async with call.channel() as channel:
                async for item in channel:
                    await channel.send([item, item])
                await channel.send("over")
            return "and out"

    @contextlib.asynccontextmanager
    async def served(self, token: str | None) -> AsyncIterator["Other"]:
        async with self.peer.serve(
            f"unix:{self.path}", token=token, on_session=self.sessions.put_nowait
        ):
            yield self

    async def run(self, talk: Callable[[Client], T], **options: Any) -> T:
        """Let a client talk, in a thread of its own."""

        def session() -> T:
            with Client(self.path, **options) as client:
                return talk(client)

        return await asyncio.to_thread(session)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Other]:
    async with Other(f"{tmp_path}/socket").served(None) as other:
        yield other


@pytest.fixture(params=["msgpack", "json"])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("module", [independent_client, independent_values, independent_carrier])
def test_it_imports_nothing_of_the_library(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    others = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert others <= {"msgpack", "tests"}


async def test_requests(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        assert client.request("add", {"a": 1, "b": 2}, timeout=5) == 3
        assert client.request("add", [3, 4]) == 7
        with pytest.raises(Fault, match="no handler takes the method 'nothing'") as caught:
            client.request("nothing")
        assert caught.value.code == 2
        with pytest.raises(Fault, match="missing parameter 'b'") as caught:
            client.request("add", [1])
        assert caught.value.code == 3
        with pytest.raises(Fault, match="no luck") as caught:
            client.request("fail", ["no luck"])
        assert caught.value.code == 1
        assert caught.value.details["type"] == "ValueError"
        assert caught.value.details["notes"] == ["a note"]
        assert "in fail" in caught.value.details["traceback"]

    await other.run(talk, codec=codec)


async def test_values(other: Other, codec: str) -> None:
    values = [
        None,
        True,
        -1,
        2**53,
        2**63,
        0.5,
        "text \u2603",
        b"\x00\xff",
        [],
        {},
        [1, [2, {"a": {"b": []}}]],
        {"$key": 1, "": 2},
        {1: "one"},
    ]

    def talk(client: Client) -> None:
        for value in values:
            assert client.request("echo", [value]) == value

    await other.run(talk, codec=codec)


async def test_what_python_sends_on_purpose(other: Other, codec: str) -> None:
    other.peer.on_request("pair")(lambda: (1, {2}, 2**100, float("inf")))
    result = await other.run(lambda client: client.request("pair"), codec=codec)
    assert result == [1, [2], 2**100, float("inf")]


async def test_progress(other: Other, codec: str) -> None:
    came: list[Any] = []

    def talk(client: Client) -> None:
        def report(*progress: Any) -> None:
            came.append(progress)

        assert client.request("count", [3], on_progress=report) == "counted"
        assert client.request("count", [2]) == "counted"  # nobody cares for it

    await other.run(talk, codec=codec)
    assert came == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


@pytest.mark.parametrize(("count", "size"), [(3, 10), (5000, 100), (20, 50_000), (5, 100_000)])
async def test_a_stream(other: Other, codec: str, count: int, size: int) -> None:
    def talk(client: Client) -> None:
        call = client.open("produce", [count, size], takes=True)
        items = list(client.items(call))
        assert items == [f"{number} ".ljust(size, "x") for number in range(count)]

    await other.run(talk, codec=codec)


async def test_a_stream_that_fails_and_one_that_is_given_up(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        came = client.items(client.open("produce", [2, 0], takes=True))
        assert [next(came), next(came)] == ["0 ", "1 "]
        with pytest.raises(Fault, match="nothing to give"):
            next(came)
        call = client.open("produce", [10**9, 100], takes=True)
        next(client.items(call))
        client.cancel(call)
        with pytest.raises(Fault) as caught:
            client.wait(call)
        assert caught.value.code == 7
        with pytest.raises(Fault) as caught:
            client.request("produce", [1, 1])
        assert caught.value.code == 3

    await other.run(talk, codec=codec)


async def test_an_upload(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        params = {"name": "it", "content": None}
        call = client.open("store", params, sends="content")
        for _ in range(200):
            client.send_items(call, ["x" * 1000] * 3)
        client.send_items(call, ["x" * 300_000])
        client.end_items(call)
        assert client.wait(call) == ["it", 601, 900_000]

    await other.run(talk, codec=codec)


async def test_a_channel(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        call = client.open("chat", None, takes=True, sends=True)
        came = client.items(call)
        for number in range(3):
            client.send_items(call, [number])
            assert next(came) == [number, number]
        client.end_items(call)
        assert list(came) == ["over"]

    await other.run(talk, codec=codec)


async def test_large_messages_both_ways(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        assert client.request("echo", [BULK]) == BULK
        assert client.request("echo", {"value": {"a": BULK, "b": [BULK[:5000], b"x"]}}) == {
            "a": BULK,
            "b": [BULK[:5000], b"x"],
        }
        text = "x" * (2 * 2**20)  # nothing to attach: the envelope itself is in parts
        assert client.request("echo", [text]) == text
        assert client.transfers_seen == 3

    await other.run(talk, codec=codec)


async def test_a_batch(other: Other, codec: str) -> None:
    def talk(client: Client) -> None:
        calls = client.start_batch(("add", [1, 2]), ("nothing", None), ("echo", ["x"]))
        assert client.wait(calls[2]) == "x"
        assert client.wait(calls[0]) == 3
        with pytest.raises(Fault):
            client.wait(calls[1])
        assert client.batches_seen == 1, "the answers come in one, too"

    await other.run(talk, codec=codec)


async def test_cancel(other: Other, codec: str) -> None:
    loop = asyncio.get_running_loop()

    def talk(client: Client) -> None:
        call = client.start("wait")
        asyncio.run_coroutine_threadsafe(other.waiting.wait(), loop).result(10)
        client.cancel(call)
        with pytest.raises(Fault, match="cancelled by the caller") as caught:
            client.wait(call)
        assert caught.value.code == 7
        client.cancel(call)  # too late, and harmless
        assert client.request("add", [1, 2]) == 3

    await other.run(talk, codec=codec)
    assert other.cancelled.is_set()


async def test_notifications_and_their_credit(other: Other, codec: str) -> None:
    texts = [f"{number} " + "x" * (number % 3 * 1000) for number in range(300)]

    def talk(client: Client) -> None:
        for text in texts:
            client.notify("note", [text])
        client.notify("note", [BULK])
        client.notify("unknown", {"a": 1})
        client.notify("note", ["last"])
        assert client.request("add", [1, 2]) == 3

    await other.run(talk, codec=codec)
    assert other.heard == [*texts, BULK, "last"]


async def test_ping_both_ways(other: Other, codec: str) -> None:
    loop = asyncio.get_running_loop()

    async def ping() -> float:
        session = await other.sessions.get()
        return await session.ping()

    def talk(client: Client) -> None:
        client.ping(7)
        pinged = asyncio.run_coroutine_threadsafe(ping(), loop)
        client.request("count", [1])
        while not pinged.done():
            client.ping(8)
        assert pinged.result() > 0

    await other.run(talk, codec=codec)


async def test_it_serves_the_other_side(other: Other, codec: str) -> None:
    heard: list[Any] = []

    def talk(client: Client) -> None:
        handlers["deeper"] = lambda params: client.request("add", [params[0], 1]) + 1
        handlers["deepest"] = lambda params: (
            client.request("ask_back", ["deepest", [params[0] - 1]]) if params[0] else "deep"
        )
        assert client.request("ask_back", ["double", {"n": 21}]) == 42
        assert client.request("ask_back", ["deeper", [1]]) == 3
        assert client.request("ask_back", ["deepest", [10]]) == "deep"
        assert client.request("ask_back", ["bulk", None]) == BULK
        with pytest.raises(Fault, match="unknown here") as caught:
            client.request("ask_back", ["nothing", None])
        assert caught.value.code == 2
        with pytest.raises(Fault, match="division by zero") as caught:
            client.request("ask_back", ["broken", None])
        assert caught.value.details["type"] == "ZeroDivisionError"
        client.request("say", ["hi"])
        client.ping(1)
        assert client.sent_credit == 1

    handlers: dict[str, Callable[[Any], Any]] = {
        "double": lambda params: 2 * params["n"],
        "bulk": lambda params: BULK,
        "broken": lambda params: 1 / 0,
    }
    await other.run(talk, codec=codec, handlers=handlers, hear=lambda *said: heard.append(said))
    assert heard == [("said", ["hi"])]


async def test_its_goodbye_is_an_end_in_good_order(other: Other, codec: str) -> None:
    await other.run(lambda client: client.request("add", [1, 2]), codec=codec)
    session = await other.sessions.get()
    await session.wait_closed()
    assert session.close_reason is None
    assert session.statistics().requests_served == 1


async def test_the_other_sides_goodbye(other: Other, codec: str) -> None:
    loop = asyncio.get_running_loop()
    leaving = asyncio.Event()

    @other.peer.on_request
    async def linger() -> str:
        other.waiting.set()
        await leaving.wait()
        return "done"

    async def begin_to_leave() -> asyncio.Task[None]:
        await other.waiting.wait()
        session = await other.sessions.get()
        closing = asyncio.create_task(session.aclose())
        await asyncio.sleep(0)
        return closing

    def talk(client: Client) -> None:
        running = client.start("linger")
        closing = asyncio.run_coroutine_threadsafe(begin_to_leave(), loop).result(10)
        late = client.start("add", [1, 2])
        with pytest.raises(Fault) as caught:
            client.wait(late)
        assert caught.value.code == 6
        with pytest.raises(Gone):
            client.start("add", [1, 2])
        loop.call_soon_threadsafe(leaving.set)
        assert client.wait(running) == "done"
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(closing, 10), loop).result(10)
        with pytest.raises(Gone):
            client.ping(1)

    await other.run(talk, codec=codec)


async def test_a_token(tmp_path: Path, codec: str) -> None:
    async with Other(f"{tmp_path}/socket").served("secret") as other:
        for wrong in ("wrong", None):
            with pytest.raises(Refused, match="token"):
                await other.run(lambda client: None, token=wrong)
        result = await other.run(
            lambda client: client.request("add", [1, 2]), token="secret", codec=codec
        )
        assert result == 3


async def test_a_token_nobody_asks_for(other: Other) -> None:
    with pytest.raises(Refused, match="nobody asks"):
        await other.run(lambda client: None, token="secret")
    with pytest.raises(Refused, match="codec 'morse'"):
        await other.run(lambda client: None, codec="morse")


# -- file descriptors and shared memory ----------------------------------------------------------


async def carried(other: Other, talk: Callable[[Carrier], T], codec: str) -> T:
    def session() -> T:
        with Carrier(other.path, codec=codec) as client:
            assert client.agreed == Carrier.features
            return talk(client)

    return await asyncio.to_thread(session)


async def test_descriptors_both_ways(other: Other, codec: str) -> None:
    @other.peer.on_request
    async def swap(fd: Fd, text: bytes) -> Fd:
        with fd.as_file("wb") as file:
            file.write(text)
        reader, writer = os.pipe()
        os.write(writer, b"back")
        os.close(writer)
        return Fd(reader)

    def talk(client: Carrier) -> None:
        for _ in range(20):  # more than there is credit for at first, in both directions
            reader, writer = os.pipe()
            back = client.request("swap", [Descriptor(writer), b"there" * 1000])
            os.close(writer)
            with os.fdopen(reader, "rb") as file:
                assert file.read() == b"there" * 1000
            with os.fdopen(back, "rb") as file:
                assert file.read() == b"back"

    await carried(other, talk, codec)


async def test_shared_memory_from_the_library(other: Other, codec: str) -> None:
    kept = [shared_buffer(300_000)]
    kept[0][:] = BULK[:100] * 3000

    @other.peer.on_request
    def give(kind: str, size: int) -> Any:
        if kind == "shared":
            return kept[0]
        data = (BULK * (size // len(BULK) + 1))[:size]
        return memoryview(data) if kind == "memoryview" else data

    def talk(client: Carrier) -> None:
        for kind in ("memoryview", "bytes"):
            for size in (300_000, 3_000_000):
                data = client.request("give", [kind, size])
                assert data == (BULK * (size // len(BULK) + 1))[:size]
        assert client.request("give", ["shared", 0]) == bytes(kept[0])
        assert client.regions_seen >= 3
        client.ping(1)

    await carried(other, talk, codec)
    session = await other.sessions.get()
    await session.wait_closed()
    assert session.statistics().shared_bytes_sent > 600_000
    kept.clear()


async def test_shared_memory_to_the_library(other: Other, codec: str) -> None:
    def talk(client: Carrier) -> None:
        arena = client.make_arena()
        for number in (1, 2, 3):
            arena[8192 : 8192 + 5000] = bytes([number]) * 5000
            call = client.request_region("echo", [number, 8192, 5000])
            assert client.wait(call) == bytes([number]) * 5000
            while client.released != list(range(1, number + 1)):
                client.ping(number)
        arena.close()

    await carried(other, talk, codec)
