"""grpc.aio over a unix socket, a generic handler, MessagePack in place of protobuf."""

from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
import msgpack

from benchmarks.worker import obey_async, run, session_commands


async def echo(params: dict[str, Any], context: Any) -> dict[str, Any]:
    return {"n": params["n"], "text": params["text"]}


async def count_up(params: list[int], context: Any) -> AsyncIterator[dict[str, Any]]:
    for n in range(params[0]):
        yield {"n": n, "text": "hello"}


def serve(path: str, ready: Callable[[], None]) -> None:
    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            echo, request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb
        )
        streaming = grpc.unary_stream_rpc_method_handler(
            count_up, request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb
        )
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "Benchmark", {"echo": handler, "count_up": streaming}
                )
            ]
        )
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        ready()
        await server.wait_for_termination()

    run(main())


def client(path: str) -> None:
    async def main() -> None:
        channel = grpc.aio.insecure_channel(f"unix:{path}")
        call = channel.unary_unary(
            "/Benchmark/echo",
            request_serializer=msgpack.packb,
            response_deserializer=msgpack.unpackb,
        )
        items = channel.unary_stream(
            "/Benchmark/count_up",
            request_serializer=msgpack.packb,
            response_deserializer=msgpack.unpackb,
        )

        async def stream(count: int) -> float:
            begin = perf_counter()
            came = 0
            async for _ in items([count]):
                came += 1
            assert came == count
            return count / (perf_counter() - begin)

        commands = session_commands(lambda _method, params: call(params))
        await obey_async({**commands, "stream": stream})

    run(main())
