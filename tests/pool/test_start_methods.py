"""What workers are born with, by either way: what they inherit, and what is their own."""

import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncipc import PoolError
from asyncipc.pool.options import default_start_method
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, in_workers, open_pool
from tests.programs import environment

# Where this module was imported first in a process of the pool, kept across a fork.
imported_in = os.getpid()


def first_import() -> int:
    return imported_in


def look_around() -> dict[str, Any]:
    """What a worker is like."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "session": os.getsid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "path": sys.path,
        "arguments": sys.argv,
        "folder": os.getcwd(),
        "stdin": os.readlink("/proc/self/fd/0"),
    }


def test_workers_are_forked_from_a_zygote_by_default() -> None:
    assert default_start_method() == "zygote"


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_what_a_worker_is_like(start_method: str) -> None:
    async with open_pool(2, start_method=start_method) as pool:
        found = await pool.run(look_around)
        assert found["pid"] == found["group"] == found["session"]
        assert found["pid"] in [worker.pid for worker in pool.workers]
        assert (found["parent"] == os.getpid()) is (start_method == "spawn")
        assert found["threads"] == 1
        assert found["interrupt"]
        assert found["blocked"] == []
        assert found["path"] == sys.path
        assert found["arguments"] == sys.argv
        assert found["folder"] == os.getcwd()
        assert found["stdin"] == "/dev/null"


@in_workers
async def test_the_zygote_has_neither_loop_nor_thread() -> None:
    async with open_pool(preload=["tests.pool.test_start_methods"]) as pool:
        zygote = await pool.run(support.parent)
        assert os.listdir(f"/proc/{zygote}/task") == [str(zygote)]
        targets = [
            os.readlink(f"/proc/{zygote}/fd/{fd}") for fd in os.listdir(f"/proc/{zygote}/fd")
        ]
        assert not [target for target in targets if "eventpoll" in target]
        assert await pool.run(first_import) == zygote
        assert Path(f"/proc/{zygote}/stat").read_text().split()[3] == str(os.getpid())


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_preloaded_modules_are_there_when_the_worker_is(start_method: str) -> None:
    async with open_pool(preload=["this", "wave"], start_method=start_method) as pool:
        assert await pool.run(has_modules, ["this", "wave"]) == [True, True]
        assert await pool.run(has_modules, ["there_is_no_such_module"]) == [False]


def has_modules(names: list[str]) -> list[bool]:
    return [name in sys.modules for name in names]


@in_workers
async def test_numpy_can_be_preloaded_with_its_native_threads() -> None:
    pytest.importorskip("numpy")
    async with open_pool(2, preload=["numpy"]) as pool:
        assert await pool.run(has_modules, ["numpy"]) == [True]
        results = [result async for result in pool.map(draw, range(2), chunk_size=1)]
        drawn = dict(results)
        assert len(drawn) == len({tuple(numbers) for numbers in drawn.values()})


def draw(_: int) -> tuple[int, list[float]]:
    import numpy  # noqa: PLC0415 - in the worker alone, where the zygote has it

    square = numpy.ones((200, 200))
    assert (square @ square)[0, 0] == 200
    return os.getpid(), list(numpy.random.random(3))  # noqa: NPY002 - the global one is meant


@in_workers
async def test_a_preload_that_leaves_a_python_thread_running_is_refused() -> None:
    with pytest.raises(PoolError, match=r"Python threads .*: a thread that stays\. .*\"spawn\""):
        async with open_pool(preload=["tests.pool.threaded_module"]):
            raise AssertionError("it is open")
    async with open_pool(preload=["tests.pool.threaded_module"], start_method="spawn") as pool:
        assert await pool.run(support.add, 1, 2) == 3


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_workers_have_random_numbers_of_their_own(
    start_method: str, reports: Reports
) -> None:
    async with open_pool(3, start_method=start_method, preload=["random"]) as pool:
        tasks = [pool.submit(draw_and_ask, reports.address) for _ in range(3)]
        for report in [await reports.next() for _ in tasks]:
            reports.answer(report)
        assert len({await task for task in tasks}) == 3


def draw_and_ask(address: bytes) -> float:
    drawn = random.random()
    support.ask(address)
    return drawn


def open_sockets() -> set[str]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        if target.startswith(("socket:", "pipe:")):
            found.add(target)
    return found


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_no_worker_holds_what_is_anothers(start_method: str, reports: Reports) -> None:
    """Sockets and pipes, those of the zygote, the application and two pools included."""
    async with open_pool(3, start_method=start_method) as one, open_pool(1) as other:
        tasks = [one.submit(sockets_and_ask, reports.address) for _ in range(3)]
        tasks.append(other.submit(sockets_and_ask, reports.address))
        for report in [await reports.next() for _ in tasks]:
            reports.answer(report)
        found = [await task for task in tasks]
        for held in found:
            # Its connection and the one made by the task; stderr and the lifeline.
            assert len(held - _lifelines(held)) >= 2
            assert len(_lifelines(held)) >= 2
        for index, held in enumerate(found):
            others = set().union(*(found[:index] + found[index + 1 :]))
            assert not held & others
            assert not held & open_sockets() - _lifelines(held)


def _lifelines(held: set[str]) -> set[str]:
    """The pipes: of stderr and the lifeline the application has the other ends."""
    return {target for target in held if target.startswith("pipe:")}


def sockets_and_ask(address: bytes) -> set[str]:
    with socket.socket():  # there is one at the least, or this function sees none
        found = open_sockets()
    support.ask(address)
    return found


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_a_worker_imports_little(start_method: str) -> None:
    """In a process of its own: this one has everything already."""
    code = f"""
import asyncio, json, sys, operator
import asyncipc
async def main():
    async with asyncipc.Pool(1, start_method={start_method!r}) as pool:
        print(json.dumps(await pool.run(eval, "sorted(__import__('sys').modules)")))
asyncio.run(main())
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    modules = json.loads(process.stdout)
    unwanted = re.compile(
        r"asyncipc\.(peer|pool\.(pool|engine|supervisor|scheduler|starting|link|roster)|service)\b"
        r"|msgspec|anyio|multiprocessing"
    )
    assert [name for name in modules if unwanted.match(name)] == []


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_what_workers_print_appears_where_the_application_prints(
    start_method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_pool(start_method=start_method) as pool:
        await pool.run(print_both, "by a task")
    assert capfd.readouterr().out == "by a task\nby os.write\n"


def print_both(text: str) -> None:
    print(text, flush=True)
    os.write(1, b"by os.write\n")


@in_workers
async def test_a_worker_whose_descriptor_does_not_fit_is_given_up_at_once() -> None:
    """The kernel drops a descriptor that arrives where there is no room for it."""
    async with open_pool() as pool:
        zygote = await pool.run(support.parent)
        os.kill(zygote, signal.SIGSTOP)  # its answer comes when there is no room any more
        before = len(os.listdir("/proc/self/fd"))
        resizing = asyncio.create_task(pool.resize(2))
        for _ in range(5):
            await asyncio.sleep(0)
        # A socket, the reading end of its stderr, and both of its lifeline: it was asked for.
        assert len(os.listdir("/proc/self/fd")) == before + 4
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            os.kill(zygote, signal.SIGCONT)
            with pytest.raises(PoolError, match="no descriptor is left for the worker's pidfd"):
                async with asyncio.timeout(LIMIT):
                    await resizing
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await pool.run(support.add, 1, 2) == 3
