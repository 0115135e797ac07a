"""Streams: small items on one session, beside grpc.aio; and memory while the reader is slow."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import perf_counter

import asyncipc
from benchmarks.census import private_kib
from benchmarks.echo import sample_rates
from benchmarks.harness import Settings, Subject, started
from benchmarks.peers import GRPC, PLAIN_HANDLER
from benchmarks.report import Goal, Table, print_goals, ratio
from benchmarks.worker import obey_async

__all__ = ["client", "run", "serve"]

SLOW = Subject("asyncipc, a reader ten times slower", "stream")

# Bytes of an item of the slow stream, and how many make a sample.
ITEM = 1000
SAMPLE = 20_000


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    with started((PLAIN_HANDLER, GRPC), settings) as pairs:
        sample_rates(pairs, {"stream": settings.seconds}, settings.rounds)
    table = Table(
        'a stream of {"n": 0, "text": "hello"}, by an async generator', ("", "items/s"), (",.0f",)
    )
    rates = {pair.subject: pair.median("stream") for pair in pairs}
    for subject, rate in rates.items():
        table.add(subject.name, rate)
    table.print()
    ours = rates.get(PLAIN_HANDLER)
    if ours is not None:
        goals = [Goal("items of a stream", ours, 500_000, unit="/s")]
        if GRPC in rates:
            goals.append(Goal("items, to grpc.aio", ratio(ours, rates[GRPC]), 20, unit=" x"))
        print_goals(goals)
    _measure_memory(settings)


def _measure_memory(settings: Settings) -> None:
    with started([SLOW], settings) as pairs:
        for pair in pairs:
            samples = [pair.ask("read_slowly", SAMPLE) for _ in range(3 if settings.quick else 6)]
            table = Table(
                f"memory while {ITEM:,} byte items are read ten times slower than they are made",
                ("", *(f"after {SAMPLE * number:,}" for number in range(1, len(samples) + 1))),
                (",.0f",) * len(samples),
            )
            for side in samples[0]:
                table.add(f"KiB of the {side}", *(sample[side] for sample in samples))
            table.print()
            grown = max(samples[-1][side] - samples[0][side] for side in samples[0])
            print_goals([Goal("memory grown since the first", grown, at_most=1024, unit=" KiB")])


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve as many items as are wanted."""

    async def main() -> None:
        async with asyncipc.Peer() as peer:

            @peer.on_request("produce")
            async def produce() -> AsyncIterator[bytes]:
                while True:
                    yield b"x" * ITEM

            peer.on_request("memory")(private_kib)
            async with peer.serve(f"unix:{path}") as server:
                ready()
                await server.wait_closed()

    asyncipc.run(main())


def client(path: str) -> None:
    """Read slowly, always from the same stream."""

    async def main() -> None:
        async with (
            asyncipc.Peer() as peer,
            peer.connect(f"unix:{path}") as session,
            session.stream("produce") as items,
        ):
            begin = perf_counter()
            for _ in range(SAMPLE):
                await anext(items)
            pause = 10 * (perf_counter() - begin) / SAMPLE

            async def read_slowly(count: int) -> dict[str, int]:
                for number in range(count):
                    await anext(items)
                    if number % 100 == 0:
                        await asyncio.sleep(100 * pause)
                return {
                    "reader": private_kib(),
                    "producer": await session.request("memory"),
                }

            await obey_async({"read_slowly": read_slowly})

    asyncipc.run(main())
