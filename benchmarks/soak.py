"""A pool at work while a random worker is killed again and again: what became of every task.

Each task first writes its number to a file of its worker. The records of fixed size are appended
by one system call each, so they are whole also where the worker is killed behind it: they prove
how often a task ran, whatever its caller was told.
"""

import asyncio
import contextlib
import os
import random
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import asyncipc
from asyncipc.process.usage import private_memory
from benchmarks.census import Census
from benchmarks.harness import Pair, Settings, Subject, started
from benchmarks.report import Goal, Table, print_goals
from benchmarks.worker import obey_async

__all__ = ["client", "run"]

SOAK = Subject("asyncipc.Pool", "soak")

WORKERS, CONCURRENCY, RETRIES = 4, 4, 2

# Tasks that wait or run at any time.
AT_ONCE = 256

# Tasks between two signs of life of the process under observation.
PORTION = 5_000

# Before the first census: what the first tasks and deaths bring is there from then on.
WARM_UP = 5_000

# Objects that a cache or the interpreter keeps, and KiB that move between two looks at a heap; a
# leak per task or death would be much more.
TOLERATED_OBJECTS = 200
TOLERATED_KIB = 4096

RECORD: Final = struct.Struct("<I")


# What the workers run ------------------------------------------------------------------------

_proof = -1


def open_proof(directory: str) -> None:
    """The initializer: a file for this worker."""
    global _proof
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    _proof = os.open(Path(directory, str(os.getpid())), flags, 0o600)


def ran(number: int) -> int:
    """Prove that a task ran."""
    if os.write(_proof, RECORD.pack(number)) != RECORD.size:
        raise AssertionError("the proof was not written whole")
    return number


def spin(number: int) -> int:
    """A task that keeps its worker busy, for a few milliseconds."""
    ran(number)
    until = perf_counter() + 0.004
    while perf_counter() < until:
        pass
    return number


async def pause(number: int) -> int:
    """An async one, which shares its worker with others."""
    ran(number)
    await asyncio.sleep(0.004)
    return number


def fail(number: int) -> int:
    """One that fails by itself."""
    ran(number)
    raise ValueError(number)


# Of twenty tasks, in turn; all others are `ran` itself, over in a moment.
KINDS: dict[int, Callable[[int], Any]] = {0: spin, 1: pause, 2: fail, 3: spin, 4: pause}
MAY_RUN_AGAIN = {3, 4}  # of the kinds: these are given with `RETRIES`


# The process under observation ---------------------------------------------------------------

RESULT, OWN_ERROR, DIED, OTHER = 1, 2, 3, 4


class Soak:
    """The tasks given so far, and what their callers were told.

    :ivar outcomes: by number
    :ivar doubled: how many callers were told twice
    """

    def __init__(self, pool: asyncipc.Pool, directory: str) -> None:
        self._pool = pool
        self._directory = directory
        self.outcomes = bytearray()
        self.others: Counter[str] = Counter()
        self.doubled = 0
        self.kills = 0

    async def run(self, arguments: tuple[int, float]) -> int:
        """Run so many tasks more, a worker killed every so many seconds; the number of kills."""
        count, interval = arguments
        first = len(self.outcomes)
        self.outcomes += bytes(count)
        numbers = iter(range(first, first + count))
        before = self.kills
        killer = asyncio.create_task(self._kill(interval))
        try:
            await asyncio.gather(*(self._caller(numbers) for _ in range(AT_ONCE)))
        finally:
            killer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killer
        return self.kills - before

    async def _caller(self, numbers: Any) -> None:
        for number in numbers:
            kind = number % 20
            retries = RETRIES if kind in MAY_RUN_AGAIN else 0
            try:
                result = await self._pool.run(KINDS.get(kind, ran), number, retries=retries)
                outcome = RESULT if result == number else OTHER
            except ValueError as error:
                outcome = OWN_ERROR if error.args == (number,) else OTHER
            except asyncipc.WorkerDied:
                outcome = DIED
            except Exception as error:  # noqa: BLE001 - whatever else there is, is counted
                self.others[f"{error!r:.100}"] += 1
                outcome = OTHER
            self.doubled += self.outcomes[number] != 0
            self.outcomes[number] = outcome

    async def _kill(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            if self._pool.workers:
                with contextlib.suppress(ProcessLookupError):  # it has just gone by itself
                    os.kill(random.choice(self._pool.workers).pid, signal.SIGKILL)
                    self.kills += 1

    async def census(self, _: int) -> dict[str, Any]:
        """What is there when all workers are."""
        await self._pool.resize(WORKERS)
        await asyncio.sleep(0.5)  # those that were killed last are reaped
        census = asdict(Census.take())
        [zygote] = _children(os.getpid())
        workers = {worker.pid for worker in self._pool.workers}
        census["processes"] = len(_children(zygote)) + 1
        census["strangers"] = len(set(_children(zygote)) ^ workers)
        census["zygote_descriptors"] = len(os.listdir(f"/proc/{zygote}/fd"))
        census["zygote_private_kib"] = (private_memory(zygote) or 0) // 1024
        return census

    async def verify(self, _: int) -> dict[str, Any]:
        """Compare what callers were told with what was really run."""
        runs = _count_runs(self._directory)
        found: Counter[str] = Counter()
        for number, outcome in enumerate(self.outcomes):
            times = runs[number]
            may_run_again = number % 20 in MAY_RUN_AGAIN
            found[_NAMES[outcome]] += 1
            found["ran again, as they may"] += may_run_again and times > 1
            found["ran twice"] += times > (1 + RETRIES if may_run_again else 1)
            found["told a result, but not run"] += outcome in (RESULT, OWN_ERROR) and not times
            found["died before they ran"] += outcome == DIED and not times
        statistics = self._pool.statistics()
        return {
            **found,
            "told twice": self.doubled,
            "unknown records": sum(number >= len(self.outcomes) for number in runs),
            "others": dict(self.others),
            "kills": self.kills,
            "deaths": statistics.workers_died,
            "moved": statistics.moved,
        }


_NAMES = {0: "lost", RESULT: "result", OWN_ERROR: "own error", DIED: "died", OTHER: "other"}


def _count_runs(directory: str) -> Counter[int]:
    runs: Counter[int] = Counter()
    for file in Path(directory).iterdir():
        runs.update(number for (number,) in RECORD.iter_unpack(file.read_bytes()))
    return runs


def client(path: str) -> None:
    """The process under observation; the path is not used."""

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with asyncipc.Pool(
                WORKERS, concurrency=CONCURRENCY, initializer=open_proof, initargs=(directory,)
            ) as pool:
                soak = Soak(pool, directory)
                commands: dict[str, Callable[[Any], Awaitable[Any]]] = {
                    "run": soak.run,
                    "census": soak.census,
                    "verify": soak.verify,
                }
                await obey_async(commands)

    asyncipc.run(main())


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# The report ----------------------------------------------------------------------------------


def run(settings: Settings) -> None:
    """Measure, and print the tables."""
    with started((SOAK,), settings) as pairs:
        for pair in pairs:
            ask_to_run = partial(_run_portions, pair, settings.kill_every)
            ask_to_run(WARM_UP)
            pair.ask("census", 0)  # what counting itself creates is there from now on
            before = pair.ask("census", 0)
            begin = perf_counter()
            ask_to_run(settings.tasks)
            seconds = perf_counter() - begin
            after = pair.ask("census", 0)
            verdict = pair.ask("verify", 0)
            _report_outcomes(settings.tasks + WARM_UP, seconds, verdict)
            _report_growth(before, after)


def _run_portions(pair: Pair, interval: float, tasks: int) -> None:
    while tasks > 0:
        pair.ask("run", (min(tasks, PORTION), interval))
        tasks -= PORTION


def _report_outcomes(tasks: int, seconds: float, verdict: dict[str, Any]) -> None:
    others = verdict.pop("others")
    table = Table(
        f"{tasks:,} tasks on {WORKERS} workers, {verdict['kills']} of which were killed "
        f"({seconds:.0f} s)",
        ("", "tasks"),
        (",d",),
    )
    for name, count in verdict.items():
        table.add(name, count)
    table.print()
    for text, count in others.items():
        print(f"  {count:,d} {text}")
    outcomes = sum(verdict.get(name, 0) for name in ("result", "own error", "died"))
    never = ("lost", "other", "told twice", "ran twice", "told a result, but not run")
    goals = [Goal("tasks with one of the outcomes they may have", outcomes, at_least=tasks)]
    goals += [Goal(f"tasks: {name}", verdict.get(name, 0), at_most=0) for name in never]
    goals.append(Goal("records of no task", verdict["unknown records"], at_most=0))
    if verdict["kills"]:
        deaths = verdict.get("died", 0) / verdict["kills"]
        goals.append(Goal("tasks failed by one kill", deaths, at_most=CONCURRENCY))
    print_goals(goals)


def _report_growth(before: dict[str, Any], after: dict[str, Any]) -> None:
    types_before, types_after = (Counter(census.pop("types")) for census in (before, after))
    table = Table("before and after", ("", "before", "after", "more"), (",d", ",d", "+,d"))
    for name, count in before.items():
        table.add(name, count, after[name], after[name] - count)
    table.print()
    for name, count in (types_after - types_before).most_common(5):
        print(f"  {count:+,d} {name}")
    tolerated = {
        "objects": TOLERATED_OBJECTS,
        "private_kib": TOLERATED_KIB,
        "zygote_private_kib": TOLERATED_KIB,
    }
    print_goals(
        [
            Goal(f"{name} more than before", after[name] - count, at_most=tolerated.get(name, 0))
            for name, count in before.items()
        ]
    )
