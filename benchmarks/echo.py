"""Echo of a small dict: one request after the other, and 64 in flight."""

from collections.abc import Mapping

from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.peers import (
    ASYNC_HANDLER,
    ECHO,
    FLOOR,
    GRPC,
    JSON_LINES,
    NODE,
    PLAIN_HANDLER,
    PYZMQ,
)
from benchmarks.report import Goal, Table, print_goals, ratio

__all__ = ["run", "sample_rates"]

# Before the first round each subject does this many, to warm up and to learn how fast it is.
WARM_UP = 1000


def sample_rates(pairs: list[Pair], commands: Mapping[str, float], rounds: int) -> None:
    """Sample the commands (name: seconds each), all pairs in turn, ``rounds`` times.

    "sequential" answers with microseconds, every other command with a rate per second.
    """
    counts: dict[tuple[Pair, str], int] = {}
    for pair in pairs:
        for command in pair.commands & commands.keys():
            figure = pair.ask(command, WARM_UP)
            rate = 1e6 / figure if command == "sequential" else figure
            counts[pair, command] = max(100, int(rate * commands[command]))
    for _ in range(rounds):
        for command in commands:
            for pair in pairs:
                if command in pair.commands:
                    pair.sample(command, counts[pair, command])


def run(settings: Settings) -> None:
    """Measure, and print the table."""
    with started(ECHO, settings) as pairs:
        sample_rates(
            pairs,
            {"sequential": settings.seconds / 2, "in_flight": settings.seconds},
            settings.rounds,
        )
    figures = {
        pair.subject: (pair.median("sequential"), pair.median("in_flight")) for pair in pairs
    }
    _print_table(figures)
    _print_goals(figures)


Figures = dict[Subject, tuple[float | None, float | None]]


def _print_table(figures: Figures) -> None:
    floor, _ = figures.get(FLOOR, (None, None))
    _, ours = figures.get(PLAIN_HANDLER, (None, None))
    table = Table(
        'echo of {"n": 1, "text": "hello"}, two processes, local transport',
        ("", "p50 µs", "x floor", "requests/s, 64 in flight", "asyncipc is"),
        (".1f", ".2f", ",.0f", ".2f"),
    )
    for subject, (p50, rate) in figures.items():
        times = ratio(ours, rate)
        table.add(
            subject.name,
            p50,
            ratio(p50, floor),
            rate,
            None if times is None else f"{times:.2f} x",
        )
    table.print()


def _print_goals(figures: Figures) -> None:
    def p50(subject: Subject) -> float | None:
        return figures.get(subject, (None, None))[0]

    def rate(subject: Subject) -> float | None:
        return figures.get(subject, (None, None))[1]

    plain = rate(PLAIN_HANDLER)
    print_goals(
        [
            Goal(
                "sequential p50, to the event loop's floor",
                ratio(p50(PLAIN_HANDLER), p50(FLOOR)),
                at_most=1.25,
                unit=" x",
            ),
            Goal("plain def, to JSON lines", ratio(plain, rate(JSON_LINES)), 1.4, unit=" x"),
            Goal(
                "async def, to JSON lines",
                ratio(rate(ASYNC_HANDLER), rate(JSON_LINES)),
                1.1,
                unit=" x",
            ),
            Goal("plain def, to pyzmq", ratio(plain, rate(PYZMQ)), 5, unit=" x"),
            Goal("plain def, to grpc.aio", ratio(plain, rate(GRPC)), 20, unit=" x"),
            Goal("plain def, to Node.js", ratio(plain, rate(NODE)), 1, unit=" x"),
        ]
    )
