"""A worker's side of bundles: runs their tasks, and writes down how each has ended.

Layer 4, inside the pool. Above: jobs. Below: ledger, payload.
"""

import math
from collections.abc import Callable, Coroutine
from contextvars import Context
from time import perf_counter
from types import CoroutineType
from typing import Any, Final

from asyncipc.pool.ledger import Ledger
from asyncipc.pool.payload import FunctionCache, dump, dump_failure, dump_outcome, load_arguments
from asyncipc.pool.protocol import FAILURE, GIVEN_UP, RESULT
from asyncipc.session.context import Call, CallOwner, serving

__all__ = ["BundleRunner", "Ran"]

# Seconds after which the tasks of a bundle that have not begun go back: it was to be over by then,
# and another worker may be free.
TURN: Final = 0.001

# The parts of an outcome that is a result with nothing beside its pickle.
PLAIN: Final = 2

# How many of a bundle's tasks have ended (the rest have not begun), the longest time that one took,
# and how the last of them ended where the ledger has no room for it: its kind, and what stands
# behind that in an answer.
Ran = tuple[int, float, list[Any]]


class _BundledCall(Call):
    """The call of one task of a bundle."""

    def __init__(self, owner: CallOwner, wire_id: int, ledger: Ledger, at: tuple[int, int]) -> None:
        super().__init__(owner, wire_id, "", None, {})
        self._ledger = ledger
        self._at = at

    @property
    def cancelled(self) -> bool:
        """See `Call.cancelled`. The bundle itself is never given up: others want theirs."""
        return self._ledger.is_given_up(*self._at)


class BundleRunner:
    """Runs the tasks of bundles, one after the other.

    :param functions: those that the worker knows
    :param owner: of the calls
    :param check: called when something was raised, and may raise instead
    """

    def __init__(
        self, functions: FunctionCache, owner: CallOwner, check: Callable[[], None]
    ) -> None:
        self._functions = functions
        self._owner = owner
        self._check = check
        self.ledger: Ledger | None = None  # what the application gave, which only then has bundles

    def run(
        self, wire_id: int, slot: int, packed: list[Any]
    ) -> tuple[Context, Ran | Coroutine[Any, Any, Ran]]:
        """Run them.

        :param wire_id: of the bundle's call
        :param packed: the pickles of the function and the arguments of each
        :returns: what came of it. A task that has to be awaited is the last, and then that is a
            coroutine, to be awaited in the context.
        """
        ledger = self.ledger
        assert ledger is not None
        longest, now = 0.0, perf_counter()
        until = now + TURN
        count = len(packed) // 2
        for index in range(count):
            if ledger.is_given_up(slot, index):
                if not ledger.note(slot, index, GIVEN_UP, b""):
                    return Context(), (index + 1, longest, [GIVEN_UP])
                continue
            if now > until:
                return Context(), (index, longest, [])
            began, context = now, Context()
            call = _BundledCall(self._owner, wire_id, ledger, (slot, index))
            outcome = self._run_one(call, context, packed[2 * index], packed[2 * index + 1])
            now = perf_counter()
            longest = max(longest, now - began)
            if not isinstance(outcome, list):
                return context, self._await(call, outcome, index + 1)
            if not _note(ledger, slot, index, outcome):
                return context, (index + 1, longest, outcome)
        return Context(), (count, longest, [])

    def _run_one(
        self, call: Call, context: Context, pickled: bytes, arguments: bytes
    ) -> list[Any] | Coroutine[Any, Any, Any]:
        """How it has ended, as an answer tells it; or what it gave to be awaited."""
        call.started = True
        try:
            function, call.method = self._functions.load(pickled)
            args, kwargs = load_arguments([arguments], call.method)
            context.run(serving.set, call)
            result = context.run(function, *args, **kwargs)
            if isinstance(result, CoroutineType):
                return result
            outcome = [RESULT, *dump_outcome(result, f"the result of {call.method}")]
        except BaseException as error:  # noqa: BLE001 - see `asyncipc.pool.jobs.Jobs`
            self._check()
            outcome = [FAILURE, *dump_failure(error)]
        call.finished = True
        return outcome

    async def _await(self, call: Call, work: Coroutine[Any, Any, Any], ended: int) -> Ran:
        """Await the last task. It was none for a bundle, so it counts as one that takes long."""
        try:
            result = await work
            outcome = [RESULT, *dump_outcome(result, f"the result of {call.method}")]
        except BaseException as error:  # noqa: BLE001 - see `asyncipc.pool.jobs.Jobs`
            self._check()
            outcome = [FAILURE, *dump_failure(error)]
        call.finished = True
        return ended, math.inf, outcome


def _note(ledger: Ledger, slot: int, index: int, outcome: list[Any]) -> bool:
    """Write down how a task has ended, if there is room for it in the ledger."""
    if outcome[0] == FAILURE:
        return ledger.note(slot, index, FAILURE, dump(outcome[1:])[0])
    # What stands beside the pickle has no place there.
    return len(outcome) == PLAIN and ledger.note(slot, index, RESULT, outcome[1])
