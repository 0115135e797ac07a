"""Running functions: ``run`` and ``submit``, results, errors, and what cannot travel."""

import asyncio
import functools
import gc
import math
import operator
import os
import pathlib
import pickle
import sys
import threading
import types
from typing import Any

import pytest

from asyncipc import (
    Busy,
    DecodeError,
    EncodeError,
    Limits,
    Peer,
    Pool,
    PoolClosed,
    PoolError,
    PoolTask,
    RemoteError,
    RequestCancelled,
    memory_pair,
)
from tests.pool import support
from tests.pool.support import START_METHODS, Adder, AsyncAdder, Reports, in_workers, open_pool

MIB = 1024 * 1024


# -- what can be run ---------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_functions_of_every_kind(start_method: str) -> None:
    async with open_pool(start_method=start_method) as pool:
        assert await pool.run(support.add, 1, 2) == 3
        assert await pool.run(support.add_async, 1, 2) == 3
        assert await pool.run(support.give_back, 1, b=2) == ((1,), {"b": 2})
        assert await pool.run(math.sqrt, 4) == 2
        assert await pool.run(operator.methodcaller("upper"), "text") == "TEXT"
        assert await pool.run(functools.partial(support.add, 1), right=2) == 3
        assert await pool.run(functools.partial(support.add_async, 1), 2) == 3
        assert await pool.run(pathlib.PurePath("a").joinpath, "b") == pathlib.PurePath("a/b")
        assert await pool.run(Adder(5), 2) == 7
        assert await pool.run(AsyncAdder(5), 2) == 7
        assert await pool.run(Adder(5).subtract, 2) == 3
        assert await pool.run(Adder, 5) is not None
        assert await pool.run(support.pid) != await pool.run(support.parent)
        assert await pool.run(support.runs_on_main_thread)


async def test_a_thousand_tasks_each_get_their_own_result() -> None:
    async with open_pool(2) as pool:
        tasks = [pool.submit(support.add, number, 0.5) for number in range(1000)]
        assert await asyncio.gather(*tasks) == [number + 0.5 for number in range(1000)]
        statistics = pool.statistics()
        assert statistics.submitted == statistics.done == 1000
        assert statistics.running == statistics.queued == statistics.failed == 0
        assert sum(worker.tasks_done for worker in pool.workers) == 1000


@in_workers
async def test_options_named_like_parameters_are_given_with_partial() -> None:
    async with open_pool() as pool:
        function = functools.partial(support.give_back, timeout=7)
        assert await pool.run(function, retries=0) == ((), {"timeout": 7})


async def test_large_values_arrive_as_they_were() -> None:
    value = bytes(range(256)) * (4 * MIB // 256)
    async with open_pool() as pool:
        assert await pool.run(support.echo, value) == value
        writable = await pool.run(support.echo, bytearray(value))
        assert type(writable) is bytearray
        assert writable == value
        view = await pool.run(support.echo, pickle.PickleBuffer(bytearray(value)))
        assert view == value


@in_workers
async def test_arrays_arrive_writable_with_their_buffers_out_of_band() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(MIB)
    async with open_pool() as pool:
        came = await pool.run(support.echo, array)
        assert (came == array).all()
        came[0] = 1


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_arrays_are_used_where_they_arrive_in_shared_memory(start_method: str) -> None:
    """Of both directions more than an arena holds: it comes back, without a collection of garbage.

    An array that stands in the arena still when it is used was not copied.
    """
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(2 * MIB)
    rounds = Limits().arena // array.nbytes + 2
    async with open_pool(start_method=start_method) as pool:
        await pool.run(gc.disable)
        gc.disable()
        try:
            for _ in range(rounds):
                place, came = await pool.run(support.place_and_double, array)
                assert "/memfd:asyncipc" in place
                assert "/memfd:asyncipc" in support.place_of(came)
                assert came[-1] == 2 * array[-1]
                came[0] = 1
                del came
            assert array[0] == 0
        finally:
            gc.enable()


# -- how many at once --------------------------------------------------------------------------


async def test_plain_functions_run_one_at_a_time_in_a_worker(reports: Reports) -> None:
    async with open_pool(concurrency=8) as pool:
        first = pool.submit(support.ask, reports.address, "first")
        second = pool.submit(support.ask, reports.address, "second")
        report = await reports.next("first")
        assert pool.workers[0].state == "busy"
        assert pool.statistics().queued == 1
        assert reports.is_empty
        reports.answer(report, "1")
        assert await first == "1"
        reports.answer(await reports.next("second"), "2")
        assert await second == "2"


async def test_plain_functions_run_on_all_workers_at_once(reports: Reports) -> None:
    async with open_pool(3) as pool:
        tasks = [pool.submit(support.ask, reports.address) for _ in range(3)]
        came = [await reports.next("started") for _ in tasks]
        assert {report.pid for report in came} == {worker.pid for worker in pool.workers}
        for report in came:
            reports.answer(report)
        assert await asyncio.gather(*tasks) == ["go"] * 3


async def test_as_many_async_functions_run_at_once_as_concurrency_says(reports: Reports) -> None:
    async with open_pool(concurrency=3) as pool:
        tasks = [pool.submit(support.ask_async, reports.address, str(i)) for i in range(4)]
        plain = pool.submit(support.pid)
        came = [await reports.next(str(i)) for i in range(3)]
        assert pool.workers[0].tasks_running == 3
        assert pool.statistics().queued == 2
        assert reports.is_empty
        reports.answer(came[0], "one")
        assert await tasks[0] == "one"
        came.append(await reports.next("3"))
        assert not plain.done()  # it needs the worker for itself
        for report in came[1:]:
            reports.answer(report)
        assert await plain == pool.workers[0].pid
        assert await asyncio.gather(*tasks[1:]) == ["go"] * 3


async def test_no_more_may_wait_than_max_queued_says(reports: Reports) -> None:
    async with open_pool(max_queued=1) as pool:
        running = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        waiting = pool.submit(support.pid)
        with pytest.raises(Busy, match="max_queued is 1"):
            pool.submit(support.pid)
        reports.answer(report)
        assert [await running, await waiting] == ["go", report.pid]
        assert pool.statistics().submitted == 2


async def test_a_pool_that_lets_nothing_wait(reports: Reports) -> None:
    async with open_pool(max_queued=0) as pool:
        running = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        with pytest.raises(Busy, match="max_queued is 0"):
            pool.submit(support.pid)
        reports.answer(report)
        assert await running == "go"


# -- tasks -------------------------------------------------------------------------------------


async def test_a_task_tells_how_it_stands(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.ask, reports.address)
        over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task.add_done_callback(over.set_result)
        report = await reports.next("started")
        assert not task.done()
        assert repr(task) == "<PoolTask tests.pool.support.ask running or waiting>"
        reports.answer(report, "answer")
        assert [await task, await task] == ["answer", "answer"]
        assert await over is task
        assert task.done()
        assert not task.cancelled()
        assert not task.failed()
        assert not task.cancel()
        assert repr(task) == "<PoolTask tests.pool.support.ask done>"

        failed: PoolTask[None] = pool.submit(support.fail_with, "demanding")
        with pytest.raises(RemoteError):
            await failed
        assert failed.done()
        assert failed.failed()
        assert repr(failed) == "<PoolTask tests.pool.support.fail_with failed>"


async def test_several_may_wait_for_one_task(reports: Reports) -> None:
    async with open_pool() as pool:
        task = pool.submit(support.ask, reports.address)

        async def wait() -> str:
            return await task

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        reports.answer(await reports.next("started"), "answer")
        assert await asyncio.gather(*waiting) == ["answer"] * 3


async def test_a_task_inherits_the_time_that_its_caller_still_waits() -> None:
    async with open_pool() as pool:
        peer = Peer()

        @peer.on_request
        async def timeouts() -> list[float | None]:
            tasks = [pool.submit(support.pid), pool.submit(support.pid, timeout=None)]
            await asyncio.gather(*tasks)
            return [task.timeout for task in tasks]

        async with memory_pair(Peer(), peer) as (session, _):
            inherited, none = await session.request("timeouts", timeout=17)
            assert 0 < inherited <= 17
            assert none is None
            assert (await session.request("timeouts", timeout=None))[0] is None


# -- errors of functions -----------------------------------------------------------------------


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_exceptions_come_back_with_the_remote_traceback(start_method: str) -> None:
    async with open_pool(start_method=start_method) as pool:
        with pytest.raises(ZeroDivisionError, match="no way") as caught:
            await pool.run(support.fail, ZeroDivisionError("no way"))
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteError)
        assert cause.type == "ZeroDivisionError"
        assert cause.message == "no way"
        assert cause.notes == ("seen in a worker",)
        assert "in fail\n    raise error" in cause.traceback
        assert "asyncipc" not in cause.traceback
        assert caught.value.__notes__ == ["seen in a worker"]

        with pytest.raises(support.CustomError) as custom:
            await pool.run(support.fail_async, support.CustomError(7))
        assert custom.value.code == 7
        assert "in fail_async" in str(custom.value.__cause__)
        assert await pool.run(support.add, 1, 2) == 3


@in_workers
async def test_exceptions_that_cannot_come_back_are_told_of() -> None:
    cases = [
        ("unpicklable", "tests.pool.support.HoldingError", "held"),
        ("demanding", "tests.pool.support.DemandingError", "this and that"),
        ("SystemExit", "SystemExit", "3"),
        ("KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("GeneratorExit", "GeneratorExit", ""),
        ("StopIteration", "StopIteration", ""),
    ]
    async with open_pool() as pool:
        worker = await pool.run(support.pid)
        for name, kind, text in cases:
            with pytest.raises(RemoteError) as caught:
                await pool.run(support.fail_with, name)
            assert type(caught.value) is RemoteError
            assert (caught.value.type, caught.value.message) == (kind, text)
            assert "in fail_with" in caught.value.traceback
        assert await pool.run(support.pid) == worker


@in_workers
async def test_a_function_that_cancels_itself_does_not_look_like_a_cancelled_caller() -> None:
    async with open_pool() as pool:
        with pytest.raises(RequestCancelled, match="in the worker"):
            await pool.run(support.fail_with, "CancelledError")
        with pytest.raises(RequestCancelled, match="in the worker"):
            await pool.run(support.fail_async, asyncio.CancelledError())


# -- what cannot travel ------------------------------------------------------------------------


@in_workers
async def test_what_cannot_be_pickled_is_refused_and_breaks_nothing() -> None:
    def inner() -> None: ...

    async with open_pool() as pool:
        worker = await pool.run(support.pid)
        with pytest.raises(EncodeError, match=r"<lambda> cannot be given to a worker"):
            pool.submit(lambda: None)
        with pytest.raises(EncodeError, match=r"inner cannot be given .* importable by its name"):
            await pool.run(inner)
        with pytest.raises(EncodeError, match=r"arguments for tests\.pool\.support\.echo .*lock"):
            await pool.run(support.echo, threading.Lock())
        with pytest.raises(EncodeError, match=r"result of .*make_unpicklable, a _thread\.lock"):
            await pool.run(support.make_unpicklable)
        assert pool.statistics().submitted == 2
        assert await pool.run(support.pid) == worker


@in_workers
async def test_what_cannot_be_unpickled_is_told_and_breaks_nothing() -> None:
    async with open_pool() as pool:
        worker = await pool.run(support.pid)
        with pytest.raises(DecodeError, match=r"arguments for .*echo cannot be unpickled.*not to"):
            await pool.run(support.echo, support.Unloadable())
        with pytest.raises(DecodeError, match=r"result of .*make_unloadable cannot .*not to be"):
            await pool.run(support.make_unloadable)
        assert await pool.run(support.pid) == worker


@in_workers
async def test_a_function_that_the_worker_does_not_have() -> None:
    module = types.ModuleType("only_here")
    exec("def function(): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        async with open_pool() as pool:
            with pytest.raises(DecodeError, match=r"cannot find the function.*'only_here'"):
                await pool.run(module.function)
            assert await pool.run(support.add, 1, 2) == 3
    finally:
        del sys.modules["only_here"]


# -- using it wrongly --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers is from 1 to 4096 workers, not 0"),
        ({"workers": "2"}, TypeError, "workers is a number of workers, not '2'"),
        ({"workers": True}, TypeError, "not True"),
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"max_tasks": 0}, ValueError, "max_tasks"),
        ({"max_rss": 1.5}, TypeError, "max_rss is a number of bytes"),
        ({"max_queued": -1}, ValueError, "max_queued"),
        ({"spawn_timeout": -1}, ValueError, "spawn_timeout"),
        ({"spawn_timeout": math.nan}, ValueError, "spawn_timeout"),
        ({"grace": None}, TypeError, "grace is a number of seconds, not None"),
        ({"niceness": 20}, ValueError, "niceness is from -20 to 19"),
        ({"preload": "numpy"}, TypeError, "list of names of modules, not 'numpy'"),
        ({"preload": [math]}, TypeError, "list of names of modules"),
        ({"start_method": "fork"}, ValueError, r"one of \('zygote', 'spawn'\), not 'fork'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Pool(**options)


async def test_bad_options_of_a_task() -> None:
    async with open_pool() as pool:
        with pytest.raises(TypeError, match="retries"):
            await pool.run(support.pid, retries="1")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="retries"):
            await pool.run(support.pid, retries=-1)
        with pytest.raises(ValueError, match="timeout"):
            await pool.run(support.pid, timeout=-1)
        with pytest.raises(TypeError, match="timeout"):
            await pool.run(support.pid, timeout="1")  # type: ignore[call-overload]
        assert pool.statistics().submitted == 0


async def test_a_pool_that_is_not_open_takes_nothing() -> None:
    pool = Pool(1)
    assert repr(pool) == "<Pool of 1 workers, not started>"
    assert pool.workers == []
    assert set(pool.statistics()) == {0}
    await takes_nothing(pool)
    async with pool:
        assert repr(pool) == "<Pool of 1 workers, open>"
        with pytest.raises(PoolError, match="make another"):
            await pool.start()
        assert await pool.run(support.add, 1, 2) == 3
    assert pool.workers == []
    await takes_nothing(pool)
    with pytest.raises(PoolError, match="make another"):
        await pool.start()


async def takes_nothing(pool: Pool) -> None:
    with pytest.raises(PoolClosed, match="takes no tasks"):
        await pool.run(support.pid)
    with pytest.raises(PoolClosed, match="takes no tasks"):
        pool.submit(support.pid)
    with pytest.raises(PoolClosed, match="takes no tasks"):
        [_ async for _ in pool.map(support.double, [1])]
    with pytest.raises(PoolClosed):
        await pool.request("method")
    with pytest.raises(PoolClosed):
        await pool.broadcast("method")
    with pytest.raises(PoolClosed):
        await pool.resize(2)


@in_workers
async def test_as_many_workers_as_processors_by_default() -> None:
    async with Pool() as pool:
        assert len(pool.workers) == len(os.sched_getaffinity(0))


def in_disguise(address: bytes, text: str) -> Any:
    """A plain function, as far as anybody can tell, whose result has to be awaited."""
    return support.ask_async(address, text)


@in_workers
async def test_a_plain_function_that_returns_a_coroutine_runs_alone(reports: Reports) -> None:
    async with open_pool() as pool:
        for _ in range(3):  # known to be quick, so that others may wait behind it in the worker
            task = pool.submit(in_disguise, reports.address, "first")
            reports.answer(await reports.next("first"))
            assert await task == "go"
        first = pool.submit(in_disguise, reports.address, "first")
        second = pool.submit(in_disguise, reports.address, "second")
        report = await reports.next("first")
        assert reports.is_empty
        reports.answer(report)
        assert await first == "go"
        reports.answer(await reports.next("second"))
        assert await second == "go"
