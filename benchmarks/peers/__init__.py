"""The subjects of the comparison, one module each; all echo the same message and nothing less."""

from benchmarks.harness import Subject

__all__ = [
    "ASYNC_HANDLER",
    "CORE",
    "ECHO",
    "FLOOR",
    "GRPC",
    "JSON_LINES",
    "NODE",
    "PLAIN_HANDLER",
    "PYZMQ",
]

PLAIN_HANDLER = Subject("asyncipc, plain def handler", "peers.asyncipc_unix")
ASYNC_HANDLER = Subject("asyncipc, async def handler", "peers.asyncipc_async")
CORE = Subject("asyncipc", "peers.asyncipc_core")
FLOOR = Subject("two uvloop processes, raw bytes", "peers.raw_loop")
JSON_LINES = Subject("asyncio streams, JSON lines, ids", "peers.json_lines")
PYZMQ = Subject("pyzmq asyncio DEALER/ROUTER, MessagePack", "peers.pyzmq_dealer", packages=("zmq",))
GRPC = Subject("grpc.aio, MessagePack", "peers.grpc_aio", packages=("grpc",))
NODE = Subject("Node.js child_process.fork + send", "peers.node_fork", program="node")

ECHO = (
    PLAIN_HANDLER,
    ASYNC_HANDLER,
    Subject("two blocking processes, raw bytes", "peers.raw_blocking"),
    FLOOR,
    Subject("the bare minimum in Python, uvloop", "peers.bare"),
    Subject("multiprocessing.Pipe, blocking", "peers.multiprocessing_pipe"),
    JSON_LINES,
    PYZMQ,
    GRPC,
    Subject("rpyc", "peers.rpyc_unix", packages=("rpyc",)),
    NODE,
)
