"""``python -m benchmarks [NAME ...] [--quick] [--only PART]``: run them, print the tables.

Figures move from run to run and from machine to machine; the ratios within one run are what
counts. Peers that are not installed are skipped, and it says so.
"""

import argparse
import os
import platform
import sys
from time import perf_counter

from benchmarks import (
    bulk,
    echo,
    idle,
    imports,
    leaks,
    notify,
    pool,
    shared_memory,
    soak,
    stream,
)
from benchmarks.harness import Settings

BENCHMARKS = {
    "echo": echo.run,
    "notify": notify.run,
    "stream": stream.run,
    "bulk": bulk.run,
    "memory": shared_memory.run,
    "idle": idle.run,
    "import": imports.run,
    "leaks": leaks.run,
    "pool": pool.run,
    "soak": soak.run,
}


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} or all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a look")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="subjects with PART in the name"
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let the system choose each process's core"
    )
    parser.add_argument(
        "--tasks", type=int, metavar="N", help="soak: tasks to run (200,000; with --quick 10,000)"
    )
    parser.add_argument(
        "--kill-every", type=float, default=0.2, metavar="SECONDS", help="soak: between two kills"
    )
    arguments = parser.parse_args()
    names = arguments.names or ["all"]
    if unknown := set(names) - {"all", *BENCHMARKS}:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    settings = Settings(
        rounds=3 if arguments.quick else 15,
        seconds=0.15 if arguments.quick else 0.25,
        quick=arguments.quick,
        pin=not arguments.no_pin,
        only=tuple(arguments.only),
        tasks=arguments.tasks or (10_000 if arguments.quick else 200_000),
        kill_every=arguments.kill_every,
    )
    print(
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, {os.cpu_count()} cores; medians of "
        f"{settings.rounds} interleaved rounds"
    )
    begin = perf_counter()
    for name, run in BENCHMARKS.items():
        if name in names or "all" in names:
            run(settings)
    print(f"\n{perf_counter() - begin:.0f} seconds in all", file=sys.stderr)


if __name__ == "__main__":
    main()
