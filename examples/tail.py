"""tail -f over a unix socket: the lines of a file, and those that are written to it later.

The server's handler is a generator, the client reads what it gives as a stream. Leaving the stream
closes the generator, and with it the file.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncipc


class Log:
    """A file that is written to, and that tells when it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readers = 0
        self._grown = asyncio.Event()

    def write(self, line: str) -> None:
        """Add a line."""
        with self.path.open("a") as file:
            file.write(line + "\n")
        self._grown.set()
        self._grown = asyncio.Event()

    async def tail(self) -> AsyncIterator[str]:
        """Every line there is, and then every line that comes."""
        with self.path.open() as file:
            self.readers += 1
            try:
                while True:
                    grown = self._grown
                    for line in file:
                        yield line.rstrip("\n")
                    await grown.wait()
            finally:
                self.readers -= 1


async def main() -> None:
    """Serve a log, follow it while it grows, and leave."""
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder, "app.log"))
        for line in ("starting", "listening"):
            log.write(line)
        server = asyncipc.Peer()
        server.on_request("tail")(log.tail)
        address = f"unix:{folder}/log.sock"
        async with server.serve(address), asyncipc.Peer().connect(address) as session:
            seen = []
            async with session.stream("tail") as lines:
                async for line in lines:
                    print(line)
                    seen.append(line)
                    if line == "listening":
                        log.write("a visitor came")
                    if line == "a visitor came":
                        break
            assert seen == ["starting", "listening", "a visitor came"]
            await session.ping()  # the server has heard of the end by now
        assert log.readers == 0
        print("nobody reads the log any longer")


if __name__ == "__main__":
    asyncipc.run(main)
