"""A child process as the companion of a session: it explains the session's end, and ends with it.

Layer 3, inside the peer. Below: process, session.
"""

import asyncio
import contextlib

from asyncipc.errors import IPCError, PeerDied, SessionClosed
from asyncipc.process.handle import ProcessHandle
from asyncipc.process.stderr import StderrCapture

__all__ = ["ChildCompanion"]

# A child that closed its output is normally dead within a millisecond; one that lives on is not
# waited for longer than this to tell those who wait why their session ended.
OBITUARY_WAIT = 0.5


class ChildCompanion:
    """Ties a child process and what it writes to stderr to a session.

    :param grace: seconds between the steps that end the child
    """

    def __init__(self, process: ProcessHandle, stderr: StderrCapture, grace: float) -> None:
        self._process = process
        self._stderr = stderr
        self._grace = grace

    async def obituary(self, error: SessionClosed) -> SessionClosed:
        """Add to the end of the session how the process ended; see `Companion`."""
        if isinstance(error, PeerDied):
            await self._exits_soon()
        # What it has written is in the pipe by now, also if the loop has not read it yet.
        self._stderr.drain()
        if isinstance(error.__cause__, IPCError) and self._stderr.tail:
            # Where the handshake failed, the cause is what the caller gets to see.
            error.__cause__.add_note(f"the child's last words on stderr:\n{self._stderr.tail}")
        if isinstance(error, PeerDied) or self._process.returncode:
            return self._died(error)
        return error

    async def release(self) -> None:
        """End the child, whatever it does; see `Companion`."""
        try:
            await self._process.end(self._grace)
        finally:
            self._stderr.close()

    async def _exits_soon(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OBITUARY_WAIT):
                await self._process.wait()

    def _died(self, error: SessionClosed) -> PeerDied:
        reason = f"the child process (pid {self._process.pid}) "
        reason += "closed its output, but goes on" if self._process.returncode is None else "died"
        lost = PeerDied(
            f"{reason}: {error}",
            exit_code=self._process.exit_code,
            signal=self._process.signal,
            stderr_tail=self._stderr.tail,
        )
        lost.__cause__ = error.__cause__
        return lost
