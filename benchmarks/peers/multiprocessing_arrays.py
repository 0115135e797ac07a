"""``multiprocessing.Pipe`` between two blocking processes: numpy arrays, pickled as it does."""

import multiprocessing
from multiprocessing.connection import Connection
from time import perf_counter

import numpy

from benchmarks.worker import obey


def repeats(size: int) -> int:
    """How often an array is sent for one figure: small ones go by too quickly."""
    return max(1, 32 * 1024 * 1024 // size)


def answer(connection: Connection) -> None:
    """Runs in the child: acknowledge what comes."""
    while True:
        connection.send(connection.recv().nbytes)


def client(path: str) -> None:
    """Start the child and talk to it; the path is not used."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=answer, args=(theirs,), daemon=True)
    child.start()

    arrays: dict[int, numpy.ndarray] = {}

    def copied(size: int) -> float:
        if size not in arrays:
            arrays.clear()
            arrays[size] = numpy.full(size, 7, numpy.uint8)
        times = repeats(size)
        begin = perf_counter()
        for _ in range(times):
            ours.send(arrays[size])
            assert ours.recv() == size
        return (perf_counter() - begin) / times

    obey({"copied": copied})
