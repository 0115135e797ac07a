"""How a pool ends: in good order, in a hurry, with Ctrl-C, and with its application's death."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from asyncipc import Pool, PoolClosed, PoolError
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, in_workers, open_pool
from tests.processes import Watched, watched
from tests.programs import environment

# -- leaving the block -------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_leaving_the_block_waits_for_what_was_given(
    start_method: str, reports: Reports
) -> None:
    async with open_pool(start_method=start_method) as pool:
        running = pool.submit(support.ask, reports.address)
        waiting = [pool.submit(support.double, number) for number in range(10)]
        report = await reports.next("started")
        asyncio.get_running_loop().call_soon(reports.answer, report)
    assert await running == "go"
    assert [await task for task in waiting] == [2 * number for number in range(10)]


async def test_nothing_is_taken_while_the_rest_is_finished(reports: Reports) -> None:
    async with open_pool() as pool:
        running = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        with pytest.raises(PoolClosed, match="closing"):
            pool.submit(support.pid)
        reports.answer(report)
        assert await running == "go"
        await closing


async def test_without_drain_what_was_given_is_cancelled(reports: Reports) -> None:
    async with open_pool(drain=False) as pool:
        running = pool.submit(support.ask_async, reports.address)
        waiting = pool.submit(support.pid)
        await reports.next("started")
    await reports.next("cancelled")
    for task in (running, waiting):
        assert task.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_error_in_the_block_cancels_what_was_given(reports: Reports) -> None:
    given = []

    async def give_and_fail() -> None:
        async with open_pool() as pool:
            given.append(pool.submit(support.ask_async, reports.address))
            await reports.next("started")
            raise LookupError

    with pytest.raises(LookupError):
        await give_and_fail()
    await reports.next("cancelled")
    assert given[0].cancelled()


@pytest.mark.parametrize("function", [support.ask, support.ask_deaf])
async def test_workers_that_do_not_stop_are_ended(function: object, reports: Reports) -> None:
    async with open_pool(2, drain=False) as pool:
        for _ in range(2):
            pool.submit(function, reports.address)  # type: ignore[call-overload]
        processes = [Watched((await reports.next("started")).pid) for _ in range(2)]
    for process in processes:
        assert not process.is_running
        process.close()


# -- closing -----------------------------------------------------------------------------------


async def test_closing_by_several_and_twice(reports: Reports) -> None:
    async with open_pool() as pool:
        running = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        closing = [asyncio.create_task(pool.aclose()) for _ in range(3)]
        reports.answer(report)
        await asyncio.gather(*closing)
        assert await running == "go"
        await pool.aclose()
        assert repr(pool) == "<Pool of 1 workers, closed>"


async def test_closing_in_a_hurry_after_all(reports: Reports) -> None:
    async with open_pool() as pool:
        running = pool.submit(support.ask_async, reports.address)
        await reports.next("started")
        patient = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        await pool.aclose(drain=False)
        await patient
        assert running.cancelled()
        await reports.next("cancelled")


async def test_cancelling_who_closes_ends_all_at_once(reports: Reports) -> None:
    async with open_pool(grace=LIMIT) as pool:
        running = pool.submit(support.ask_deaf, reports.address)
        report = await reports.next("started")
        with watched(report.pid) as process:
            closing = asyncio.create_task(pool.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert not process.is_running
        assert running.cancelled()


async def test_closing_what_was_never_open() -> None:
    pool = Pool(1)
    await pool.aclose()
    async with open_pool(drain=False) as other:
        await other.aclose(drain=True)


async def test_being_cancelled_while_it_opens() -> None:
    pool = Pool(1, initializer=signal.pause, spawn_timeout=LIMIT, grace=LIMIT)
    opening = asyncio.create_task(pool.start())
    _, pending = await asyncio.wait([opening], timeout=0.5)
    assert pending
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_a_pool_that_could_not_open_is_closed() -> None:
    pool = Pool(1, preload=["there_is_no_such_module"], on_stderr=lambda _: None)
    with pytest.raises(PoolError):
        await pool.start()
    with pytest.raises(PoolClosed):
        await pool.run(support.pid)
    await pool.aclose()


# -- programs ----------------------------------------------------------------------------------

PROGRAM = """
import asyncio, os, signal, sys
import asyncipc
from tests.pool import support

{functions}

async def main():
    async with asyncipc.Pool(2, start_method=sys.argv[1], grace=0.1) as pool:
        zygote = await pool.run(support.parent)
        pids = {{os.getpid(), zygote, *(worker.pid for worker in pool.workers)}}
        print(*pids, flush=True)
        {body}

if __name__ == "__main__":
    try:
        asyncipc.run(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
"""


@contextmanager
def program(
    folder: Path, start_method: str, body: str, functions: str = "", prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A program with a pool; it begins with a line of the processes that belong to it."""
    path = folder / "program.py"
    path.write_text(PROGRAM.format(body=body, functions=functions))
    process = subprocess.Popen(
        [*prefix, sys.executable, path, start_method],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def all_watched(process: subprocess.Popen[str]) -> Iterator[list[Watched]]:
    with ExitStack() as stack:
        pids = map(int, first_line(process).split())
        yield [stack.enter_context(watched(pid)) for pid in pids]


SPIN = """
def spin():
    os.write(1, b"spinning\\n")
    while True:
        pass
"""

HANG = """
import ctypes
def hang():
    mutex = ctypes.create_string_buffer(256)
    library = ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b"hanging\\n")
    library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_ctrl_c_ends_everything_quietly(start_method: str, tmp_path: Path) -> None:
    body = "await asyncio.gather(*(pool.submit(spin) for _ in range(2)))"
    with program(tmp_path, start_method, body, SPIN) as process, all_watched(process) as everybody:
        assert [first_line(process) for _ in range(2)] == ["spinning\n"] * 2
        os.killpg(process.pid, signal.SIGINT)
        _, errors = await asyncio.to_thread(process.communicate, timeout=LIMIT)
        assert process.returncode == 1
        assert errors == "stopped\n"  # the application's own, and not one word of the others
        for one in everybody:
            await one.ended()


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize(
    ("function", "source", "said"),
    [("spin", SPIN, "spinning\n"), ("hang", HANG, "hanging\n")],
    ids=["spin", "hang"],
)
@in_workers
async def test_nothing_outlives_an_application_that_is_killed(
    function: str, source: str, said: str, start_method: str, tmp_path: Path
) -> None:
    body = f"await pool.run({function})"
    with (
        program(tmp_path, start_method, body, source) as process,
        all_watched(process) as all_of_it,
    ):
        assert first_line(process) == said
        process.kill()
        for one in all_of_it:
            await one.ended(2)


@in_workers
async def test_nothing_outlives_an_application_whose_zygote_is_stuck(tmp_path: Path) -> None:
    # A stopped process does not even see the end of its socket.
    body = "os.kill(zygote, signal.SIGSTOP); print('stopped', flush=True); await pool.run(spin)"
    with program(tmp_path, "zygote", body, SPIN) as process, all_watched(process) as everybody:
        assert {first_line(process) for _ in range(2)} == {"stopped\n", "spinning\n"}
        process.kill()
        for one in everybody:
            await one.ended(2)


@in_workers
async def test_a_zygote_that_hangs_while_it_imports_dies_with_the_application(
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(
        "import asyncipc\n"
        "if __name__ == '__main__':\n"
        "    async def main():\n"
        "        async with asyncipc.Pool(1, preload=['hanging_module']): ...\n"
        "    asyncipc.run(main())\n"
    )
    (tmp_path / "hanging_module.py").write_text(
        f"import os, signal{HANG}\nos.write(2, b'%d\\n' % os.getpid())\nos.write = lambda *_: None"
        "\nhang()"
    )
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stderr is not None
            zygote = Watched(int(await asyncio.to_thread(process.stderr.readline)))
        finally:
            process.kill()
        try:
            await zygote.ended(2)
        finally:
            zygote.close()


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_workers_end_with_an_application_that_forgets_its_pool(
    start_method: str, tmp_path: Path
) -> None:
    with (
        program(tmp_path, start_method, "os._exit(3)") as process,
        all_watched(process) as all_of_it,
    ):
        for one in all_of_it:
            await one.ended(2)
        assert process.wait() == 3


LEAVE_A_THREAD = """
def leave_a_thread():
    import threading
    threading.Thread(target=threading.Event().wait).start()
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_thread_that_a_task_leaves_holds_up_nothing(
    start_method: str, tmp_path: Path
) -> None:
    body = "await pool.run(leave_a_thread)\n    print('over')"
    with program(tmp_path, start_method, body, LEAVE_A_THREAD) as process:
        output, errors = await asyncio.to_thread(process.communicate, timeout=LIMIT)
        assert process.returncode == 0, errors
        assert errors == ""
        assert output.splitlines()[1] == "over"


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


def can_be_pid_1() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = subprocess.run([*CONTAINER, "true"], capture_output=True, check=False)
    return trial.returncode == 0


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_an_application_that_is_pid_1(start_method: str, tmp_path: Path) -> None:
    if not can_be_pid_1():
        pytest.skip("no process namespaces can be made here")
    body = (
        "assert os.getpid() == 1\n"
        "        assert await pool.run(support.add, 1, 2) == 3\n"
        "        worker = pool.workers[0]\n"
        "        replaced = asyncio.Event()\n"
        "        pool.on_worker_started(lambda *_: replaced.set())\n"
        "        os.kill(worker.pid, signal.SIGKILL)\n"
        "        await replaced.wait()\n"
        "        if zygote != 1:\n"
        "            os.kill(zygote, signal.SIGKILL)\n"
        "            pool.workers[0].pause()\n"
        "            task = pool.submit(support.add, 1, 2)\n"
        "            assert await task == 3\n"
        "    print('left:', *(entry for entry in os.listdir('/proc') if entry.isdigit()))"
    )
    with program(tmp_path, start_method, body, prefix=CONTAINER) as process:
        output, errors = await asyncio.to_thread(process.communicate, timeout=LIMIT)
        assert process.returncode == 0, errors
        assert errors == ""
        assert output.splitlines()[1] == "left: 1"


LEAVE_CHILDREN = """
def leave_children(kinds):
    import subprocess
    children = [
        subprocess.Popen(["sleep", "1000"], start_new_session=kind == "of its own")
        for kind in kinds
    ]
    os.kill(os.getpid(), signal.SIGKILL)

def states():
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        yield name, rest.split()[0]
"""


@in_workers
async def test_pid_1_is_left_no_orphans(tmp_path: Path) -> None:
    if not can_be_pid_1():
        pytest.skip("no process namespaces can be made here")
    body = (
        "for _ in range(3):\n"
        "            try:\n"
        "                await pool.run(leave_children, ['of the group', 'of its own'])\n"
        "            except asyncipc.WorkerDied:\n"
        "                pass\n"
        "        assert await pool.run(support.add, 1, 2) == 3\n"
        "    print(*sorted(states()))"
    )
    with program(tmp_path, "zygote", body, LEAVE_CHILDREN, prefix=CONTAINER) as process:
        output, errors = await asyncio.to_thread(process.communicate, timeout=LIMIT)
        assert process.returncode == 0, errors
        assert errors == ""
        # Those that made sessions of their own live on, and nobody is a zombie.
        left = output.splitlines()[1]
        assert left.count("('sleep', 'S')") == 3
        assert "'Z'" not in left


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_nothing_outlives_pid_1(start_method: str, tmp_path: Path) -> None:
    if not can_be_pid_1():
        pytest.skip("no process namespaces can be made here")
    with program(tmp_path, start_method, "await pool.run(spin)", SPIN, CONTAINER) as process:
        first_line(process)
        assert first_line(process) == "spinning\n"
        pids = _descendants(process.pid)
        assert len(pids) >= 3
        with ExitStack() as stack:
            everybody = [stack.enter_context(watched(pid)) for pid in pids]
            os.kill(pids[0], signal.SIGKILL)
            for one in everybody:
                await one.ended(2)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found
