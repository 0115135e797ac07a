"""What ``peer.connect(...)`` and its kin return: to be awaited, or used in ``async with``.

Layer 3, inside the peer.
"""

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Opening"]


class Closable(Protocol):
    """What can be opened has to be closed."""

    async def aclose(self) -> None:
        """Close it."""


Opened = TypeVar("Opened", bound=Closable)


class Opening(Generic[Opened]):
    """Something that is about to be opened.

    ``await opening`` opens it; ``async with opening as opened`` also closes it at the end.
    Nothing happens before either. Good for one use.
    """

    __slots__ = ("_open", "_opened")

    def __init__(self, open_it: Callable[[], Awaitable[Opened]]) -> None:
        self._open = open_it

    def __await__(self) -> Generator[Any, Any, Opened]:
        return self._open().__await__()

    async def __aenter__(self) -> Opened:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened.aclose()
