"""What the pools are given to do, and how the calls are timed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

from benchmarks.worker import IN_FLIGHT, AsyncCommands, sequential_async

__all__ = ["ARGUMENT", "RESULT", "awaited_commands", "increment", "rate_of", "size_of"]

ARGUMENT, RESULT = 1, 2


def increment(number: int) -> int:
    """The trivial function that all pools call."""
    return number + 1


def awaited_commands(call: Callable[[], Awaitable[int]]) -> AsyncCommands:
    """The commands of a pool whose calls are awaited."""

    async def sequential(count: int) -> float:
        return await sequential_async(call, RESULT, count)

    async def in_flight(count: int) -> float:
        each = max(1, count // IN_FLIGHT)

        async def caller() -> None:
            for _ in range(each):
                if await call() != RESULT:
                    raise AssertionError("that is not the result")

        begin = perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return each * IN_FLIGHT / (perf_counter() - begin)

    return {"sequential": sequential, "in_flight": in_flight}


def size_of(array: Any) -> int:
    """Bytes of an array, which need not be read for that."""
    return int(array.nbytes)


def rate_of(count: int, results: Callable[[], Iterable[Any]]) -> float:
    """Results a second of a map of `increment` over ``range(count)``."""
    begin, total = perf_counter(), 0
    for result in results():  # not sum(): those that are awaited cannot have it either
        total += result
    if total != count * (count + 1) // 2:
        raise AssertionError("these are not the results")
    return count / (perf_counter() - begin)
