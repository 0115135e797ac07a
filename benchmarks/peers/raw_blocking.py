"""The floor: two blocking processes, raw bytes over a unix stream socket, nothing decoded."""

import socket
from collections.abc import Callable
from time import perf_counter

from benchmarks.peers.frame_sizes import REPLY_SIZE, REQUEST_SIZE
from benchmarks.worker import blocking_commands, bulk_data, obey

BULK = ord("b")


def serve(path: str, ready: Callable[[], None]) -> None:
    """Answer each request-sized read with a reply-sized write; take bulk and acknowledge it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ready()
        connection, _ = listener.accept()
    reply = bytes(REPLY_SIZE)
    with connection:
        while request := connection.recv(REQUEST_SIZE, socket.MSG_WAITALL):
            if request[0] == BULK:
                receive_bulk(connection, int.from_bytes(request[1:9], "big"))
            connection.sendall(reply)


def receive_bulk(connection: socket.socket, size: int) -> None:
    """Straight into memory of its size, as the fastest reader of a socket does."""
    view = memoryview(bytearray(size))
    received = 0
    while received < size:
        received += connection.recv_into(view[received:])


def client(path: str) -> None:
    """Echo bytes, or send many and wait for the acknowledgement."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request, reply = bytes(REQUEST_SIZE), bytes(REPLY_SIZE)

    def submit() -> Callable[[], bytes]:
        connection.sendall(request)
        return lambda: connection.recv(REPLY_SIZE, socket.MSG_WAITALL)

    def bulk(size: int) -> float:
        data = bulk_data(size)
        header = (bytes([BULK]) + size.to_bytes(8, "big")).ljust(REQUEST_SIZE, b"\0")
        begin = perf_counter()
        connection.sendall(header)
        connection.sendall(data)
        connection.recv(REPLY_SIZE, socket.MSG_WAITALL)
        return perf_counter() - begin

    commands = blocking_commands(submit, reply)
    obey({"sequential": commands["sequential"], "bulk": bulk})
