"""A listener that accepts connections and hands each socket to a worker, which answers it.

The workers are children over a socketpair, which carries file descriptors: what travels is the
connection itself, and the listener has no more to do with it.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys

import asyncipc

WORKERS = 3
CLIENTS = 12

peer = asyncipc.Peer()


@peer.on_request
async def serve(connection: asyncipc.Fd) -> None:
    """In a worker: answer one client. Who receives a descriptor owns it."""
    reader, writer = await asyncio.open_connection(sock=connection.as_socket())
    name = (await reader.readline()).decode().strip()
    writer.write(f"hello {name}, process {os.getpid()} speaking\n".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def worker() -> None:
    """Serve the listener."""
    async with peer.stdio() as listener:
        await listener.wait_closed()


async def visit(port: int, name: str) -> str:
    """A client: connects to the listener, and is answered by somebody else."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{name}\n".encode())
    answer = (await reader.readline()).decode().strip()
    writer.close()
    await writer.wait_closed()
    return answer


async def accept(listener: socket.socket, workers: list[asyncipc.Session]) -> None:
    """Hand each connection to the next worker."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as calls:
        for session in itertools.islice(itertools.cycle(workers), CLIENTS):
            connection, _ = await loop.sock_accept(listener)
            # An Fd is given away by sending it: this process has closed it when the worker has it.
            fd = asyncipc.Fd(connection.detach())
            calls.create_task(session.request("serve", [fd]))


async def main() -> None:
    """Start the workers, and let some clients in."""
    command = [sys.executable, __file__, "worker"]
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(peer.spawn(command, channel="socketpair"))
            for _ in range(WORKERS)
        ]
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=CLIENTS))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        accepting = asyncio.create_task(accept(listener, workers))
        answers = await asyncio.gather(*(visit(port, f"client {n}") for n in range(CLIENTS)))
        await accepting
        passed = [session.statistics().descriptors_sent for session in workers]
    answered_by = {answer.split()[-2] for answer in answers}
    print(answers[0])
    print(f"{sum(passed)} connections handed to {len(answered_by)} processes")
    assert all(answer.startswith(f"hello client {n},") for n, answer in enumerate(answers))
    assert passed == [CLIENTS // WORKERS] * WORKERS
    assert str(os.getpid()) not in answered_by


if __name__ == "__main__":
    asyncipc.run(worker if "worker" in sys.argv else main)
