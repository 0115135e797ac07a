"""Pools of processes: a trivial call, a map of many, and the coming and going of workers."""

from dataclasses import replace

from benchmarks.echo import sample_rates
from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.pools import (
    ASYNCIPC,
    ASYNCIPC_MAP,
    EXECUTOR,
    EXECUTOR_MAP,
    MULTIPROCESSING,
    MULTIPROCESSING_MAP,
    ONE_WORKER,
    PEBBLE,
    TWO_WORKERS,
    WORKERS,
)
from benchmarks.report import Goal, Table, median, print_goals, ratio

__all__ = ["run"]

# Items of one map. Where each travels by itself, fewer tell the same.
ITEMS, ITEMS_ALONE = 100_000, 5_000

# A map takes about as long as this many rounds of the others.
ROUNDS_PER_MAP = 2

# Maps that are measured one after the other, where they are short.
MAPS_IN_A_ROW = 5


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    _run_calls(settings)
    _run_maps(settings)
    _run_workers(settings)


def _run_calls(settings: Settings) -> None:
    with started(ONE_WORKER, settings) as pairs:
        sample_rates(pairs, {"sequential": settings.seconds / 2}, settings.rounds)
    times = {pair.subject: pair.median("sequential") for pair in pairs}
    # Most of the others have helper threads in the application. Where its main thread is kept on
    # one core they fare now three times as well, now half as well as when left alone, as users do.
    with started(ONE_WORKER, replace(settings, pin=False)) as pairs:
        sample_rates(pairs, {"in_flight": settings.seconds}, settings.rounds)
    _report_calls({pair.subject: (times[pair.subject], pair.median("in_flight")) for pair in pairs})


def _report_calls(figures: dict[Subject, tuple[float | None, float | None]]) -> None:
    our_p50, our_rate = figures.get(ASYNCIPC, (None, None))
    table = Table(
        "a trivial function in one worker process",
        ("", "p50 µs", "asyncipc is", "calls/s, 64 at once", "asyncipc is"),
        (".1f", ".2f", ",.0f", ".2f"),
    )
    for subject, (p50, rate) in figures.items():
        fraction, times = ratio(our_p50, p50), ratio(our_rate, rate)
        table.add(
            subject.name,
            p50,
            None if fraction is None else f"{fraction:.2f} x",
            rate,
            None if times is None else f"{times:.2f} x",
        )
    table.print()

    def sequential(subject: Subject, most: float) -> Goal:
        p50, _ = figures.get(subject, (None, None))
        name = f"sequential p50, to {subject.name}"
        return Goal(name, ratio(our_p50, p50), at_most=most, unit=" x")

    def in_flight(subject: Subject, least: float) -> Goal:
        _, rate = figures.get(subject, (None, None))
        return Goal(f"64 at once, to {subject.name}", ratio(our_rate, rate), least, unit=" x")

    print_goals(
        [
            sequential(EXECUTOR, 0.6),
            sequential(MULTIPROCESSING, 1),
            sequential(PEBBLE, 1),
            in_flight(MULTIPROCESSING, 3),
            in_flight(EXECUTOR, 6),
        ]
    )


def _run_maps(settings: Settings) -> None:
    # Three processes on two cores: where each of them runs is the system's to say.
    with started(TWO_WORKERS, replace(settings, pin=False)) as pairs:
        rounds = max(3, settings.rounds // ROUNDS_PER_MAP)
        items = ITEMS
        for number in range(rounds + 1):
            for pair in pairs:
                for command in sorted(pair.commands):
                    alone = command == "chunks of 1"
                    count = ITEMS_ALONE if alone else items
                    # A map is over in 10 ms: the first after the others' turns finds the caches
                    # cold, which takes a third of that. Some take twice as long as others.
                    pair.ask(command, count)
                    if number:  # the interpreter has to learn the code, too
                        for _ in range(1 if alone else MAPS_IN_A_ROW):
                            pair.sample(command, count)
    table = Table(
        f"map of a trivial function over two worker processes, {items:,} items",
        ("", "chunks", "results/s"),
        ("", ",.0f"),
    )
    best: dict[Subject, float] = {}
    for pair in pairs:
        for command in sorted(pair.samples, key=_chunk_size):
            rate = pair.median(command)
            assert rate is not None
            best[pair.subject] = max(rate, best.get(pair.subject, 0.0))
            table.add(pair.subject.name, command.removeprefix("chunks of "), rate)
    table.print()
    ours = best.get(ASYNCIPC_MAP)
    print_goals(
        [
            Goal("map, to imap's best", ratio(ours, best.get(MULTIPROCESSING_MAP)), 1, unit=" x"),
            Goal(
                "map, to ProcessPoolExecutor.map with chunks of 1",
                ratio(ours, best.get(EXECUTOR_MAP)),
                8,
                unit=" x",
            ),
        ]
    )


def _chunk_size(command: str) -> int:
    size = command.removeprefix("chunks of ")
    return int(size) if size.isdecimal() else 0


def _run_workers(settings: Settings) -> None:
    with started((WORKERS,), replace(settings, pin=False)) as pairs:
        for pair in pairs:
            for _ in range(settings.rounds):
                for command in ("start", "memory", "death"):
                    pair.sample(command, 0)
            _report_workers(pair)


def _report_workers(pair: Pair) -> None:
    wanted = {
        "start": Goal("a zygote that is ready gives a ready worker", None, at_most=15, unit=" ms"),
        "memory": Goal("a new worker's private memory", None, at_most=8, unit=" MiB"),
        "death": Goal("from a death to the replacement", None, at_most=50, unit=" ms"),
    }
    table = Table(pair.subject.name, ("", "median", "worst"), (".1f", ".1f"))
    goals = []
    for command, goal in wanted.items():
        samples = pair.samples[command]
        table.add(f"{goal.what},{goal.unit}", median(samples), max(samples))
        goals.append(replace(goal, reached=median(samples)))
    table.print()
    print_goals(goals)
