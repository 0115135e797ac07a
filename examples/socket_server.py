"""Two programs over a unix socket, the server: a notice board that several clients share.

Run it in one terminal, and socket_client.py in others. Ctrl-C ends it. The socket is only for the
user who runs the server, and gone when the server is.
"""

import sys
import tempfile
from pathlib import Path

import asyncipc

ADDRESS = f"unix:{Path(tempfile.gettempdir(), 'asyncipc-example.sock')}"

peer = asyncipc.Peer()
notices: list[str] = []


@peer.on_request
async def post(text: str, call: asyncipc.Call) -> int:
    """Put up a notice, and tell the other clients; returns how many notices there are."""
    notices.append(text)
    for session in peer.sessions - {call.session}:
        await session.notify("posted", [text])
    return len(notices)


@peer.on_request
def read() -> list[str]:
    """All notices."""
    return notices


async def main() -> None:
    """Serve until Ctrl-C."""
    address = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    async with peer.serve(address) as server:
        print("listening on", server.address, flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    try:
        asyncipc.run(main)
    except KeyboardInterrupt:
        print("closed")
    except asyncipc.AddressInUse as error:
        sys.exit(f"socket_server: {error}")
