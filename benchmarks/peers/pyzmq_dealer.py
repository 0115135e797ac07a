"""pyzmq on asyncio: DEALER to ROUTER over ipc://, MessagePack, ids, a dict of futures."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from benchmarks.worker import obey_async, run, session_commands


def echo(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "text": text}


HANDLERS: dict[str, Callable[..., Any]] = {"echo": echo}


def serve(path: str, ready: Callable[[], None]) -> None:
    async def main() -> None:
        router = zmq.asyncio.Context().socket(zmq.ROUTER)
        router.bind(f"ipc://{path}")
        ready()
        while True:
            sender, body = await router.recv_multipart()
            identifier, method, params = msgpack.unpackb(body)
            result = HANDLERS[method](**params)
            await router.send_multipart([sender, msgpack.packb([identifier, result])])

    run(main())


class Connection:
    def __init__(self, path: str) -> None:
        self._dealer = zmq.asyncio.Context().socket(zmq.DEALER)
        self._dealer.connect(f"ipc://{path}")
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._task = asyncio.create_task(self._read())

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        identifier = next(self._ids)
        future = asyncio.get_running_loop().create_future()
        self._pending[identifier] = future
        await self._dealer.send(msgpack.packb([identifier, method, params]))
        return await future

    async def _read(self) -> None:
        while True:
            identifier, result = msgpack.unpackb(await self._dealer.recv())
            future = self._pending.pop(identifier)
            if not future.done():
                future.set_result(result)


def client(path: str) -> None:
    async def main() -> None:
        await obey_async(session_commands(Connection(path).request))

    run(main())
