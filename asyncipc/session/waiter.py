"""What waits for the end of a call.

Layer 2, inside the session. Above: calls, and the pool, which begins calls without a task for each
and has to know when the other side is done with those that were given up.
"""

from typing import Any, Final, Protocol

__all__ = ["NOBODY", "Leftovers", "Waiter"]


class Waiter(Protocol):
    """What a call ends for: a future, or something that needs no turn of the loop to hear of it.

    A timeout is told when it is over, which the call itself is not: where `done` is false then,
    the end of the call is told as well.
    """

    def done(self) -> bool:
        """It wants to hear nothing more."""
        ...

    def set_result(self, result: Any, /) -> None:
        """The other side replied."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """The other side failed, or could not answer, or not in time."""
        ...


class Leftovers(Protocol):
    """Who wants to know of the calls that nobody waits for any longer."""

    def given_up(self, answer_id: int) -> None:
        """The other side was told to stop a call, and has not ended it."""
        ...

    def over(self, answer_id: int) -> None:
        """The other side has ended such a call, or the session has ended."""
        ...


class _Nobody:
    def given_up(self, answer_id: int) -> None:
        pass

    def over(self, answer_id: int) -> None:
        pass


NOBODY: Final = _Nobody()
"""Who wants to know nothing of them."""
