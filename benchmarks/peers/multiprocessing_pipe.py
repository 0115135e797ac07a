"""``multiprocessing.Pipe`` between two blocking processes: pickles for dicts, plain bytes for bulk.

Two of them: the default one goes both ways over a socketpair, the other is a pipe each way.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

from benchmarks.worker import MESSAGE, blocking_commands, bulk_data, obey


def answer(incoming: Connection, outgoing: Connection) -> None:
    """Runs in the child: echo what comes, except for bulk, which is acknowledged."""
    while True:
        message = incoming.recv()
        if message is not None:
            outgoing.send({"n": message["n"], "text": message["text"]})
            continue
        data = incoming.recv_bytes()
        outgoing.send(len(data))


def client(path: str, *, duplex: bool = True) -> None:
    """Start the child and talk to it; the path is not used."""
    spawn = multiprocessing.get_context("spawn")
    incoming, their_outgoing = spawn.Pipe(duplex)
    their_incoming, outgoing = (their_outgoing, incoming) if duplex else spawn.Pipe(False)
    child = spawn.Process(target=answer, args=(their_incoming, their_outgoing), daemon=True)
    child.start()

    def submit() -> Callable[[], Any]:
        outgoing.send(MESSAGE)
        return incoming.recv

    def bulk(size: int) -> float:
        data = bulk_data(size)
        begin = perf_counter()
        outgoing.send(None)
        outgoing.send_bytes(data)
        assert incoming.recv() == size
        return perf_counter() - begin

    obey({**blocking_commands(submit, MESSAGE), "bulk": bulk})
