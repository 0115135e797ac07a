"""``multiprocessing.Pipe`` between two blocking processes: numpy arrays, pickled as it does."""

import functools
import multiprocessing
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy

from benchmarks.worker import obey


def repeats(size: int) -> int:
    """How often an array is sent for one figure: small ones go by too quickly."""
    return max(1, 32 * 1024 * 1024 // size)


@functools.lru_cache(maxsize=1)
def filled(size: int) -> "numpy.ndarray[Any, Any]":
    """An array that is really there, the same one as long as the size does not change."""
    return numpy.full(size, 7, numpy.uint8)


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

    def copied(size: int) -> float:
        array, times = filled(size), repeats(size)
        begin = perf_counter()
        for _ in range(times):
            ours.send(array)
            assert ours.recv() == size
        return (perf_counter() - begin) / times

    obey({"copied": copied})
