"""Ways for an application with a pool to die, and what must not be left of it: anything.

The rows are those of `docs/faults.md`; each was a bug in a library that people trust. See also
`test_child_processes.py`.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.child import python
from tests.faults.workers import both_start_methods, on_one_loop
from tests.processes import Watched, watched
from tests.programs import read_until

# Has a task run, tells the process ids of all that are there then, and waits.
APPLICATION = """
import asyncio, os, signal, sys, asyncipc
from tests.faults import tasks
from tests.processes import parent_of

async def main(start_method, function):
    async with asyncipc.Pool(2, start_method=start_method) as pool:
        task = pool.submit(getattr(tasks, function))
        async for update in task.progress():
            pids = {int(pid) for pid in update.message.split()}
            if sys.argv[3:]:
                os.kill(min(pids), signal.SIGSTOP)
            pids |= {worker.pid for worker in pool.workers}
            pids |= {parent_of(worker.pid) for worker in pool.workers} - {os.getpid()}
            print(*pids, flush=True)
            break
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:3]))
"""

# Its zygote imports a module, or its workers start, and that takes for ever.
STARTING = """
import asyncio, sys, asyncipc
from tests.faults import tasks

async def main(start_method, preload):
    sys.path.append(preload)
    async with asyncipc.Pool(
        1,
        start_method=start_method,
        preload=["preloaded"] if preload else [],
        initializer=None if preload else tasks.print_pid_and_spin,
        spawn_timeout=60,
    ):
        pass

asyncio.run(main(*sys.argv[1:]))
"""

# Ends with a pool that nobody has closed.
FORGETFUL = """
import asyncio, os, sys, asyncipc
from tests.faults import tasks
from tests.processes import parent_of

async def main(start_method):
    global pool
    pool = asyncipc.Pool(2, start_method=start_method)
    await pool.start()
    pids = {worker.pid for worker in pool.workers}
    print(*pids | {parent_of(pid) for pid in pids} - {os.getpid()}, flush=True)
    task = pool.submit(tasks.spin)
    async for update in task.progress():
        break
    sys.stdin.read()

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def application(code: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that tells of its processes."""
    with subprocess.Popen(
        python(code, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def told_by(process: "subprocess.Popen[bytes]", count: int) -> Iterator[list[Watched]]:
    """The processes that an application tells of, in a line."""
    assert process.stdout is not None
    pids = read_until(process.stdout.fileno(), "\n").split()
    if len(pids) != count:
        process.kill()
        pytest.fail(f"expected {count} process ids, got {pids}: {process.communicate()[1]!r}")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(watched(int(pid))) for pid in pids]


# Row 11: the application is killed


@pytest.mark.parametrize(
    ("function", "count"),
    [
        ("spin", 2),
        ("block", 2),
        ("never", 2),
        ("swallow_everything", 2),
        ("talk_without_end", 2),
        ("block_with_children", 2 + 2),
        ("have_a_pool", 2 + 2),
    ],
)
@both_start_methods
@on_one_loop
async def test_row_11_nothing_outlives_it(start_method: str, function: str, count: int) -> None:
    count += start_method == "zygote"
    with (
        application(APPLICATION, start_method, function) as process,
        told_by(process, count) as descendants,
    ):
        assert all(each.is_running for each in descendants)
        process.kill()
        for each in descendants:
            await each.ended(2)


@both_start_methods
@on_one_loop
async def test_row_11_nothing_outlives_it_stopped(start_method: str) -> None:
    with (
        application(APPLICATION, start_method, "spin", "stopped") as process,
        told_by(process, 2 + (start_method == "zygote")) as descendants,
    ):
        process.kill()
        for each in descendants:
            await each.ended(2)


@both_start_methods
@on_one_loop
async def test_row_11_while_a_worker_starts(start_method: str) -> None:
    with application(STARTING, start_method, "") as process, told_by(process, 1) as (worker,):
        process.kill()
        await worker.ended(2)


@on_one_loop
async def test_row_11_while_the_zygote_imports(tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text(
        "from tests.faults import tasks; tasks.print_pid_and_spin()"
    )
    with (
        application(STARTING, "zygote", str(tmp_path)) as process,
        told_by(process, 1) as (zygote,),
    ):
        process.kill()
        await zygote.ended(2)


# Row 12: the application dies between the fork and the worker's first instruction

AT_FORK = """
import os, select, signal
application = os.getppid()

def survive():
    print(os.getpid(), flush=True)
    pidfd = os.pidfd_open(application)
    os.kill(application, signal.SIGKILL)
    select.select([pidfd], [], [])

os.register_at_fork(after_in_child=survive)
"""


@on_one_loop
async def test_row_12_before_the_first_instruction_of_the_worker(tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text(AT_FORK)
    with (
        application(STARTING, "zygote", str(tmp_path)) as process,
        told_by(process, 1) as (worker,),
    ):
        await worker.ended(5)
        assert process.wait(5) == -signal.SIGKILL


# An application that ends, and does not close its pool


@both_start_methods
@on_one_loop
async def test_a_pool_that_nobody_closes(start_method: str) -> None:
    with (
        application(FORGETFUL, start_method) as process,
        told_by(process, 2 + (start_method == "zygote")) as descendants,
    ):
        process.communicate(timeout=10)
        assert process.returncode == 0
        for each in descendants:
            await each.ended(2)


# Row 22: Ctrl-C to the whole process group

INTERRUPTED = """
import asyncio, fcntl, os, signal, sys, termios, asyncipc
from tests.faults import tasks
from tests.processes import parent_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs with & ignores it
if sys.stdin.isatty():
    fcntl.ioctl(sys.stdin, termios.TIOCSCTTY, 0)  # the terminal that it is interrupted from

async def begun(task):
    async for update in task.progress():
        return

async def main(start_method):
    async with asyncipc.Pool(4, start_method=start_method, grace=0.1) as pool:
        functions = (tasks.spin, tasks.never, tasks.block)
        given = [pool.submit(function) for function in functions]
        await asyncio.gather(*map(begun, given))
        given += [pool.submit(tasks.spin) for _ in range(20)]
        pids = {worker.pid for worker in pool.workers}
        print(*pids | {parent_of(pid) for pid in pids} - {os.getpid()}, flush=True)
        await asyncio.gather(*given)

try:
    {run}(main(*sys.argv[1:]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The end of who sits there, and that of the programs."""
    ours, theirs = os.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("start_method", "run"),
    [("zygote", "asyncio.run"), ("zygote", "asyncipc.run"), ("spawn", "asyncipc.run")],
)
@on_one_loop
async def test_row_22_one_clean_end(start_method: str, run: str) -> None:
    with (
        application(INTERRUPTED.replace("{run}", run), start_method) as process,
        told_by(process, 4 + (start_method == "zygote")) as descendants,
    ):
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
        assert stderr.decode() == ""
        assert process.returncode == 130
        assert not any(each.is_running for each in descendants)


@both_start_methods
@on_one_loop
async def test_row_22_from_a_terminal(start_method: str) -> None:
    with (
        terminal() as (ours, theirs),
        subprocess.Popen(
            python(INTERRUPTED.replace("{run}", "asyncio.run"), start_method),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
        told_by(process, 4 + (start_method == "zygote")) as descendants,
    ):
        os.write(ours, b"\x03")
        _, stderr = process.communicate(timeout=10)
        assert stderr.decode() == ""
        assert process.returncode == 130
        assert not any(each.is_running for each in descendants)


# The application is PID 1, as in a container

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(scope="module")
def can_be_first() -> None:
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this machine lets nobody make a pid namespace: {error!r}")


# Orphans become children of PID 1, which nobody else reaps.
FIRST = """
import asyncio, os, signal, asyncipc
from pathlib import Path
from tests.faults import tasks
from tests.processes import parent_of, watched

async def main():
    assert os.getpid() == 1
    deaths = asyncio.Queue()
    async with asyncipc.Pool(3, on_worker_died=lambda _, error: deaths.put_nowait(error)) as pool:
        try:
            await pool.run(tasks.die)
        except asyncipc.WorkerDied:
            await deaths.get()
        await pool.resize(3)
        zygote = parent_of(pool.workers[0].pid)
        with watched(zygote) as process:
            os.kill(zygote, signal.SIGKILL)
            await process.ended()
        os.kill(pool.workers[0].pid, signal.SIGSEGV)
        error = await deaths.get()
        await pool.resize(3)
        assert await pool.run(tasks.echo, 1) == 1
    print("left:", [name for name in os.listdir("/proc") if name.isdigit() and name != "1"])
    print("died:", error.signal)

asyncio.run(main())
"""


@on_one_loop
async def test_as_pid_1_nothing_is_left(can_be_first: None) -> None:
    process = subprocess.run(
        [*NAMESPACE, *python(FIRST)], capture_output=True, timeout=30, check=False
    )
    assert process.stderr.decode() == ""
    assert process.stdout.decode().splitlines() == ["left: []", f"died: {signal.SIGSEGV.value}"]
    assert process.returncode == 0


@both_start_methods
@on_one_loop
async def test_as_pid_1_nothing_outlives_it(can_be_first: None, start_method: str) -> None:
    with subprocess.Popen(
        [*NAMESPACE, *python(APPLICATION, start_method, "spin")], stdout=subprocess.PIPE
    ) as outside:
        assert outside.stdout is not None
        pids = read_until(outside.stdout.fileno(), "\n").split()
        assert len(pids) == 2 + (start_method == "zygote")
        first = int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text())
        namespace = os.readlink(f"/proc/{first}/ns/pid")
        inside = [pid for pid in processes() if namespace_of(pid) == namespace]
        assert len(inside) == 3 + (start_method == "zygote")
        with contextlib.ExitStack() as stack:
            descendants = [stack.enter_context(watched(pid)) for pid in inside]
            os.kill(first, signal.SIGKILL)
            for each in descendants:
                await each.ended(2)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def namespace_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None
