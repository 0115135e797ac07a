"""What one writes by hand: asyncio streams, a JSON object a line, ids, a dict of futures."""

import asyncio
import itertools
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.worker import MESSAGE, obey_async, run, session_commands

counted = 0


def echo(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "text": text}


def count(n: int, text: str) -> None:
    global counted
    counted += 1


def get_counted() -> int:
    return counted


HANDLERS: dict[str, Callable[..., Any]] = {
    "echo": echo,
    "count": count,
    "get_counted": get_counted,
}


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        message = json.loads(line)
        reply: dict[str, Any] = {"id": message.get("id")}
        try:
            reply["result"] = HANDLERS[message["method"]](**message["params"])
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its answer
            reply["error"] = str(error)
        if reply["id"] is not None:
            writer.write(json.dumps(reply).encode() + b"\n")


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._task = asyncio.create_task(self._read())

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        identifier = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._pending[identifier] = future
        message = {"id": identifier, "method": method, "params": params}
        self._writer.write(json.dumps(message).encode() + b"\n")
        return await future

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        self._writer.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
        await self._writer.drain()

    async def _read(self) -> None:
        while line := await self._reader.readline():
            message = json.loads(line)
            future = self._pending.pop(message["id"])
            if future.done():
                continue
            if "error" in message:
                future.set_exception(RuntimeError(message["error"]))
            else:
                future.set_result(message["result"])


def serve(path: str, ready: Callable[[], None]) -> None:
    async def main() -> None:
        server = await asyncio.start_unix_server(handle, path)
        ready()
        await server.serve_forever()

    run(main())


def client(path: str) -> None:
    async def main() -> None:
        connection = Connection(*await asyncio.open_unix_connection(path))

        async def notify(amount: int) -> float:
            before = await connection.request("get_counted", {})
            begin = perf_counter()
            for _ in range(amount):
                await connection.notify("count", MESSAGE)
            assert await connection.request("get_counted", {}) == before + amount
            return amount / (perf_counter() - begin)

        await obey_async({**session_commands(connection.request), "notify": notify})

    run(main())
