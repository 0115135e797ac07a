"""One side of a pair, as a process: ``python -m benchmarks.worker server|client MODULE PATH``.

The module's ``serve(path, ready)`` serves at a path until it is killed, and calls ``ready`` when
clients may come. Its ``client(path)`` connects and hands the commands it knows to `obey` or
`obey_async`. A module without ``serve`` starts its other side itself.

Below: the measuring itself, written once for blocking and once for asyncio clients, so that every
subject is measured by the same lines.
"""

import asyncio
import ctypes
import importlib
import json
import signal
import statistics
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from time import perf_counter, perf_counter_ns
from typing import Any, Protocol

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

__all__ = [
    "IN_FLIGHT",
    "MESSAGE",
    "blocking_commands",
    "bulk_data",
    "die_with_parent",
    "obey",
    "obey_async",
    "run",
    "sequential_async",
    "session_commands",
]

MESSAGE = {"n": 1, "text": "hello"}
IN_FLIGHT = 64

Request = Callable[..., Awaitable[Any]]
AsyncCommands = Mapping[str, Callable[[int], Awaitable[Any]]]


def bulk_data(size: int) -> bytes:
    """Bytes that are really there: the pages of ``bytes(size)`` all share one until written."""
    return b"\x07" * size


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, as all asyncio subjects do; on asyncio's own loop where there is none."""
    if uvloop is None:
        asyncio.run(main)
    else:
        uvloop.run(main)


def obey(commands: Mapping[str, Callable[[int], Any]]) -> None:
    """Carry out the commands that come on stdin, each ``[name, argument]``."""
    _say({"commands": list(commands)})
    for line in sys.stdin:
        name, argument = json.loads(line)
        _say(commands[name](argument))


async def obey_async(commands: AsyncCommands) -> None:
    """The same in a coroutine. Between commands the loop stands still, and costs nothing."""
    _say({"commands": list(commands)})
    while line := sys.stdin.readline():
        name, argument = json.loads(line)
        _say(await commands[name](argument))


def session_commands(request: Request, method: str = "echo") -> AsyncCommands:
    """The commands of an asyncio client that has ``request(method, params)``."""

    async def sequential(count: int) -> float:
        return await sequential_async(lambda: request(method, MESSAGE), MESSAGE, count)

    async def in_flight(count: int) -> float:
        each = max(1, count // IN_FLIGHT)

        async def caller() -> None:
            for _ in range(each):
                if await request(method, MESSAGE) != MESSAGE:
                    raise AssertionError("the echo is not what was sent")

        begin = perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return each * IN_FLIGHT / (perf_counter() - begin)

    return {"sequential": sequential, "in_flight": in_flight}


async def sequential_async(
    exchange: Callable[[], Awaitable[Any]], expected: Any, count: int
) -> float:
    """Microseconds of the median exchange, one after the other."""
    times = []
    for _ in range(count):
        begin = perf_counter_ns()
        result = await exchange()
        times.append(perf_counter_ns() - begin)
        if result != expected:
            raise AssertionError("the echo is not what was sent")
    return statistics.median(times) / 1000


class Pending(Protocol):
    """What a blocking client's ``submit`` returns: call it for the reply."""

    def __call__(self) -> Any: ...


def blocking_commands(submit: Callable[[], Pending], expected: Any) -> Mapping[str, Any]:
    """The commands of a blocking client that can have several requests under way."""

    def sequential(count: int) -> float:
        times = []
        for _ in range(count):
            begin = perf_counter_ns()
            result = submit()()
            times.append(perf_counter_ns() - begin)
            if result != expected:
                raise AssertionError("the echo is not what was sent")
        return statistics.median(times) / 1000

    def in_flight(count: int) -> float:
        begin = perf_counter()
        pending = deque(submit() for _ in range(IN_FLIGHT))
        for number in range(count):
            if pending.popleft()() != expected:
                raise AssertionError("the echo is not what was sent")
            if number < count - IN_FLIGHT:
                pending.append(submit())
        return count / (perf_counter() - begin)

    return {"sequential": sequential, "in_flight": in_flight}


def _say(message: Any) -> None:
    print(json.dumps(message), flush=True)


def die_with_parent() -> None:
    """A benchmark that is killed leaves no worker behind (PR_SET_PDEATHSIG is 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _main() -> None:
    role, name, path = sys.argv[1:]
    die_with_parent()
    module = importlib.import_module(f"benchmarks.{name}")
    if role == "client":
        module.client(path)
    elif hasattr(module, "serve"):
        module.serve(path, lambda: _say({"serving": True}))
    else:
        _say({"serving": False})


if __name__ == "__main__":
    _main()
