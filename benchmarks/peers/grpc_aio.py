"""grpc.aio over a unix socket, a generic handler, MessagePack in place of protobuf."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import msgpack

from benchmarks.worker import obey_async, run, session_commands


async def echo(params: dict[str, Any], context: Any) -> dict[str, Any]:
    return {"n": params["n"], "text": params["text"]}


def serve(path: str, ready: Callable[[], None]) -> None:
    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            echo, request_deserializer=msgpack.unpackb, response_serializer=msgpack.packb
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("Benchmark", {"echo": handler})]
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
        await obey_async(session_commands(lambda _method, params: call(params)))

    run(main())
