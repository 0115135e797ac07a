"""What waits for the end of a call.

Layer 2, inside the session. Above: calls, and the pool, which begins calls without a task for each.
"""

from typing import Any, Protocol

__all__ = ["Waiter"]


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
