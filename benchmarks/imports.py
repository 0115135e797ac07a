"""How long a fresh interpreter takes to import what a small process needs."""

import compileall
import subprocess
import sys
from time import perf_counter

from benchmarks.harness import ROOT, Settings
from benchmarks.report import Goal, Table, median, print_goals, ratio

__all__ = ["run"]

BASE = "import asyncio"
OURS = "import asyncipc.session.session, asyncipc.peer.peer"
STATEMENTS = ("pass", BASE, OURS, "import asyncipc", "import zmq.asyncio", "import grpc.aio")


def run(settings: Settings) -> None:
    """Measure, and print the table."""
    # As an installer does it for all the others; a link to the sources may never be compiled.
    compileall.compile_dir(ROOT / "asyncipc", quiet=1)
    importable = [statement for statement in STATEMENTS if _milliseconds(statement) is not None]
    for statement in STATEMENTS:
        if statement not in importable:
            print(f"skipped: {statement}: it fails here")
    times: dict[str, list[float]] = {statement: [] for statement in importable}
    for _ in range(5 if settings.quick else 25):
        for statement in importable:
            elapsed = _milliseconds(statement)
            assert elapsed is not None
            times[statement].append(elapsed)
    medians = {statement: median(values) for statement, values in times.items()}
    table = Table(
        "a fresh interpreter, from start to exit", ("", "ms", "x asyncio"), (".1f", ".2f")
    )
    for statement, value in medians.items():
        table.add(statement, value, ratio(value, medians[BASE]))
    table.print()
    reached = ratio(medians.get(OURS), medians[BASE])
    print_goals([Goal("session and peer, to asyncio", reached, at_most=1.5, unit=" x")])


def _milliseconds(statement: str) -> float | None:
    begin = perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    )
    return (perf_counter() - begin) * 1000 if finished.returncode == 0 else None
