"""What ``peer.connect(...)`` and its kin return: to be awaited, or used in ``async with``.

Layer 3, inside the peer.
"""

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol, TypeVar

__all__ = ["Opening"]


class Closable(Protocol):
    """What can be opened has to be closed."""

    async def aclose(self) -> None:
        """Close it."""


Opened = TypeVar("Opened", bound=Closable)


class Opening(Coroutine[Any, Any, Opened]):
    """Something that is about to be opened.

    ``await opening`` opens it; ``async with opening as opened`` also closes it at the end. It is a
    coroutine in every other way too: nothing happens before it is awaited, it can be made a task,
    it is good for one use, and Python warns of one that was forgotten.
    """

    __slots__ = ("_coroutine", "_opened")

    _opened: Opened

    def __init__(self, coroutine: Coroutine[Any, Any, Opened]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Opened]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> Opened:
        self._opened = await self._coroutine
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened.aclose()

    # What a task asks of a coroutine.

    @property
    def __name__(self) -> str:
        name: str = getattr(self._coroutine, "__name__", "opening")
        return name

    def send(self, value: Any) -> Any:
        """See `collections.abc.Coroutine`."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """See `collections.abc.Coroutine`."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Give it up before it was awaited; see `collections.abc.Coroutine`."""
        self._coroutine.close()
