"""What the tests of known faults share: a peer in a process of its own, with nobody watching it."""

import asyncio
import contextlib
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from asyncipc import Peer, Session
from tests.child import python

__all__ = ["SERVER", "served_by_a_process"]

# Serves what ``tests.child`` serves, on a unix socket.
SERVER = python("""
import sys, asyncipc
from tests.child import peer
async def main():
    async with peer.serve(f"unix:{sys.argv[1]}") as server:
        await server.wait_closed()
asyncipc.run(main())
""")


@contextlib.asynccontextmanager
async def served_by_a_process(
    client: Peer, command: list[str] = SERVER
) -> AsyncIterator[tuple[Session, "subprocess.Popen[bytes]"]]:
    """A session with a server that is no child of the session; it is killed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "app.sock")
        process = subprocess.Popen([*command, str(path)])
        try:
            async with client.connect(f"unix:{path}", retry_for=20) as session:
                yield session, process
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
