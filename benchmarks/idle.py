"""Five thousand sessions in one process: what each costs while idle, and whether all answer."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import asyncipc
from benchmarks.census import allow_descriptors, private_kib
from benchmarks.harness import Settings, Subject, started
from benchmarks.report import Goal, Table, print_goals
from benchmarks.worker import MESSAGE, obey_async

__all__ = ["client", "run", "serve"]

SESSIONS = 5000
# Opened before the baseline is taken: the modules, caches and arenas that the first ones bring.
FIRST = 200
# Connections under way at once; a listener's backlog is about a hundred.
AT_ONCE = 50

IDLE = Subject("asyncipc", "idle")


def run(settings: Settings) -> None:
    """Measure, and print the table."""
    sessions = SESSIONS if not settings.quick else 2000
    with started([IDLE], settings) as pairs:
        for pair in pairs:
            pair.ask("open", FIRST)
            before = pair.ask("memory", 0)
            opening = pair.ask("open", sessions)
            after = pair.ask("memory", 0)
            pinging = pair.ask("ping_all", 0)
            _report(sessions, before, after, opening, pinging)


def _report(
    sessions: int,
    before: dict[str, int],
    after: dict[str, int],
    opening: float,
    pinging: dict[str, float],
) -> None:
    table = Table(
        f"{sessions:,} sessions over unix sockets, one echo each, then idle",
        ("", "private KiB per session"),
        (".2f",),
    )
    each = {side: (after[side] - before[side]) / (sessions - FIRST) for side in before}
    for side, kib in each.items():
        table.add(f"the process that {side}", kib)
    table.print()
    print(
        f"\nopened and used in {opening:.2f} s; {pinging['answered']:,.0f} of them "
        f"answered a ping in {pinging['seconds']:.2f} s"
    )
    print_goals(
        [
            Goal("an idle session", max(each.values()), at_most=8, unit=" KiB"),
            Goal("sessions that answer a ping", pinging["answered"], at_least=sessions),
        ]
    )


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve them all."""

    async def main() -> None:
        async with asyncipc.Peer() as peer:

            @peer.on_request("echo")
            def echo(n: int, text: str) -> dict[str, Any]:
                return {"n": n, "text": text}

            peer.on_request("memory")(private_kib)
            async with peer.serve(f"unix:{path}") as server:
                ready()
                await server.wait_closed()

    allow_descriptors()
    asyncipc.run(main())


def client(path: str) -> None:
    """Hold the other ends."""

    async def main() -> None:
        sessions: list[asyncipc.Session] = []

        async def connect() -> None:
            session = await peer.connect(f"unix:{path}")
            assert await session.request("echo", MESSAGE) == MESSAGE
            sessions.append(session)

        async def open_up_to(total: int) -> float:
            begin = perf_counter()
            while len(sessions) < total:
                missing = min(AT_ONCE, total - len(sessions))
                await asyncio.gather(*(connect() for _ in range(missing)))
            return perf_counter() - begin

        async def memory(_: int) -> dict[str, int]:
            return {"serves": await sessions[0].request("memory"), "connects": private_kib()}

        async def ping_all(_: int) -> dict[str, float]:
            begin = perf_counter()
            await asyncio.gather(*(session.ping() for session in sessions))
            return {"answered": len(sessions), "seconds": perf_counter() - begin}

        commands: dict[str, Callable[[int], Awaitable[Any]]] = {
            "open": open_up_to,
            "memory": memory,
            "ping_all": ping_all,
        }
        async with asyncipc.Peer() as peer:
            await obey_async(commands)

    allow_descriptors()
    asyncipc.run(main())
