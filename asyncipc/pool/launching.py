"""The start of one worker: from nothing to a process that takes tasks.

Layer 4, inside the pool. Above: the supervisor. Below: starting, link, the session.
"""

import asyncio
import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from asyncipc.errors import EncodeError, PoolError
from asyncipc.peer.companion import ChildCompanion
from asyncipc.pool import logs, stages
from asyncipc.pool.ledger import Ledger, new_memory
from asyncipc.pool.link import Link, Owner
from asyncipc.pool.payload import load_failure
from asyncipc.pool.policy import task_limit
from asyncipc.pool.protocol import RESULT
from asyncipc.pool.roster import Seat
from asyncipc.pool.starting import Started, Starter
from asyncipc.pool.worker import AWAITING, BEGIN, LOG, STAGE, TOO_LARGE, WorkerSetup, new_settings
from asyncipc.session.handlers import Handlers
from asyncipc.session.session import Session
from asyncipc.session.settings import SessionSettings
from asyncipc.transport.fd import Fd
from asyncipc.wire.handshake import Role

__all__ = ["Launch", "Launcher", "WorkerOptions"]

logger: logging.Logger = logging.getLogger("asyncipc.pool")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What all workers of a pool have in common; see `asyncipc.Pool`."""

    setup: WorkerSetup
    max_tasks: int | None
    spawn_timeout: float
    grace: float


class Launcher:
    """What is needed to start workers.

    :param owner: of the tasks that they get
    :param on_too_large: called with a worker that has more memory of its own than it may
    :raises EncodeError: the initializer or the service cannot be given to a worker
    """

    def __init__(
        self,
        options: WorkerOptions,
        starter: Starter,
        owner: Owner,
        on_too_large: Callable[[Link], None],
    ) -> None:
        self.options: WorkerOptions = options
        self.starter: Starter = starter
        self.owner: Owner = owner
        self.on_too_large: Callable[[Link], None] = on_too_large
        self.settings: SessionSettings = new_settings()
        self.setup: bytes = _pickled(options.setup)


class Launch:
    """The start of one worker.

    :param number: of the worker in its pool
    """

    def __init__(self, launcher: Launcher, number: int) -> None:
        self._launcher = launcher
        self._number = number
        self._started: Started | None = None
        self._doing = stages.STARTING

    @property
    def stage(self) -> str:
        """How far it has come, for who has waited too long."""
        if self._started is None:
            return self._launcher.starter.stage
        return stages.told(f"worker {self._number}", self._doing, self._started.stderr.tail)

    async def run(self) -> Link:
        """Start the worker and get it ready.

        :raises PoolError: it says itself why it cannot be, or has not come so far in time
        :raises IPCError: it died meanwhile
        """
        timeout = self._launcher.options.spawn_timeout
        try:
            async with asyncio.timeout(timeout):
                self._started = await self._launcher.starter.start(self._number)
                return await self._connect(self._started)
        except TimeoutError as error:
            raise PoolError(
                f"a worker was not ready within spawn_timeout ({timeout:g} s): {self.stage}"
            ) from error
        except OSError as error:
            raise PoolError(f"a worker process cannot be made: {error}") from error

    async def _connect(self, started: Started) -> Link:
        launcher = self._launcher
        grace = launcher.options.grace
        handlers = Handlers()
        handlers.on_notification(LOG)(logs.handle_record)
        handlers.on_notification(STAGE)(self._enter)
        session = Session(started.transport, Role.CONNECTING, launcher.settings, handlers)
        connection = session.connection
        connection.companion = ChildCompanion(started.process, started.stderr, grace)
        started.process.on_exit(lambda _: connection.companion_exited())
        await session.start()
        ledger, memory = _new_ledger()
        try:
            homework = launcher.starter.homework
            answer = await session.request(
                BEGIN,
                [homework.main, homework.argv, homework.preload, launcher.setup, memory],
                timeout=None,
            )
            if answer[0] != RESULT:
                error = load_failure(answer[2:])
                raise PoolError(f"a worker could not get ready: {error!r}") from error
        except BaseException:
            started.process.kill()
            for part in (ledger, memory):
                if part is not None:
                    part.close()
            await session.aclose()
            raise
        link = Link(
            self._number,
            started,
            session,
            seat=Seat(task_limit(launcher.options.max_tasks)),
            ledger=ledger,
            owner=launcher.owner,
            grace=grace,
        )
        handlers.on_notification(TOO_LARGE)(partial(self._too_large, link))
        handlers.on_notification(AWAITING)(link.awaits)
        return link

    def _enter(self, stage: str) -> None:
        self._doing = stage

    def _too_large(self, link: Link, size: int) -> None:
        logger.info("worker %d has %d bytes of its own, more than max_rss", link.number, size)
        self._launcher.on_too_large(link)


def _new_ledger() -> tuple[Ledger | None, Fd | None]:
    """A ledger, and its memory to be sent. A worker can do without, where there is no memory."""
    try:
        descriptor = new_memory()
        try:
            return Ledger(descriptor), Fd(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        logger.warning("a worker does without a ledger, so tasks go to it one by one: %s", error)
        return None, None


def _pickled(setup: WorkerSetup) -> bytes:
    try:
        return pickle.dumps(setup, 5)
    except Exception as error:
        raise EncodeError(
            f"initializer, initargs or service cannot be given to a worker: {error}"
        ) from error
