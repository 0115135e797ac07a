"""A worker's side of bundles: runs their tasks, and writes down how each has ended.

Layer 4, inside the pool. Above: jobs. Below: ledger, payload.
"""

from collections.abc import Callable, Coroutine
from contextvars import Context
from time import perf_counter
from types import CoroutineType
from typing import Any, Final, NamedTuple

from asyncipc.pool.ledger import Ledger
from asyncipc.pool.payload import FunctionCache, dump, dump_failure, dump_outcome, load_arguments
from asyncipc.pool.protocol import FAILURE, GIVEN_UP, RESULT
from asyncipc.session.context import Call, CallOwner, serving

__all__ = ["BundleRunner", "Ran"]

# Seconds after which the tasks of a bundle that have not begun go back: it was to be over by then,
# and another worker may be free.
LONGEST: Final = 0.001

# The parts of an outcome that is a result with nothing beside its pickle.
KIND_AND_PICKLE: Final = 2


class Ran(NamedTuple):
    """What came of a bundle, as it stands in the answer.

    :ivar ended: how many of its tasks have ended; the rest have not begun
    :ivar slowest: which of them took longest; -1 if none was run
    :ivar seconds: how long that was
    :ivar is_awaited: the last gave something to be awaited, so that it was none for a bundle
    :ivar last: how the last ended if the ledger has no room for that: its kind, and what stands
        behind that in an answer
    """

    ended: int
    slowest: int
    seconds: float
    is_awaited: bool
    last: list[Any]


class _BundledCall(Call):
    """The call of one task of a bundle."""

    def __init__(self, owner: CallOwner, wire_id: int, ledger: Ledger, at: tuple[int, int]) -> None:
        super().__init__(owner, wire_id, "", None, {})
        self._ledger = ledger
        self._at = at

    @property
    def cancelled(self) -> bool:
        """See `Call.cancelled`. The bundle itself is never given up: others want theirs."""
        if not (self.given_up or self.finished):  # when it is, its place may be another's
            self._owner.look()  # others may have something to say meanwhile
            self.given_up = self._ledger.is_given_up(*self._at)
        return self.given_up


class BundleRunner:
    """Runs the tasks of bundles, one after the other.

    :param functions: those that the worker knows
    :param owner: of the calls
    :param is_ending: whether this process was asked to end
    :ivar on_await: called with the slot of a bundle whose task is being awaited
    """

    def __init__(
        self, functions: FunctionCache, owner: CallOwner, is_ending: Callable[[], bool]
    ) -> None:
        self._functions = functions
        self._owner = owner
        self._is_ending = is_ending
        self._is_twin = False
        self.on_await: Callable[[int], object] = _ignore
        self.ledger: Ledger | None = None  # what the application gave, which only then has bundles

    def disown(self) -> None:
        """In a process that a task has forked: nothing more is to be run, nor written down."""
        self._is_twin = True
        if self.ledger is not None:
            self.ledger.detach()

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
        slowest, longest, now = -1, 0.0, perf_counter()
        until = now + LONGEST
        count = len(packed) // 2
        for index in range(count):
            self._check()
            if now > until or self._is_twin:
                count = index
                break
            if ledger.is_given_up(slot, index):
                if not ledger.note(slot, index, GIVEN_UP, b""):
                    return Context(), Ran(index + 1, slowest, longest, False, [GIVEN_UP])
                continue
            began, context = now, Context()
            call = _BundledCall(self._owner, wire_id, ledger, (slot, index))
            outcome = self._run_one(call, context, packed[2 * index], packed[2 * index + 1])
            now = perf_counter()
            if now - began >= longest:
                slowest, longest = index, now - began
            if not isinstance(outcome, list):
                return context, self._await(call, outcome, slot, index, began)
            if not _note(ledger, slot, index, outcome):
                return context, Ran(index + 1, slowest, longest, False, outcome)
        return Context(), Ran(count, slowest, longest, False, [])

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

    async def _await(
        self, call: Call, work: Coroutine[Any, Any, Any], slot: int, index: int, began: float
    ) -> Ran:
        """Await the last task; cancelling the bundle cancels it, and it alone."""
        self.on_await(slot)
        try:
            result = await work
            outcome = [RESULT, *dump_outcome(result, f"the result of {call.method}")]
        except BaseException as error:
            if self._is_ending():
                raise
            outcome = [FAILURE, *dump_failure(error)]
        call.finished = True
        return Ran(index + 1, index, perf_counter() - began, True, outcome)

    def _check(self) -> None:
        """Go on ending where what ran has caught the SystemExit."""
        if self._is_ending():
            raise SystemExit


def _note(ledger: Ledger, slot: int, index: int, outcome: list[Any]) -> bool:
    """Write down how a task has ended, if there is room for it in the ledger."""
    if outcome[0] == FAILURE:
        return ledger.note(slot, index, FAILURE, dump(outcome[1:])[0])
    # What stands beside the pickle has no place there.
    return len(outcome) == KIND_AND_PICKLE and ledger.note(slot, index, RESULT, outcome[1])


def _ignore(_slot: int) -> None:
    """Nobody wants to know."""
