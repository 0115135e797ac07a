"""The other side's slots for the calls of this one: how many are taken, and the lines for them.

The other side serves so many requests at once, and as many again of each depth of nesting, so that
nested calls cannot deadlock. Who finds none free, or no room in the outbox, waits in line.

Layer 2, inside the session. Above: the calls. Below: the outbox, gates.
"""

import asyncio
from collections.abc import Callable, Sized
from functools import partial
from time import monotonic

from asyncipc.errors import RequestRefused, RequestTimeout
from asyncipc.session.gate import Gate
from asyncipc.session.outbox import Outbox

__all__ = ["Slots", "timed_out"]


class Slots:
    """The slots of one session.

    :param pending: the calls that have one
    :param max_queued: how many calls may wait in each line
    :ivar gate: in front of the slots of calls that are not nested
    :ivar depths: of the calls that have a slot, the depths of those that are nested
    :ivar count: how many slots the other side has, for each depth
    """

    __slots__ = ("_gates", "_loop", "_max_queued", "_outbox", "_pending", "count", "depths", "gate")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, pending: Sized, max_queued: int
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._pending = pending
        self._max_queued = max_queued
        self._gates: dict[int, Gate] | None = None  # of nested calls only, by depth
        self.gate: Gate = Gate(loop, self._has_one)
        self.depths: dict[int, int] = {}
        self.count: int = 0

    async def wait(
        self, method: str, depth: int, timeout: float | None
    ) -> tuple[Gate | None, float | None]:
        """Wait until a call may begin.

        :returns: the gate to tell that it has, if there is one; and what is left of the timeout
        :raises RequestRefused: too many wait
        :raises RequestTimeout: it took too long
        """
        gate = self.gate
        if depth:
            if self._gates is None:
                self._gates = {}
            gate = self._gates.get(depth) or Gate(self._loop, partial(self._has_one_at, depth))
            self._gates[depth] = gate
        if not gate.waiting and self._has_one_at(depth):
            return None, timeout
        if gate.waiting >= self._max_queued:
            raise RequestRefused(
                f"{gate.waiting} calls wait for one of the other side's {self.count} slots "
                f"already; Limits.max_queued is {self._max_queued}"
            )
        started = monotonic()
        try:
            async with asyncio.timeout(timeout):
                await gate.enter()
        except TimeoutError as error:
            raise timed_out(method, timeout, ", all of it spent waiting to be sent") from error
        if timeout is not None:
            timeout = max(0.0, timeout - (monotonic() - started))
        return gate, timeout

    def release(self, answer_id: int) -> None:
        """A call is over on the wire: its slot is free."""
        depth = self.depths.pop(answer_id, 0)
        gate = self._gates.get(depth) if depth and self._gates else self.gate
        if gate is not None and gate.waiting:
            gate.update()

    @property
    def queued(self) -> int:
        """Calls that wait for a slot or for room in the outbox."""
        return sum(gate.waiting for gate in self._all_gates())

    def update(self) -> None:
        """There is room in the outbox again."""
        for gate in self._all_gates():
            gate.update()

    def fail_waiting(self, make_error: Callable[[], Exception]) -> None:
        """Calls that wait to be sent will not be."""
        for gate in self._all_gates():
            gate.fail(make_error)

    def _has_one(self, passing: int) -> bool:
        return self._has_one_at(0, passing)

    def _has_one_at(self, depth: int, passing: int = 0) -> bool:
        nested = self.depths.values()
        used = sum(1 for at in nested if at == depth) if depth else len(self._pending) - len(nested)
        return used + passing < self.count and not self._outbox.full

    def _all_gates(self) -> list[Gate]:
        return [self.gate, *(self._gates or {}).values()]


def timed_out(method: str, timeout: float | None, how: str = "") -> RequestTimeout:
    """The error of a call that took too long."""
    return RequestTimeout(f"no answer to {method!r} within {timeout:g} s{how}")
