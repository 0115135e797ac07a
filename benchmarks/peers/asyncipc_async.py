"""asyncipc over a unix socket, with the ``async def`` handler."""

from benchmarks.peers import asyncipc_unix

serve = asyncipc_unix.serve


def client(path: str) -> None:
    """The same client, asking the other handler."""
    asyncipc_unix.client(path, "echo_async")
