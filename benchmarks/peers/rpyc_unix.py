"""rpyc over a unix socket: keyword arguments there, a tuple of pairs back, both by value.

A dict would cross as a reference and cost a round trip for each look into it.
"""

from collections.abc import Callable
from typing import Any

import rpyc  # type: ignore[import-untyped,unused-ignore]
from rpyc.utils.server import OneShotServer  # type: ignore[import-untyped,unused-ignore]

from benchmarks.worker import MESSAGE, blocking_commands, obey


class EchoService(rpyc.Service):  # type: ignore[misc,unused-ignore]  # rpyc has no annotations
    def exposed_echo(self, n: int, text: str) -> tuple[tuple[str, Any], ...]:
        return (("n", n), ("text", text))


class AnnouncingServer(OneShotServer):  # type: ignore[misc,unused-ignore]
    """Serves one connection, and says when it listens."""

    ready: Callable[[], None]

    def _listen(self) -> None:
        super()._listen()
        self.ready()


def serve(path: str, ready: Callable[[], None]) -> None:
    server = AnnouncingServer(EchoService, socket_path=path)
    server.ready = ready
    server.start()


def client(path: str) -> None:
    connection = rpyc.utils.factory.unix_connect(path)
    echo = rpyc.async_(connection.root.echo)

    def submit() -> Callable[[], dict[str, Any]]:
        result = echo(**MESSAGE)
        return lambda: dict(result.value)

    commands = blocking_commands(submit, MESSAGE)
    obey(commands)
