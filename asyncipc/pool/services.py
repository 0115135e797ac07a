"""The requests to a pool's service: who gets them, how long they wait, and how they end.

Layer 4, inside the pool. Above: the engine. Below: scheduler, link.
"""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from asyncipc.errors import PoolClosed, RequestTimeout
from asyncipc.pool.link import Link
from asyncipc.pool.scheduler import Scheduler
from asyncipc.session.context import serving
from asyncipc.session.params import DefaultTimeout, check_timeout
from asyncipc.session.progress import OnProgress

__all__ = ["Services"]

Timeout = float | DefaultTimeout | None


class Services:
    """The requests that are under way; see `asyncipc.Pool.request` and ``broadcast``.

    :param on_answered: called with each worker that has no more to do with a request
    :param on_ended: called when a request is over for who made it
    """

    def __init__(
        self,
        scheduler: Scheduler,
        on_answered: Callable[[Link], None],
        on_ended: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheduler = scheduler
        self._on_answered = on_answered
        self._on_ended = on_ended
        self._under_way: set[asyncio.Task[Any]] = set()
        self._is_closing = False

    @property
    def are_under_way(self) -> bool:
        """Somebody waits for an answer."""
        return bool(self._under_way)

    async def request(
        self, method: object, params: object, timeout: Timeout, on_progress: OnProgress | None
    ) -> Any:
        """Ask the worker that may answer first."""
        return await self._asked(self._ask_any(method, params, timeout, on_progress))

    async def broadcast(self, method: object, params: object, timeout: Timeout) -> list[Any]:
        """Ask all workers."""
        answers: list[Any] = await self._asked(self._ask_all(method, params, timeout))
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def close(self) -> None:
        """Who is cancelled from now on may be so because the pool ends."""
        self._is_closing = True

    def cancel_all(self) -> None:
        """Give up every request."""
        for request in self._under_way:
            request.cancel()

    async def _asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for an answer, unless the pool is closed without waiting for it."""
        request = self._loop.create_task(work)
        self._under_way.add(request)
        try:
            return await request
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._is_closing and caller is not None and not caller.cancelling():
                raise PoolClosed("the pool was closed before the answer came") from None
            raise
        finally:
            self._under_way.discard(request)
            self._on_ended()

    async def _ask_any(
        self, method: object, params: object, timeout: Timeout, on_progress: OnProgress | None
    ) -> Any:
        while (link := self._scheduler.least_loaded()) is None:
            timeout = await self._wait_ready(method, timeout)
        return await self._ask(link, method, params, timeout, on_progress)

    async def _ask_all(self, method: object, params: object, timeout: Timeout) -> list[Any]:
        while not (links := self._scheduler.ready()):
            timeout = await self._wait_ready(method, timeout)
        return await asyncio.gather(
            *(self._ask(link, method, params, timeout, None) for link in links),
            return_exceptions=True,
        )

    async def _ask(
        self,
        link: Link,
        method: object,
        params: object,
        timeout: Timeout,
        on_progress: OnProgress | None,
    ) -> Any:
        try:
            return await link.ask(method, params, timeout, on_progress)
        finally:
            self._on_answered(link)

    async def _wait_ready(self, method: object, timeout: Timeout) -> Timeout:
        """Wait for a worker that may be asked; returns what is left of the timeout.

        :raises RequestTimeout: none came in time
        """
        limit = _limit(timeout)
        began = monotonic()
        waiting = asyncio.timeout(limit)
        try:
            async with waiting:
                await self._scheduler.wait_ready()
        except TimeoutError as error:
            if not waiting.expired():
                raise
            raise RequestTimeout(
                f"no worker was there to take {method!r:.60} within {limit:g} s"
            ) from error
        if timeout is None or isinstance(timeout, DefaultTimeout):
            return timeout  # the session looks itself what its caller has left
        return max(0.0, timeout - (monotonic() - began))


def _limit(timeout: Timeout) -> float | None:
    """Seconds that a request may take: those given, or that its own caller still waits."""
    call = serving.get()
    remaining = None if timeout is None or call is None or call.finished else call.remaining
    if isinstance(timeout, DefaultTimeout):
        return remaining
    limits = [limit for limit in (check_timeout(timeout), remaining) if limit is not None]
    return min(limits, default=None)
