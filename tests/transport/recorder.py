"""A receiver for tests: notes what a transport tells it, and checks the contract's rules."""

import array
import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asyncipc.transport.base import Buffer, Transport

MIB = 1024 * 1024

# Seconds any wait may take.
WAIT = 10.0

# Receivers of one loop may share memory (rule 2): here all do, and wipe it after each read.
SHARED = memoryview(bytearray(64 * 1024))


class Recorder:
    """A receiver that notes what it is told and checks the order of it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.violations: list[str] = []
        self.descriptors: list[list[int]] = []  # as they came
        self.inside_call = False
        self.on_event: Callable[[str], object] = lambda event: None
        self._changed = asyncio.Event()

    def get_buffer(self) -> memoryview:
        self._check("get_buffer")
        return SHARED

    def buffer_updated(self, count: int) -> None:
        if not 1 <= count <= len(SHARED):
            self.violations.append(f"buffer_updated({count})")
        if "end_of_input" in self.events:
            self.violations.append("data after the end of input")
        self.data += SHARED[:count]
        SHARED[:count] = b"\xee" * count
        self._note("data")

    def descriptors_received(self, descriptors: list[int], *, lost: bool) -> None:
        self.descriptors += [descriptors]
        self.violations += ["descriptors were lost"] if lost else []
        self._check("descriptors_received")

    def writable(self) -> None:
        self._note("writable")

    def end_of_input(self) -> None:
        self._note("end_of_input")

    def connection_lost(self, error: Exception | None) -> None:
        self.error = error
        self._note("lost")

    def _check(self, event: str) -> None:
        if "lost" in self.events:
            self.violations.append(f"{event} after connection_lost")
        if self.inside_call:
            self.violations.append(f"{event} inside a call into the transport")

    def _note(self, event: str) -> None:
        self._check(event)
        if self.events.count(event) and event in ("end_of_input", "lost"):
            self.violations.append(f"{event} twice")
        if event != "data" or self.events[-1:] != ["data"]:
            self.events.append(event)
        self._changed.set()
        self.on_event(event)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                assert "lost" not in self.events, f"lost while waiting: {self.error!r}"
                self._changed.clear()
                await self._changed.wait()

    async def heard(self, event: str, times: int = 1) -> None:
        await self.until(lambda: self.events.count(event) >= times)

    async def received(self, size: int) -> None:
        await self.until(lambda: len(self.data) >= size)


@dataclass
class End:
    """One transport, its receiver, and calls that nothing may be delivered inside of."""

    transport: Transport
    heard: Recorder = field(default_factory=Recorder)

    def call(self, method: str, *arguments: object) -> Any:
        before, self.heard.inside_call = self.heard.inside_call, True
        try:
            return getattr(self.transport, method)(*arguments)
        finally:
            self.heard.inside_call = before

    def start(self) -> None:
        self.call("start", self.heard)

    def write(self, *buffers: Buffer) -> bool:
        left = self.call("write", buffers)
        assert isinstance(left, bool)
        return left

    async def send(self, *buffers: Buffer) -> None:
        """Write and wait until it has left."""
        writable = self.heard.events.count("writable")
        if not self.write(*buffers):
            await self.heard.heard("writable", writable + 1)

    async def lost(self) -> Exception | None:
        await self.heard.heard("lost")
        return self.heard.error


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def pattern(size: int) -> bytes:
    """Bytes in which a lost, doubled or moved piece shows."""
    return array.array("I", range(size // 4)).tobytes()
