"""Checksums of whole folders, on every core: one child per core, spoken to over stdio.

``python examples/checksum_tree.py [--chaos] [PATH ...]`` hashes every file below the folders (the
Python standard library, if none is given). The digest over all of them is the same that other
tools find, as long as no name holds a newline or a backslash, which ``sha256sum`` would quote::

    find PATH -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum

``--chaos`` kills children at random while they work; the result is the same. Symbolic links are
followed where they are given as PATH, and not below. The exit code is 0 if all went well, 1 if
something could not be read or was wrong, 2 for bad arguments, 130 after Ctrl-C.
"""

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import signal
import stat
import sys
import sysconfig
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import asyncipc

# The bytes that a child reads at a time; between two of them it reports and can be cancelled.
CHUNK = 1024 * 1024

# What a child is given at a time: so many files at most, and no more when so many bytes are full.
BATCH_FILES, BATCH_BYTES = 256, 8 * CHUNK

# Where in the job --chaos kills a child.
CHAOS = (0.0, 0.2, 0.4, 0.6, 0.8)

# A file is given up when so many children died over it, more than chaos alone can reach; and the
# job, when so many died in a row before they could begin.
MAX_DEATHS = len(CHAOS) + 1

# The parent hashes so many files again, of which none is larger than this.
SAMPLE, SAMPLE_BYTES = 8, 16 * CHUNK

# Of the files that could not be read, so many are named.
MAX_NAMED = 20


# The child -----------------------------------------------------------------------------------

peer = asyncipc.Peer()


class Hashed(NamedTuple):
    """What became of a file: its size in bytes and its digest, or an error."""

    size: int = 0
    sha256: str = ""
    error: str = ""


@peer.on_request("hash", thread=True)
def hash_files(paths: list[bytes], call: asyncipc.Call) -> list[list[int | str]]:
    """Hash files; in a thread, so that the child can hear of a cancellation meanwhile.

    :returns: a `Hashed` for each, as a plain list: objects would cost more than small files do
    """
    done = 0
    call.report(done)
    results: list[list[int | str]] = []
    buffer = memoryview(bytearray(CHUNK))
    for path in paths:
        digest, size = hashlib.sha256(), 0
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a fifo
            try:
                while count := os.readv(fd, [buffer]):
                    if call.cancelled:
                        return []  # nobody waits for it any longer
                    digest.update(buffer[:count])
                    size += count
                    done += count
                    if count == CHUNK:
                        call.report(done)
            finally:
                os.close(fd)
            results.append([*Hashed(size, digest.hexdigest())])
        except OSError as error:
            results.append([*Hashed(error=error.strerror or repr(error))])
    return results


async def child() -> None:
    """Serve the parent until it has enough."""
    async with peer.stdio() as parent:
        await parent.wait_closed()


# What there is to do -------------------------------------------------------------------------


class File(NamedTuple):
    """A file to hash, and the size it had when it was found."""

    path: str
    size: int


@dataclass
class Tree:
    """What was found below the given paths."""

    files: dict[str, File] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Find all files below a path; a link is followed here, and not further down."""
        folders: list[str] = []
        try:
            self._sort_in(path, Path(path).stat(), folders)
        except OSError as error:
            self._failed(path, error)
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    found = list(entries)
            except OSError as error:
                self._failed(folder, error)
                continue
            for entry in found:
                try:
                    self._sort_in(entry.path, entry.stat(follow_symlinks=False), folders)
                except OSError as error:
                    self._failed(entry.path, error)

    def _sort_in(self, path: str, status: os.stat_result, folders: list[str]) -> None:
        if stat.S_ISDIR(status.st_mode):
            folders.append(path)
        elif stat.S_ISREG(status.st_mode):
            self.files[path] = File(path, status.st_size)
        elif stat.S_ISLNK(status.st_mode):
            self.skipped["symbolic links, which are not followed"] += 1
        else:
            self.skipped["special files (fifos, sockets, devices)"] += 1

    def _failed(self, path: str, error: OSError) -> None:
        self.problems.append(f"{shown(path)}: {error.strerror}")

    def batches(self) -> Iterator[list[File]]:
        """The files in portions, the largest first, so that the children end about together."""
        batch: list[File] = []
        room = BATCH_BYTES
        for file in sorted(self.files.values(), key=lambda file: file.size, reverse=True):
            if batch and (file.size > room or len(batch) == BATCH_FILES):
                yield batch
                batch, room = [], BATCH_BYTES
            batch.append(file)
            room -= file.size
        if batch:
            yield batch


# The parent ----------------------------------------------------------------------------------


class Job:
    """Hands out the batches, one child per core, and collects what comes back."""

    def __init__(self, tree: Tree, *, chaos: bool) -> None:
        self.results: dict[str, Hashed] = {}
        self.died = 0
        self._waiting = deque(tree.batches())
        self.children = min(cores(), len(self._waiting))
        self._deaths: Counter[File] = Counter()
        self._chaos = list(CHAOS) if chaos else []
        self._total = sum(file.size for file in tree.files.values())
        self._done = 0  # bytes of finished batches ...
        self._running: dict[asyncipc.Session, float] = {}  # ... and of those under way
        self._bar = Bar(self._total)

    async def run(self) -> None:
        """Do it all. Whatever ends this, the children are gone behind it."""
        # Not Python's own way with Ctrl-C: a second one would break into the orderly end.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.children):
                    group.create_task(self._keep_busy())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first one ended the others
        finally:
            self._bar.close()

    async def _keep_busy(self) -> None:
        """One core's work: a child, and another one when it dies."""
        failed_starts = 0
        while self._waiting:
            batch: list[File] = []
            try:
                async with peer.spawn([sys.executable, __file__, "--child"]) as session:
                    while self._waiting:
                        batch = self._waiting.popleft()
                        await self._hash(session, batch)
            except asyncipc.PeerDied as death:
                failed_starts = 0 if batch else failed_starts + 1
                if failed_starts == MAX_DEATHS:
                    raise
                self._give_back(batch, death)

    async def _hash(self, session: asyncipc.Session, batch: list[File]) -> None:
        size = sum(file.size for file in batch)

        def on_progress(progress: asyncipc.Progress) -> None:
            self._running[session] = min(progress.done, size)  # a file may have grown
            self._moved()

        paths = [os.fsencode(file.path) for file in batch]
        try:
            results = await session.request("hash", [paths], timeout=None, on_progress=on_progress)
        finally:
            self._running.pop(session, None)
        for file, result in zip(batch, results, strict=True):
            self.results[file.path] = Hashed(*result)
        self._done += size
        self._moved()

    def _give_back(self, batch: list[File], death: asyncipc.PeerDied) -> None:
        """A child died over a batch: its files go one by one to whoever is free."""
        self.died += 1
        for file in batch:
            self._deaths[file] += 1
            if self._deaths[file] < MAX_DEATHS:
                self._waiting.append([file])
            else:
                self.results[file.path] = Hashed(error=f"given up: {death}")

    def _moved(self) -> None:
        done = self._done + sum(self._running.values())
        self._bar.show(done)
        if self._chaos and self._running and done >= self._chaos[0] * self._total:
            self._chaos.pop(0)
            victim = random.choice(list(self._running)).process
            assert victim is not None  # they were all spawned
            victim.kill()


class Bar:
    """How far the job is: a bar in a terminal, elsewhere a line for every tenth."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_live = sys.stdout.isatty()
        self._started = monotonic()
        self._redraw_at = 0.0
        self._tenth = -1
        self._width = 0

    def show(self, done: float) -> None:
        """Say that so many bytes are done."""
        part = done / self._total if self._total else 1.0
        now = monotonic()
        text = f"{part:4.0%}  {amount(done)} of {amount(self._total)}"
        if not self._is_live:
            if int(part * 10) > self._tenth:
                self._tenth = int(part * 10)
                print(text, flush=True)
        elif now >= self._redraw_at:
            self._redraw_at = now + 0.05
            text = f" {text}, {amount(done / (now - self._started))}/s"
            # The last column stays free, because some terminals wrap when it is written.
            self._width = shutil.get_terminal_size().columns - 1
            room = self._width - len(text) - 2
            bar = f"[{'#' * int(part * room):.<{room}}]" if room >= 10 else ""
            # The cursor stands in front, where the ^C of an interrupt disturbs nothing.
            print(f"\r{bar}{text}"[: self._width + 1].ljust(self._width + 1), end="\r", flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._width:
            print("\r" + " " * self._width, end="\r", flush=True)


def report(tree: Tree, job: Job, seconds: float) -> bool:
    """Print the totals; True if all went well."""
    hashed = {path: result for path, result in job.results.items() if not result.error}
    size = sum(result.size for result in hashed.values())
    checked, right = check_sample(hashed, tree.problems)
    print(f"files    {len(hashed):,}")
    print(f"bytes    {size:,}")
    print(f"seconds  {seconds:.2f}, {amount(size / seconds)}/s")
    print(f"children {job.children}, of which {job.died} died and were replaced")
    print(f"digest   {combined_digest(hashed)}")
    print(f"checked  {checked} against hashlib, {right} right")
    for kind, count in sorted(tree.skipped.items()):
        print(f"skipped  {count:,} {kind}")
    sys.stdout.flush()
    problems = tree.problems + [
        f"{shown(path)}: {result.error}" for path, result in job.results.items() if result.error
    ]
    for problem in problems[:MAX_NAMED]:
        print(f"checksum_tree: {problem}", file=sys.stderr)
    if len(problems) > MAX_NAMED:
        print(f"checksum_tree: ... and {len(problems) - MAX_NAMED:,} more", file=sys.stderr)
    return not problems


def combined_digest(hashed: dict[str, Hashed]) -> str:
    """One digest over all: of the lines that ``sha256sum`` prints, sorted by path."""
    combined = hashlib.sha256()
    for path in sorted(map(os.fsencode, hashed)):
        combined.update(f"{hashed[os.fsdecode(path)].sha256}  ".encode() + path + b"\n")
    return combined.hexdigest()


def check_sample(hashed: dict[str, Hashed], problems: list[str]) -> tuple[int, int]:
    """Hash some files again in this process; how many, and of how many the digest was right."""
    small = [path for path, result in hashed.items() if result.size <= SAMPLE_BYTES]
    sample = random.sample(small, min(SAMPLE, len(small)))
    alike = 0
    for path in sample:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            problems.append(f"{shown(path)}: {error.strerror}")
            continue
        if digest == hashed[path].sha256:
            alike += 1
        else:
            problems.append(f"{shown(path)}: hashlib says {digest}; did the file change?")
    return len(sample), alike


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def amount(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def shown(path: str) -> str:
    """A path that is safe to print: names may hold anything but a slash."""
    return path if path.isprintable() else repr(path)


def main() -> int:
    """Run as the parent or, with --child, as a child; the exit code."""
    parser = argparse.ArgumentParser(description="Checksums of whole folders, on every core.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="folders or files")
    parser.add_argument("--chaos", action="store_true", help="kill children while they work")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asyncipc.run(child)
        return 0
    try:
        return checksum(arguments.paths or [sysconfig.get_path("stdlib")], chaos=arguments.chaos)
    except (KeyboardInterrupt, asyncio.CancelledError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone. So that Python's own flush does not fail as well:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, asyncipc.IPCError) as error:
        print(f"checksum_tree: {error}", file=sys.stderr)
        return 1


def checksum(paths: list[str], *, chaos: bool) -> int:
    """Find the files, hash them, report; the exit code."""
    print("looking for files ...", end="\r" if sys.stdout.isatty() else "\n", flush=True)
    tree = Tree()
    for path in paths:
        tree.add(path)
    job = Job(tree, chaos=chaos)
    begin = monotonic()
    asyncipc.run(job.run)
    return 0 if report(tree, job, monotonic() - begin) else 1


if __name__ == "__main__":
    sys.exit(main())
