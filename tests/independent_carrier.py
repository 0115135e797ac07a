"""The independent client with file descriptors and shared memory, from docs/protocol.md alone (10).

It takes both, and sends descriptors and an arena of its own.
"""

import fcntl
import mmap
import os
import socket
from collections import deque
from typing import Any, ClassVar

from tests.independent_client import BEGIN, LIMITS, REQUEST, Client
from tests.independent_values import Descriptor, encode

__all__ = ["Carrier"]

DESCRIPTORS, MEMORY, RELEASE = 14, 15, 16

MAX_DESCRIPTORS = 8

# F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_FUTURE_WRITE.
SEALS = 2 | 4 | 16

ARENA_SIZE = 1 << 20


class Carrier(Client):
    """A client that names both features in its hello."""

    features: ClassVar[list[str]] = ["descriptors", "shared memory"]
    limits: ClassVar[dict[str, int]] = {**LIMITS, "max_descriptors": MAX_DESCRIPTORS}

    def __init__(self, *args: Any, **options: Any) -> None:
        self._came: deque[list[int]] = deque()  # descriptors, by the write that they came with
        self._beside: dict[int, dict[int, Any]] = {}  # by transfer and segment
        self._taken: dict[int, int] = {}  # descriptors of transfers, to be credited
        self._regions: dict[int, list[int]] = {}  # of transfers, to be released
        self._credit = 0
        self._is_asked = False
        self._segment = 0
        self._image: mmap.mmap | None = None
        self.released: list[int] = []
        self.regions_seen = 0
        super().__init__(*args, **options)

    def close(self) -> None:
        super().close()
        if self._image is not None:
            self._image.close()

    # -- sending -----------------------------------------------------------------------------

    def _send_descriptors(self, envelope: bytes, attachments: list[Any]) -> int:
        descriptors = [item for item in attachments if isinstance(item, Descriptor)]
        self._get_credit(len(descriptors))
        lengths = [None if isinstance(item, Descriptor) else len(item) for item in attachments]
        data = envelope + b"".join(item for item in attachments if isinstance(item, bytes))
        head = encode(self.codec, [BEGIN, self._next_transfer, [len(envelope), *lengths]], [])
        self._next_transfer += 1
        self._send_frame_with(descriptors, head, data)
        return len(data)

    def _get_credit(self, count: int) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._send([DESCRIPTORS, 0])
        while self._credit < count:
            self._receive()
        self._credit -= count

    def _send_frame_with(self, descriptors: list[Descriptor], head: bytes, data: bytes) -> None:
        sock, whole = self._socket, bytearray()

        class Tap:
            def sendall(self, frame: bytes) -> None:
                whole.extend(frame)

        self._socket = Tap()  # type: ignore[assignment]
        try:
            self._send_frame(head, data)
        finally:
            self._socket = sock
        sent = socket.send_fds(sock, [bytes(whole)], list(descriptors))
        sock.sendall(whole[sent:])

    def make_arena(self) -> mmap.mmap:
        """Shared memory to send through; announced."""
        fd = os.memfd_create("independent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, ARENA_SIZE)
        arena = mmap.mmap(fd, ARENA_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        self._send([MEMORY, 5, ARENA_SIZE, Descriptor(fd)])
        os.close(fd)
        return arena

    def request_region(self, method: str, region: list[int]) -> int:
        """Ask with one binary parameter, which stands in a region of the arena."""
        call, message = self._new_request(method, [bytes(4096)], None)
        attachments: list[Any] = []
        envelope = encode(self.codec, message, attachments)
        assert message[0] == REQUEST
        assert len(attachments) == 1
        head = [BEGIN, self._next_transfer, [len(envelope), [5, *region]]]
        self._next_transfer += 1
        self._send_frame(encode(self.codec, head, []), envelope)
        return call

    # -- receiving ---------------------------------------------------------------------------

    def _receive_bytes(self, size: int) -> bytes:
        data, descriptors, flags, _ = socket.recv_fds(self._socket, size, 253)
        assert not flags & socket.MSG_CTRUNC
        if descriptors:
            self._came.append(descriptors)
        return data

    def _begin(self, number: int, lengths: list[Any]) -> None:
        count = sum(1 for each in lengths if each is None or (type(each) is list and len(each) < 2))
        descriptors = deque(self._came.popleft()) if count else deque()
        assert len(descriptors) == count
        self._taken[number] = count
        self._regions[number] = []
        beside: dict[int, Any] = {}
        for at, entry in enumerate(lengths):
            if entry is None:
                beside[at] = descriptors.popleft()
            elif isinstance(entry, list) and len(entry) == 1:
                beside[at] = self._map_once(descriptors.popleft(), entry[0])
            elif isinstance(entry, list):
                beside[at] = self._copy_region(*entry)
                self._regions[number].append(entry[1])
        self._beside[number] = beside
        plain = [entry if isinstance(entry, int) else 0 for entry in lengths]
        super()._begin(number, plain)

    def _fill(self, number: int, segments: list[Any]) -> None:
        for at, attached in self._beside.pop(number, {}).items():
            segments[at] = attached
        if regions := self._regions.pop(number, []):
            self._send([RELEASE, self._segment, regions])
        if count := self._taken.pop(number, 0):
            self._send([DESCRIPTORS, count])

    def _region(self, *where: int) -> bytes:
        data = self._copy_region(*where)
        self._send([RELEASE, self._segment, [where[1]]])
        return data

    def _copy_region(self, segment: int, _number: int, offset: int, length: int) -> bytes:
        assert self._image is not None
        assert segment == self._segment
        assert offset % 4096 == 0
        self.regions_seen += 1
        return self._image[offset : offset + length]

    def _map_once(self, fd: int, size: int) -> bytes:
        with self._map(fd, size) as mapping:
            return mapping[:]

    @staticmethod
    def _map(fd: int, size: int) -> mmap.mmap:
        try:
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
            assert os.fstat(fd).st_size == size
            return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def _take_descriptors(self, _kind: int, count: int, *_: Any) -> None:
        if count:
            self._credit += count
        else:
            self._send([DESCRIPTORS, 2 * MAX_DESCRIPTORS])

    def _take_memory(self, _kind: int, segment: int, size: int, fd: int, *_: Any) -> None:
        self._segment, self._image = segment, self._map(fd, size)

    def _take_release(self, _kind: int, _segment: int, regions: list[int], *_: Any) -> None:
        self.released += regions

    _ON: ClassVar[dict[int, Any]] = {
        **Client._ON,
        DESCRIPTORS: _take_descriptors,
        MEMORY: _take_memory,
        RELEASE: _take_release,
    }
