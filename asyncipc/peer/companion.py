"""A child process as the companion of a session: it explains the session's end, and ends with it.

Layer 3, inside the peer. Below: process, session.
"""

import asyncio

from asyncipc.errors import PeerDied, SessionClosed
from asyncipc.process.child import ChildProcess
from asyncipc.process.stderr import StderrCapture

__all__ = ["ChildCompanion"]

# A child that closed its output is normally dead within a millisecond; one that lives on is not
# waited for longer than this to tell those who wait why their session ended.
OBITUARY_WAIT = 0.5


class ChildCompanion:
    """Ties a child process and what it writes to stderr to a session.

    :param grace: seconds between the steps that end the child
    """

    def __init__(self, process: ChildProcess, stderr: StderrCapture, grace: float) -> None:
        self._process = process
        self._stderr = stderr
        self._grace = grace

    async def obituary(self, error: SessionClosed) -> SessionClosed:
        """Add to the end of the session how the process ended; see `Companion`."""
        try:
            async with asyncio.timeout(OBITUARY_WAIT):
                await self._process.wait()
        except TimeoutError:
            if not isinstance(error, PeerDied):
                return error
        self._stderr.drain()
        reason = f"the child process (pid {self._process.pid}) "
        if self._process.returncode is not None:
            reason += "died" if isinstance(error, PeerDied) else "ended"
        else:
            reason += "closed its output, but goes on"
        lost = PeerDied(
            f"{reason}: {error}",
            exit_code=self._process.exit_code,
            signal=self._process.signal,
            stderr_tail=self._stderr.tail,
        )
        lost.__cause__ = error.__cause__
        return lost

    async def release(self) -> None:
        """End the child, whatever it does; see `Companion`."""
        try:
            await self._process.end(self._grace)
        finally:
            self._stderr.close()
