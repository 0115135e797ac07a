"""Bytes in bulk, one way and an acknowledgement; and a ping on the session that carries them."""

from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.report import Goal, Table, median, print_goals, ratio

__all__ = ["run"]

MIB = 1024 * 1024
SMALL, LARGE = 64 * MIB, 256 * MIB

# A virtual machine may report memory that has been free for two seconds to its host (free page
# reporting), and gets it back at a tenth of the speed of memory. So each run that counts follows
# at once upon others of the same pair and size, that do not.
WARM_UPS = 2

FLOOR = Subject("two blocking processes, recv_into", "peers.raw_blocking")
PIPE = Subject("multiprocessing.Pipe()", "peers.multiprocessing_pipe")
ONE_WAY = Subject("multiprocessing.Pipe(duplex=False)", "peers.multiprocessing_oneway")
UNIX = Subject("asyncipc, unix socket", "peers.asyncipc_unix")
STDIO = Subject("asyncipc, stdio pipes", "peers.asyncipc_stdio")


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    seconds: dict[tuple[Subject, int], list[float]] = {}
    pings: dict[Subject, list[float]] = {}
    rounds = 2 if settings.quick else 7
    with started((UNIX, STDIO, PIPE, ONE_WAY, FLOOR), settings) as pairs:
        for _ in range(rounds):
            _round(pairs, seconds, pings)
    rates = {key: key[1] / median(values) / 1e9 for key, values in seconds.items()}
    _print_table(rates, pings)
    _print_goals(rates, pings)


def _round(
    pairs: list[Pair],
    seconds: dict[tuple[Subject, int], list[float]],
    pings: dict[Subject, list[float]],
) -> None:
    for size in (SMALL, LARGE):
        for pair in pairs:
            seconds.setdefault((pair.subject, size), []).append(_ask_warm(pair, "bulk", size))
    for pair in pairs:
        if "ping_during_bulk" in pair.commands:
            slowest = _ask_warm(pair, "ping_during_bulk", SMALL)
            pings.setdefault(pair.subject, []).append(slowest)


def _ask_warm(pair: Pair, command: str, size: int) -> float:
    for _ in range(WARM_UPS):
        pair.ask(command, size)
    figure: float = pair.ask(command, size)
    return figure


def _print_table(
    rates: dict[tuple[Subject, int], float], pings: dict[Subject, list[float]]
) -> None:
    base = rates.get((PIPE, SMALL))
    table = Table(
        "bytes one way and an acknowledgement",
        ("", "64 MiB, GB/s", "x Pipe()", "256 MiB, GB/s", "slowest ping ms, median", "and worst"),
        (".2f", ".2f", ".2f", ".2f", ".2f"),
    )
    for subject in dict.fromkeys(subject for subject, _ in rates):
        small, large = rates[subject, SMALL], rates[subject, LARGE]
        slowest = pings.get(subject)
        table.add(
            subject.name,
            small,
            ratio(small, base),
            large,
            median(slowest) if slowest else None,
            max(slowest) if slowest else None,
        )
    table.print()


def _print_goals(
    rates: dict[tuple[Subject, int], float], pings: dict[Subject, list[float]]
) -> None:
    base = rates.get((PIPE, SMALL))
    goals = []
    for subject, at_least in ((UNIX, 1.5), (STDIO, 1.1)):
        small, large = rates.get((subject, SMALL)), rates.get((subject, LARGE))
        slowest = pings.get(subject)
        goals += [
            Goal(f"{subject.name}, to Pipe()", ratio(small, base), at_least, unit=" x"),
            Goal(
                f"{subject.name}, cost per byte of 256 MiB to 64 MiB",
                ratio(small, large),
                at_most=2,
                unit=" x",
            ),
            Goal(
                f"{subject.name}, slowest ping while 64 MiB run",
                max(slowest) if slowest else None,
                at_most=5,
                unit=" ms",
            ),
        ]
    print_goals(goals)
