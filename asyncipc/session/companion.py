"""What lives and dies with a session: a child process, as far as a session knows of it.

Layer 2, inside the session. Above: the connection.
"""

from typing import Protocol

from asyncipc.errors import SessionClosed

__all__ = ["Companion"]


class Companion(Protocol):
    """Given to the connection before it starts."""

    async def obituary(self, error: SessionClosed) -> SessionClosed:
        """Explain the end of the session by what is known of the companion. Bounded in time."""
        ...

    async def release(self) -> None:
        """End the companion. Bounded in time; called once, when the session is closed."""
        ...
