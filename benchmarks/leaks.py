"""Ten thousand sessions opened, used, and closed or killed, in one process: what is left of them.

The process under observation connects and serves at once. Its helpers are children over stdio,
which serve and connect in turn. One a cycle ends by SIGKILL with sessions open in both directions,
another is closed.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from time import perf_counter
from typing import Any

import asyncipc
from benchmarks.census import Census, allow_descriptors
from benchmarks.harness import Settings, Subject, started
from benchmarks.report import Goal, Table, print_goals
from benchmarks.worker import MESSAGE, obey_async

__all__ = ["client", "run"]

LEAKS = Subject("asyncipc", "leaks")

# One cycle is a thousand sessions; the counts say how each of them ends.
CYCLES = 10
CLOSED_HERE, CLOSED_THERE, SERVED_AND_CLOSED, KILLED, SERVED_AND_KILLED = 400, 200, 200, 100, 100
PER_CYCLE = CLOSED_HERE + CLOSED_THERE + SERVED_AND_CLOSED + KILLED + SERVED_AND_KILLED
AT_ONCE = 50
HELPER = [sys.executable, "-m", "benchmarks.leaks"]

# Objects that a cache or the interpreter keeps; a leak per session would be thousands.
TOLERATED_OBJECTS = 100


def run(settings: Settings) -> None:
    """Measure, and print the table."""
    cycles = 2 if settings.quick else CYCLES
    with started([LEAKS], settings) as pairs:
        for pair in pairs:
            pair.ask("cycles", 2)
            pair.ask("census", 0)  # what counting itself creates is there from now on
            before = pair.ask("census", 0)
            seconds = pair.ask("cycles", cycles)
            after = pair.ask("census", 0)
            _report(cycles, seconds, before, after)


def _report(cycles: int, seconds: float, before: dict[str, Any], after: dict[str, Any]) -> None:
    types_before, types_after = (Counter(census.pop("types")) for census in (before, after))
    table = Table(
        f"{cycles * PER_CYCLE:,} sessions and {2 * cycles} children opened, used, closed or killed "
        f"({seconds:.1f} s)",
        ("", "before", "after", "more"),
        (",d", ",d", "+,d"),
    )
    for name, count in before.items():
        table.add(name, count, after[name], after[name] - count)
    table.print()
    for name, count in (types_after - types_before).most_common(5):
        print(f"  {count:+,d} {name}")
    goals = [
        Goal(f"{name} more than before", after[name] - before[name], at_most=0)
        for name in ("descriptors", "tasks", "children", "threads")
    ]
    more_objects = after["objects"] - before["objects"]
    goals.append(Goal("objects more than before", more_objects, at_most=TOLERATED_OBJECTS))
    print_goals(goals)


def client(path: str) -> None:
    """The process under observation; it serves at the path."""

    async def main() -> None:
        async with (
            asyncipc.Peer() as peer,
            peer.serve(f"unix:{path}") as server,
        ):
            peer.on_request("echo")(echo)

            async def cycles(count: int) -> float:
                begin = perf_counter()
                for _ in range(count):
                    await _cycle(peer, server, path)
                return perf_counter() - begin

            async def census(_: int) -> dict[str, Any]:
                await asyncio.sleep(0.1)  # callbacks of the last sessions' ends are over
                return asdict(Census.take())

            await obey_async({"cycles": cycles, "census": census})

    allow_descriptors()
    asyncipc.run(main())


async def _cycle(peer: asyncipc.Peer, server: asyncipc.Server, path: str) -> None:
    helper = await peer.spawn(HELPER)
    address, back = f"unix:{path}.helper", f"unix:{path}"
    await helper.request("serve", [address])

    async def closed_here() -> None:
        async with peer.connect(address) as session:
            assert await session.request("echo", MESSAGE) == MESSAGE

    async def closed_there() -> None:
        session = await peer.connect(address)
        assert await session.request("echo", MESSAGE) == MESSAGE
        await session.request("leave")
        await session.wait_closed()

    await _many(closed_here, CLOSED_HERE)
    await _many(closed_there, CLOSED_THERE)

    await helper.request("connect", [back, SERVED_AND_CLOSED])
    await helper.request("disconnect")
    await _all_closed(server.sessions)

    await helper.request("connect", [back, SERVED_AND_KILLED])
    connected = [await peer.connect(address) for _ in range(KILLED)]
    for session in connected:
        assert await session.request("echo", MESSAGE) == MESSAGE
    assert helper.process is not None
    os.kill(helper.process.pid, signal.SIGKILL)
    await _all_closed([*server.sessions, *connected, helper])

    async with peer.spawn(HELPER) as other:
        assert await other.request("echo", MESSAGE) == MESSAGE


async def _all_closed(sessions: Iterable[asyncipc.Session]) -> None:
    await asyncio.gather(*(session.wait_closed() for session in list(sessions)))


async def _many(action: Callable[[], Awaitable[None]], count: int) -> None:
    """Do it ``count`` times, some at once."""
    for _ in range(count // AT_ONCE):
        await asyncio.gather(*(action() for _ in range(AT_ONCE)))


def echo(n: int, text: str) -> dict[str, Any]:
    return {"n": n, "text": text}


async def _helper() -> None:
    """A child that serves and connects as it is told."""
    opened: list[asyncipc.Session] = []
    leaving: set[asyncio.Task[None]] = set()

    async with asyncipc.Peer() as peer:
        peer.on_request("echo")(echo)

        @peer.on_request("serve")
        async def serve(address: str) -> None:
            await peer.serve(address)

        @peer.on_request("leave")
        async def leave(call: asyncipc.Call) -> None:
            task = asyncio.create_task(call.session.aclose())
            leaving.add(task)
            task.add_done_callback(leaving.discard)

        @peer.on_request("connect")
        async def connect(address: str, count: int) -> None:
            async def one() -> None:
                session = await peer.connect(address)
                assert await session.request("echo", MESSAGE) == MESSAGE
                opened.append(session)

            await _many(one, count)

        @peer.on_request("disconnect")
        async def disconnect() -> None:
            await asyncio.gather(*(session.aclose() for session in opened))
            opened.clear()

        async with peer.stdio() as session:
            await session.wait_closed()


if __name__ == "__main__":
    asyncipc.run(_helper())
