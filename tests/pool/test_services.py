"""``Pool(service=...)``: named handlers in every worker, by ``request`` and ``broadcast``."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from asyncipc import (
    InvalidParams,
    MethodNotFound,
    PoolClosed,
    PoolError,
    Progress,
    RemoteError,
    RequestTimeout,
    WorkerDied,
    current_call,
)
from tests.pool import support
from tests.pool.support import LIMIT, START_METHODS, Reports, Watch, in_workers, open_pool
from tests.session.support import failure


class Service:
    """Handlers as a session's registry takes them, with a state of their own in each worker."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.made_in = os.getpid()

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    def made_here(self) -> bool:
        return self.made_in == os.getpid()

    async def wait(self, address: bytes) -> str:
        return await support.ask_async(address)

    def block(self, address: bytes) -> str:
        return support.ask(address)

    async def stay(self, address: bytes) -> None:
        """Go on whatever is asked."""
        support.tell(address, "started")
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    def fail(self) -> None:
        raise LookupError("not in the service")

    async def count(self, total: int) -> str:
        for done in range(total):
            await current_call().progress(done)
        return "counted"

    def leave(self, code: int) -> None:
        os._exit(code)

    def __handlers__(self) -> Iterator[Any]:
        for function in (
            self.add,
            self.made_here,
            self.wait,
            self.block,
            self.stay,
            self.fail,
            self.count,
            self.leave,
        ):
            yield "request", function.__name__, function, {}
        yield "request", "pid", support.pid, {}


def make_service() -> Service:
    return Service(100)


@pytest.mark.parametrize("start_method", START_METHODS)
@in_workers
async def test_every_worker_has_a_service_of_its_own(start_method: str) -> None:
    async with open_pool(2, service=Service, start_method=start_method) as pool:
        assert await pool.broadcast("made_here") == [True, True]
        pids = await pool.broadcast("pid")
        assert pids == [worker.pid for worker in pool.workers]
        totals = [await pool.request("add", {"number": 1}) for _ in range(10)]
        assert await pool.broadcast("add", [0]) in ([10, 0], [5, 5], [0, 10])
        assert len(totals) == 10
        assert await pool.run(support.add, 1, 2) == 3


async def test_an_object_or_what_makes_one() -> None:
    async with open_pool(service=make_service) as pool:
        assert await pool.request("add", 5) == 105
        assert await pool.request("made_here")
    async with open_pool(service=Service(7)) as pool:
        assert await pool.request("add", 5) == 12
        assert not await pool.request("made_here")


async def test_what_makes_no_service_keeps_the_pool_from_opening() -> None:
    with pytest.raises(PoolError, match=r"could not get ready.*expected an object with a __handle"):
        async with open_pool(service=support.pid):
            raise AssertionError("it is open")


async def test_errors_of_a_service() -> None:
    async with open_pool(service=Service) as pool:
        with pytest.raises(MethodNotFound, match="there_is_none"):
            await pool.request("there_is_none")
        with pytest.raises(InvalidParams, match="number"):
            await pool.request("add", {"number": "one"})
        with pytest.raises(RemoteError, match="not in the service") as caught:
            await pool.request("fail")
        assert caught.value.type == "LookupError"
        with pytest.raises(RemoteError, match="not in the service"):
            await pool.broadcast("fail")
        assert await pool.request("add", 1) == 1
        assert pool.statistics().submitted == 0


async def test_without_a_service_there_are_no_methods() -> None:
    async with open_pool() as pool:
        with pytest.raises(MethodNotFound):
            await pool.request("add", 1)


async def test_a_request_goes_to_the_worker_with_the_least_to_do(reports: Reports) -> None:
    async with open_pool(2, service=Service) as pool:
        task = pool.submit(support.ask, reports.address)
        report = await reports.next("started")
        [idle] = {worker.pid for worker in pool.workers} - {report.pid}
        assert {await pool.request("pid") for _ in range(5)} == {idle}
        reports.answer(report)
        await task

        waiting = [asyncio.create_task(pool.request("wait", [reports.address])) for _ in range(4)]
        came = [await reports.next("started") for _ in waiting]
        assert sorted(came.count(report) for report in came) == [1, 1, 1, 1]
        pids = [report.pid for report in came]
        assert sorted(map(pids.count, set(pids))) == [2, 2]
        for report in came:
            reports.answer(report, "done")
        assert await asyncio.gather(*waiting) == ["done"] * 4


async def test_a_request_goes_to_a_worker_that_can_answer(reports: Reports) -> None:
    """A plain function lets nothing in before it is over, however many requests others have."""
    async with open_pool(2, service=Service) as pool:
        task = pool.submit(support.ask, reports.address)
        blocked = await reports.next("started")
        waiting = [asyncio.create_task(pool.request("wait", [reports.address])) for _ in range(3)]
        came = [await reports.next("started") for _ in waiting]
        assert blocked.pid not in {report.pid for report in came}
        for report in (blocked, *came):
            reports.answer(report, "done")
        assert await asyncio.gather(task, *waiting) == ["done"] * 4


async def test_tasks_go_to_workers_without_requests(reports: Reports) -> None:
    async with open_pool(2, service=Service) as pool:
        waiting = asyncio.create_task(pool.request("block", [reports.address]))
        report = await reports.next("started")
        [idle] = {worker.pid for worker in pool.workers} - {report.pid}
        assert {await pool.run(support.pid) for _ in range(5)} == {idle}
        reports.answer(report, "done")
        assert await waiting == "done"


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("method", ["block", "stay"])
@pytest.mark.parametrize("way", ["timeout", "cancel"])
@in_workers
async def test_a_request_that_does_not_stop_is_ended_with_its_worker(
    method: str, way: str, start_method: str, reports: Reports
) -> None:
    watch = Watch()
    options = {"service": Service, "start_method": start_method, **watch.options}
    async with open_pool(**options) as pool:
        [worker] = pool.workers
        timeout = 0.3 if way == "timeout" else None
        waiting = asyncio.create_task(pool.request(method, [reports.address], timeout=timeout))
        await reports.next("started")
        if way == "timeout":
            with pytest.raises(RequestTimeout):
                await waiting
        else:
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert worker.state == "busy"  # until it says otherwise
        assert pool.statistics().idle == 0
        async with asyncio.timeout(LIMIT):
            task = pool.submit(support.pid)
            assert await pool.request("pid") != worker.pid
            assert await task != worker.pid
        died, error = await watch.next_died()
        assert died.pid == worker.pid
        assert isinstance(error, WorkerDied)
        assert error.signal in (signal.SIGTERM, signal.SIGKILL)
        assert worker.state == "ended"


@pytest.mark.parametrize("method", ["wait", "block"])
async def test_a_request_that_stops_late_leaves_its_worker_alive(
    method: str, reports: Reports
) -> None:
    async with open_pool(service=Service, grace=LIMIT) as pool:
        [worker] = pool.workers
        waiting = asyncio.create_task(pool.request(method, [reports.address]))
        report = await reports.next("started")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        blocks = method == "block"  # the other is woken by it, and may be over already
        if blocks:
            assert worker.state == "busy"
        task = pool.submit(support.pid)
        if blocks:
            assert pool.statistics().queued == 1
            reports.answer(report)
        assert await task == await pool.request("pid") == worker.pid
        assert worker.state == "idle"
        if not blocks:
            await reports.next("cancelled")


class Looking:
    """A handler that looks, beside a task that does."""

    ASKED = 3000
    looked = 0

    def look(self, number: int) -> int:
        assert not current_call().cancelled
        Looking.looked += 1
        return number

    def __handlers__(self) -> Iterator[Any]:
        yield "request", "look", self.look, {}


def look_until_all_have(address: bytes) -> int:
    support.tell(address, "started")
    until = monotonic() + LIMIT
    while Looking.looked < Looking.ASKED and monotonic() < until:
        assert not current_call().cancelled
    return Looking.looked


async def test_who_looks_while_others_are_served_reads_nothing_out_of_turn(
    reports: Reports,
) -> None:
    async with open_pool(service=Looking) as pool:
        task = pool.submit(look_until_all_have, reports.address)
        await reports.next("started")
        numbers = range(Looking.ASKED)
        asked = await asyncio.gather(*(pool.request("look", [number]) for number in numbers))
        assert asked == list(numbers)
        assert await task == Looking.ASKED


async def test_timeouts_cover_the_wait_for_a_worker() -> None:
    async with open_pool(service=Service) as pool:
        [worker] = pool.workers
        worker.pause()
        for call in (pool.request, pool.broadcast):
            with pytest.raises(RequestTimeout, match=r"no worker .* take 'pid' within 0\.2 s"):
                async with asyncio.timeout(LIMIT):
                    await call("pid", timeout=0.2)
            with pytest.raises(ValueError, match="timeout must not be negative"):
                await call("pid", timeout=-1)
            waiting = asyncio.create_task(call("pid", timeout=LIMIT))
            await asyncio.sleep(0)
            worker.resume()
            assert await waiting in (worker.pid, [worker.pid])
            worker.pause()


@pytest.mark.parametrize("method", ["request", "broadcast"])
@pytest.mark.parametrize("drain", [True, False])
async def test_who_waits_for_a_worker_hears_of_the_end(method: str, drain: bool) -> None:
    async with open_pool(service=Service) as pool:
        [worker] = pool.workers
        worker.pause()
        waiting = asyncio.create_task(getattr(pool, method)("pid"))
        await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT):
            await pool.aclose(drain=drain)
            if drain:
                assert await waiting in (worker.pid, [worker.pid])
            else:
                with pytest.raises(PoolClosed):
                    await waiting


async def test_a_worker_that_crashes_in_a_request_had_come_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(service=Service) as pool:
        for _ in range(5):
            assert await pool.request("made_here")
            with pytest.raises(WorkerDied):
                await pool.request("leave", 3)
        assert await pool.run(support.add, 1, 2) == 3
        assert "did not come up" not in caplog.text


async def test_requests_have_timeouts_and_progress(reports: Reports) -> None:
    async with open_pool(service=Service) as pool:
        came: list[Progress] = []
        assert await pool.request("count", 5, on_progress=came.append) == "counted"
        assert came == [Progress(done) for done in range(5)]
        with pytest.raises(RequestTimeout):
            await pool.request("wait", [reports.address], timeout=0.2)
        await reports.next("started")
        await reports.next("cancelled")
        waiting = asyncio.create_task(pool.request("wait", [reports.address]))
        await reports.next("started")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await reports.next("cancelled")


async def test_a_worker_that_dies_fails_its_requests(reports: Reports) -> None:
    watch = Watch()
    async with open_pool(2, service=Service, **watch.options) as pool:
        waiting = asyncio.create_task(pool.request("wait", [reports.address]))
        report = await reports.next("started")
        with pytest.raises(WorkerDied, match="'leave'") as caught:
            await pool.request("leave", 3)
        assert caught.value.exit_code == 3
        reports.answer(report, "not hurt")
        assert await waiting == "not hurt"
        for _ in range(3):
            await watch.next_started()
        assert await pool.broadcast("add", 1) == [1, 1]


async def test_a_request_waits_for_a_worker_to_come() -> None:
    watch = Watch()
    async with open_pool(service=Service, **watch.options) as pool:
        with pytest.raises(WorkerDied):
            await pool.run(support.leave, 1)
        async with asyncio.timeout(LIMIT):
            assert await pool.request("add", 1) == 1


async def test_leaving_the_block_waits_for_requests(reports: Reports) -> None:
    async with open_pool(service=Service) as pool:
        waiting = asyncio.create_task(pool.request("wait", [reports.address]))
        report = await reports.next("started")
        asyncio.get_running_loop().call_soon(reports.answer, report, "done")
    assert await waiting == "done"


async def test_without_drain_requests_under_way_are_ended(reports: Reports) -> None:
    async with open_pool(service=Service, drain=False) as pool:
        waiting = asyncio.create_task(pool.request("wait", [reports.address]))
        await reports.next("started")
        async with asyncio.timeout(LIMIT):
            await pool.aclose()
    await reports.next("cancelled")
    assert isinstance(await failure(waiting), PoolError | asyncio.CancelledError)
