"""What every benchmark stands on: pairs of processes under measurement.

A `Subject` names a module with a server and a client that do the same work as all others. A
`Pair` runs the two in processes of their own and has the client carry out commands, one at a
time; a pair that is not asked sleeps in its kernel. All pairs of a benchmark stay up at once and
take turns, round by round, so that whatever else the machine does hits all of them alike.

Above: the benchmarks. The other end of a pair's commands: `benchmarks.worker`.
"""

import contextlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.report import median

__all__ = ["ROOT", "Pair", "Settings", "Subject", "started"]

ROOT = Path(__file__).resolve().parent.parent

# The longest single command (a quarter of a million echoes through the slowest peer, ten thousand
# sessions) takes some seconds; a worker that is silent for this long will never answer.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How much of everything.

    :ivar rounds: how often each figure is taken; its median is printed
    :ivar seconds: about how long each subject runs for one of them
    :ivar quick: also do less of what is not measured by time
    :ivar pin: client and server of a pair on different cores
    :ivar only: parts of module names; empty for all
    :ivar tasks: how many tasks the soak runs
    :ivar kill_every: seconds between two kills of the soak
    """

    rounds: int
    seconds: float
    quick: bool = False
    pin: bool = True
    only: tuple[str, ...] = ()
    tasks: int = 200_000
    kill_every: float = 0.2

    def wants(self, subject: "Subject") -> bool:
        """Whether the subject was asked for by a part of its module's name."""
        return not self.only or any(part in subject.module for part in self.only)


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure.

    :ivar name: for the table
    :ivar module: below ``benchmarks``, with ``serve`` and ``client``, or only the latter
    :ivar packages: importable names it needs beside those asyncipc needs itself
    :ivar program: an executable it needs
    :ivar root: the folder with the packages ``benchmarks`` and ``asyncipc`` to use
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    program: str | None = None
    root: Path = ROOT

    def missing(self) -> str | None:
        """What is not installed here, if anything."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"no package {package!r} (dependency group 'bench')"
        if self.program is not None and shutil.which(self.program) is None:
            return f"no program {self.program!r}"
        return None


class Worker:
    """A process that runs one side of a pair and speaks JSON lines over its stdin and stdout."""

    def __init__(self, subject: Subject, role: str, path: Path) -> None:
        self.name = f"{subject.name} ({role})"
        self._stderr = path.with_suffix(f".{role}.stderr")
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", role, subject.module, str(path)],
                cwd=subject.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The next line; it is the only one under way, so that nothing hides in a buffer."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        if not readable:
            raise TimeoutError(f"{self.name} said nothing for {PATIENCE:g} seconds{self._said()}")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"{self.name} ended with exit code {code}{self._said()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _said(self) -> str:
        text = self._stderr.read_text(errors="replace").strip()
        return f"; its stderr:\n{text}" if text else ""


def _leaves(pid: int) -> list[int]:
    """The descendants of a process that have no children: who does the work, and not who made it.

    Children belong to the thread that started them.
    """
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            for child in map(int, (thread / "children").read_text().split()):
                found += _leaves(child) or [child]
    return found


class Pair:
    """A server process and a client process of one subject, connected and ready for commands."""

    def __init__(self, subject: Subject, directory: Path, number: int, *, pin: bool) -> None:
        self.subject = subject
        self._pin = pin and sys.platform == "linux"
        self._own_server = False  # the client started the other side itself
        self.samples: dict[str, list[float]] = {}
        self.commands: frozenset[str] = frozenset()
        self._path = directory / f"{number}-{subject.module.replace('.', '-')}.sock"
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        try:
            self._own_server = not self._start("server").receive()["serving"]
            self.commands = frozenset(self._start("client").receive()["commands"])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        if self._pin:
            self._pin_main_threads()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in reversed(self._workers):
            worker.close()

    def ask(self, command: str, argument: Any) -> Any:
        """Have the client carry out a command, and return what it measured."""
        client = self._workers[-1]
        client.send([command, argument])
        return client.receive()

    def sample(self, command: str, argument: int) -> None:
        """Ask, and note the figure under the command's name; nothing if it has no such command."""
        if command in self.commands:
            self.samples.setdefault(command, []).append(self.ask(command, argument))

    def median(self, command: str) -> float | None:
        """The median of the samples of a command."""
        return median(self.samples[command]) if command in self.samples else None

    def _pin_main_threads(self) -> None:
        """Keep the two sides on different cores, their helper threads free to move.

        Left alone, two processes that take turns land now on one core, now on two, and an exchange
        takes four times as long on two: that would drown every difference between subjects.
        """
        cores = sorted(os.sched_getaffinity(0))
        client = self._workers[-1].process.pid
        servers = _leaves(client) if self._own_server else [self._workers[0].process.pid]
        for server in servers:
            os.sched_setaffinity(server, {cores[-1]})
        if servers:
            os.sched_setaffinity(client, {cores[0]})

    def _start(self, role: str) -> Worker:
        worker = Worker(self.subject, role, self._path)
        self._workers.append(worker)
        return worker


@contextmanager
def started(subjects: Sequence[Subject], settings: Settings) -> Iterator[list[Pair]]:
    """The pairs of all subjects that were asked for and are installed; says which are not."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        pairs: list[Pair] = []
        for subject in filter(settings.wants, subjects):
            missing = subject.missing()
            if missing is None:
                pair = Pair(subject, Path(directory), len(pairs), pin=settings.pin)
                pairs.append(stack.enter_context(pair))
            else:
                print(f"skipped: {subject.name}: {missing}")
        yield pairs
