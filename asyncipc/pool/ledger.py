"""The ledger of a worker: how the tasks of its bundles have ended, in memory of both sides.

The outcome of each task is written down before the next begins. So they need not leave one by one,
and at a death the application still knows which had ended, and how, and which one had begun.

Layer 4, inside the pool. Above: bundle (the application's side), bundle_runner (the worker's).
"""

import mmap
import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

__all__ = ["MAX_BUNDLE", "ROOM", "SLOTS", "Ledger", "new_memory", "size_in_ledger"]

# Bundles that a worker may have: one that it is at, and one that waits, so that it never does.
SLOTS: Final = 2

# Tasks of one bundle. What one costs beyond its tasks is then little beside them; more would only
# make the first of them wait for the last.
MAX_BUNDLE: Final = 32

# A slot: the number of tasks that have ended; where the outcome of each begins, and the last ends;
# which were given up; the outcomes.
WORD: Final = 4
BORDERS: Final = 1
FLAGS: Final = WORD * (BORDERS + MAX_BUNDLE + 1)
OUTCOMES: Final = FLAGS + MAX_BUNDLE
SLOT_SIZE: Final = 16 * 1024

# Bytes that the outcomes of one bundle may have. A task beyond goes back, to be sent again, so a
# bundle is made only of those whose results are known to fit.
ROOM: Final = SLOT_SIZE - OUTCOMES


class Ledger:
    """What two processes see of the bundles of one worker.

    A slot is the application's until it is sent with a bundle, and again when that is answered;
    between, only the worker writes to it, but for the flags, which only the application writes.

    :param descriptor: of the memory, which the caller keeps
    """

    __slots__ = ("_mapping", "_memory", "_words")

    def __init__(self, descriptor: int) -> None:
        self._mapping = mmap.mmap(descriptor, SLOTS * SLOT_SIZE)
        self._show(self._mapping)

    def _show(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memoryview(memory)
        self._words = self._memory.cast("I")

    def close(self) -> None:
        """Let go of the memory, and of the descriptor that its mapping has."""
        self._words.release()
        self._memory.release()
        self._mapping.close()

    def detach(self) -> None:
        """Go on in memory that nobody else sees: in a process that a task has forked."""
        self.close()
        self._show(bytearray(SLOTS * SLOT_SIZE))

    # -- for the application ---------------------------------------------------------------

    def clear(self, slot: int) -> None:
        """Make a slot ready for another bundle."""
        at = slot * SLOT_SIZE
        self._memory[at : at + OUTCOMES] = bytes(OUTCOMES)

    def give_up(self, slot: int, index: int) -> None:
        """Nobody waits for a task any longer: it is not to begin, and may see this if it has."""
        self._memory[slot * SLOT_SIZE + FLAGS + index] = 1

    def count(self, slot: int) -> int:
        """How many tasks have ended."""
        return self._words[slot * SLOT_SIZE // WORD]

    def outcomes(self, slot: int, begin: int, end: int) -> list[tuple[int, bytes]]:
        """How the tasks between two numbers have ended, and the pickles of what came of them."""
        first = slot * SLOT_SIZE // WORD + BORDERS
        borders = self._words[first + begin : first + end + 1].tolist()
        at = slot * SLOT_SIZE + OUTCOMES
        data = bytes(self._memory[at : at + borders[-1]])
        return [(data[one], data[one + 1 : other]) for one, other in pairwise(borders)]

    # -- for the worker --------------------------------------------------------------------

    def is_given_up(self, slot: int, index: int) -> bool:
        """Whether nobody waits for a task any longer."""
        return self._memory[slot * SLOT_SIZE + FLAGS + index] != 0

    def note(self, slot: int, index: int, kind: int, pickled: bytes) -> bool:
        """Write down how a task has ended, all before it having done so.

        :returns: False if there is no room for it
        """
        words, first = self._words, slot * SLOT_SIZE // WORD
        begin = words[first + BORDERS + index]
        end = begin + 1 + len(pickled)
        if end > ROOM:
            return False
        at = slot * SLOT_SIZE + OUTCOMES
        self._memory[at + begin] = kind
        self._memory[at + begin + 1 : at + end] = pickled
        words[first + BORDERS + index + 1] = end
        words[first] = index + 1  # at last, so that who sees it sees the rest
        return True


def size_in_ledger(result: Sequence[object]) -> int:
    """Bytes of a result as `asyncipc.pool.payload.dump` made it, or what none can have."""
    pickled = result[0]
    assert isinstance(pickled, bytes)
    return ROOM if len(result) > 1 else 1 + len(pickled)


def new_memory() -> int:
    """A descriptor of memory for a `Ledger`, without a name.

    :raises OSError: there is none
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("asyncipc", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, SLOTS * SLOT_SIZE)
        if hasattr(os, "posix_fallocate"):  # or a write to it may fail with a SIGBUS
            os.posix_fallocate(descriptor, 0, SLOTS * SLOT_SIZE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
