"""numpy arrays one way with an acknowledgement, and file descriptors, over a unix socket.

Each size has processes of its own. How fast a MiB is that a process gets from its allocator depends
on what it had before: glibc keeps more memory for itself once it was asked for larger blocks, and
who unpickles arrays is three times as fast then. So the small ones are also measured beside large
ones, in the same processes.
"""

from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.report import Goal, Table, median, print_goals, ratio

__all__ = ["run"]

MIB = 1024 * 1024
LARGE = 64 * MIB

# See `benchmarks.bulk`: memory that has been free for a while is slow to come back.
WARM_UPS = 3

# Calls of each sample of descriptors.
CALLS = 19_200

PIPE = Subject("multiprocessing.Pipe()", "peers.multiprocessing_arrays", packages=("numpy",))
EXECUTOR = Subject("ProcessPoolExecutor", "peers.executor_arrays", packages=("numpy",))
POOL = Subject("asyncipc.Pool.run", "peers.asyncipc_pool_arrays", packages=("numpy",))
ARENA = Subject("asyncipc, unix socket", "peers.asyncipc_memory", packages=("numpy",))

# The sizes that the same processes send, one after the other; the first of them is measured.
Sizes = tuple[int, ...]
CASES: tuple[Sizes, ...] = ((MIB,), (MIB, LARGE), (LARGE,))

Key = tuple[Subject, str, Sizes]


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    seconds: dict[Key, list[float]] = {}
    rates: list[float] = []
    rounds = 3 if settings.quick else 7
    for sizes in CASES:
        with started((ARENA, POOL, PIPE, EXECUTOR), settings) as pairs:
            for _ in range(rounds):
                for pair in pairs:
                    _sample(pair, sizes, seconds)
                    if sizes == CASES[0] and "descriptors" in pair.commands:
                        rates.append(pair.ask("descriptors", CALLS))
    _print(seconds, median(rates) if rates else None)


def _sample(pair: Pair, sizes: Sizes, seconds: dict[Key, list[float]]) -> None:
    measured, *others = sizes
    for command in ("copied", "shared"):
        if command in pair.commands:
            for other in others:
                pair.ask(command, other)
            for _ in range(WARM_UPS):
                pair.ask(command, measured)
            times = seconds.setdefault((pair.subject, command, sizes), [])
            times += [pair.ask(command, measured) for _ in range(3)]


def _print(seconds: dict[Key, list[float]], descriptors: float | None) -> None:
    rates = {key: key[2][0] / median(values) / 1e9 for key, values in seconds.items()}
    table = Table(
        "numpy arrays one way and an acknowledgement, GB/s",
        ("", "1 MiB", "x Pipe()", "1 beside 64 MiB", "x Pipe()", "64 MiB", "x Pipe()"),
        (".2f", ".1f", ".2f", ".1f", ".2f", ".1f"),
    )
    base = {sizes: rates.get((PIPE, "copied", sizes)) for sizes in CASES}
    rows = (
        ("multiprocessing.Pipe(), pickled", PIPE, "copied"),
        ("ProcessPoolExecutor, awaited", EXECUTOR, "copied"),
        ("asyncipc, copied into the arena", ARENA, "copied"),
        ("asyncipc, from shared_array", ARENA, "shared"),
        ("asyncipc.Pool.run, copied", POOL, "copied"),
    )
    times: dict[Key, float | None] = {}
    for name, subject, command in rows:
        figures: list[float | None] = []
        for sizes in CASES:
            rate = rates.get((subject, command, sizes))
            times[subject, command, sizes] = ratio(rate, base[sizes])
            figures += [rate, times[subject, command, sizes]]
        table.add(name, *figures)
    table.print()
    small, _, large = CASES

    def to_pipe(command: str, sizes: Sizes) -> float | None:
        return times.get((ARENA, command, sizes))

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
