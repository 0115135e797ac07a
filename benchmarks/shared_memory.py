"""numpy arrays one way with an acknowledgement, and file descriptors, over a unix socket."""

from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.report import Goal, Table, median, print_goals, ratio

__all__ = ["run"]

MIB = 1024 * 1024
SIZES = (MIB, 64 * MIB)

# See `benchmarks.bulk`: memory that has been free for a while is slow to come back.
WARM_UPS = 3

# Calls of each sample of descriptors.
CALLS = 19_200

PIPE = Subject("multiprocessing.Pipe()", "peers.multiprocessing_arrays", packages=("numpy",))
EXECUTOR = Subject("ProcessPoolExecutor", "peers.executor_arrays", packages=("numpy",))
POOL = Subject("asyncipc.Pool.run", "peers.asyncipc_pool_arrays", packages=("numpy",))
ARENA = Subject("asyncipc, unix socket", "peers.asyncipc_memory", packages=("numpy",))

Key = tuple[Subject, str, int]


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    seconds: dict[Key, list[float]] = {}
    rates: list[float] = []
    rounds = 3 if settings.quick else 9
    with started((ARENA, POOL, PIPE, EXECUTOR), settings) as pairs:
        for _ in range(rounds):
            for pair in pairs:
                _sample(pair, seconds)
                if "descriptors" in pair.commands:
                    rates.append(pair.ask("descriptors", CALLS))
    _print(seconds, median(rates) if rates else None)


def _sample(pair: Pair, seconds: dict[Key, list[float]]) -> None:
    for size in SIZES:
        for command in ("copied", "shared"):
            if command in pair.commands:
                for _ in range(WARM_UPS):
                    pair.ask(command, size)
                times = seconds.setdefault((pair.subject, command, size), [])
                times += [pair.ask(command, size) for _ in range(3)]


def _print(seconds: dict[Key, list[float]], descriptors: float | None) -> None:
    rates = {key: key[2] / median(values) / 1e9 for key, values in seconds.items()}
    table = Table(
        "numpy arrays one way and an acknowledgement",
        ("", "1 MiB, GB/s", "x Pipe()", "64 MiB, GB/s", "x Pipe()"),
        (".2f", ".1f", ".2f", ".1f"),
    )
    base = {size: rates.get((PIPE, "copied", size)) for size in SIZES}
    rows = (
        ("multiprocessing.Pipe(), pickled", PIPE, "copied"),
        ("ProcessPoolExecutor, awaited", EXECUTOR, "copied"),
        ("asyncipc, copied into the arena", ARENA, "copied"),
        ("asyncipc, from shared_array", ARENA, "shared"),
        ("asyncipc.Pool.run, copied", POOL, "copied"),
    )
    times: dict[tuple[Subject, str, int], float | None] = {}
    for name, subject, command in rows:
        figures: list[float | None] = []
        for size in SIZES:
            rate = rates.get((subject, command, size))
            times[subject, command, size] = ratio(rate, base[size])
            figures += [rate, times[subject, command, size]]
        table.add(name, *figures)
    table.print()
    large, small = 64 * MIB, MIB

    def to_pipe(command: str, size: int) -> float | None:
        return times.get((ARENA, command, size))

    def to_executor(subject: Subject) -> float | None:
        return ratio(rates.get((subject, "copied", large)), rates.get((EXECUTOR, "copied", large)))

    print_goals(
        [
            Goal("64 MiB, copied in, to Pipe()", to_pipe("copied", large), 4, unit=" x"),
            Goal("64 MiB, copied in, to ProcessPoolExecutor", to_executor(ARENA), 4, unit=" x"),
            Goal("64 MiB, by Pool.run, to ProcessPoolExecutor", to_executor(POOL), 4, unit=" x"),
            Goal("64 MiB, from shared memory, to Pipe()", to_pipe("shared", large), 10, unit=" x"),
            Goal("1 MiB, copied in, to Pipe()", to_pipe("copied", small), 4, unit=" x"),
            Goal("1 MiB, from shared memory, to Pipe()", to_pipe("shared", small), 4, unit=" x"),
            Goal("descriptors, one in each call, per second", descriptors, 30_000, unit=""),
        ]
    )
