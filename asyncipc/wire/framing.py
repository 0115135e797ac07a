"""Frames: the header, and the incremental decoder that finds them in a stream of bytes.

A frame is a header of 12 bytes, an envelope, and attached bytes::

    F3 4A 9D E2 | envelope length, u32 | attached length, u32 | envelope | attached bytes

The integers are big-endian. The envelope is never empty. Lengths are checked against the limits
before anything is stored. An envelope is handed over when it is complete; attached bytes are
handed over as they come, so that nothing of their announced size is ever allocated here.

Strategy: the decoder lends its memory to whoever reads (`get_buffer`), and looks at what was read
in place (`advance`). Sessions of one loop share that memory, because between the two calls
nothing else runs; what is left of an unfinished frame is kept aside and put in front of the next
read. A frame whose envelope is larger than the shared memory gets memory of its own, which grows
as the bytes come.

Layer 1. Above: the session. Below: errors. Does no I/O.
"""

import struct
from typing import Final, Protocol

from asyncipc.errors import FrameTooLarge, RemoteProtocolError

__all__ = ["HEADER_SIZE", "MAGIC", "FrameDecoder", "FrameSink", "frame_header", "new_read_buffer"]

# Chosen to be invalid UTF-8 and to be no beginning of a MessagePack value that text could hold.
MAGIC: Final = b"\xf3\x4a\x9d\xe2"
_HEADER: Final = struct.Struct(">4sII")
HEADER_SIZE: Final = _HEADER.size

# Measured on Linux: a unix socket hands over about 200 KiB at a time, and a buffer that stays in
# the processor's cache between reads is as fast as one that holds more.
READ_BUFFER_SIZE: Final = 256 * 1024

_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from


def frame_header(envelope: int, attached: int = 0) -> bytes:
    """The header of a frame whose parts have these lengths in bytes."""
    return _pack_header(MAGIC, envelope, attached)


def new_read_buffer(size: int = READ_BUFFER_SIZE) -> memoryview:
    """Memory that the decoders of one event loop share."""
    return memoryview(bytearray(size))


class FrameSink(Protocol):
    """Takes what a decoder finds, in the order of the stream."""

    def envelope(self, data: memoryview, attached: int) -> bool:
        """One complete envelope; the memory is reused when the call returns.

        :param attached: how many bytes attached to it will follow
        :returns: False if it is no message after all; then it is treated as noise
        """
        ...

    def attached(self, data: memoryview) -> None:
        """Some of the bytes attached to the last envelope; reused when the call returns."""
        ...

    def noise(self, data: bytes) -> None:
        """Bytes that are no part of a frame."""
        ...


class FrameDecoder:
    """Finds the frames in a stream of bytes.

    :param sink: gets envelopes, attached bytes and noise
    :param buffer: memory to read into (`new_read_buffer`), possibly shared with other decoders
    :param max_frame: limit in bytes for envelope and attached bytes of one frame
    :param leading: the byte values that can begin an envelope; empty for any
    :param tolerates_noise: skip what is no frame, up to the next magic number, instead of failing
    """

    __slots__ = (
        "_attached",
        "_buffer",
        "_filled",
        "_kept",
        "_own",
        "_stopped",
        "_tolerates_noise",
        "leading",
        "max_frame",
        "sink",
    )

    def __init__(
        self,
        sink: FrameSink,
        buffer: memoryview,
        *,
        max_frame: int,
        leading: bytes,
        tolerates_noise: bool,
    ) -> None:
        self.sink: FrameSink = sink
        self._buffer = buffer
        self._kept = b""  # the beginning of a frame, to be put in front of the next read
        self._own: memoryview | None = None  # memory of its own for a frame beyond the buffer ...
        self._filled = 0  # ... and how much of that is filled
        self._attached = 0  # attached bytes of the current frame still to come
        self._tolerates_noise = tolerates_noise
        self._stopped = False
        self.max_frame: int = max_frame
        self.leading: bytes = leading

    def get_buffer(self) -> memoryview:
        """Memory for the next read, valid until `advance`."""
        if self._own is not None:
            return self._own[self._filled :]
        if self._kept:
            size = len(self._kept)
            self._buffer[:size] = self._kept
            return self._buffer[size:]
        return self._buffer

    def advance(self, count: int) -> None:
        """Look through the next ``count`` bytes, which stand in what `get_buffer` returned.

        :raises FrameTooLarge: a header announced more than ``max_frame``
        :raises RemoteProtocolError: something that is no frame, where noise is not tolerated.
            After an error the decoder takes no more.
        """
        if self._stopped:
            return
        if self._own is not None:
            view, end = self._own, self._filled + count
        else:
            view, end = self._buffer, len(self._kept) + count
        self._kept = b""
        try:
            position = self._scan(view, end)
        except BaseException:
            self._stopped = True
            raise
        if position < end:
            self._keep(view, position, end)
        else:
            self._own = None

    def feed(self, data: bytes) -> None:
        """Take bytes that stand elsewhere; see `advance` for what it raises."""
        rest = memoryview(data)
        while rest and not self._stopped:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self.advance(count)
            rest = rest[count:]

    @property
    def between_frames(self) -> bool:
        """No frame has begun that is not complete."""
        return not (self._attached or self._kept or self._own is not None)

    def finish(self) -> str:
        """The stream has ended: hand over a rest that can only be noise.

        :returns: what the end cut off, for an error message; empty between frames
        """
        if self._attached:
            return f"{self._attached} bytes before the end of a frame"
        kept = self._filled if self._own is not None else len(self._kept)
        if self._tolerates_noise and 0 < kept < HEADER_SIZE:
            noise, self._kept = self._kept, b""
            self.sink.noise(noise)
            return ""
        return f"{kept} bytes into a frame" if kept else ""

    def stop(self) -> None:
        """Take no more, also in the middle of a read: what came first ended the session."""
        self._stopped = True

    def _scan(self, view: memoryview, end: int) -> int:
        """Hand over all that is complete; return where the unfinished rest begins."""
        position = 0
        while position < end and not self._stopped:
            if self._attached:
                taken = min(end - position, self._attached)
                self._attached -= taken
                self.sink.attached(view[position : position + taken])
                position += taken
                continue
            start = position + HEADER_SIZE
            if start > end:
                if MAGIC.startswith(bytes(view[position : position + 4][: end - position])):
                    return position
                position = self._reject(view, position, end)
                continue
            magic, envelope, attached = _unpack_header(view, position)
            if (
                magic != MAGIC
                or not 0 < envelope <= self.max_frame - attached
                or (start < end and self.leading and view[start] not in self.leading)
            ):
                position = self._reject(view, position, end)
                continue
            stop = start + envelope
            if stop > end:
                return position
            self._attached = attached
            if self.sink.envelope(view[start:stop], attached):
                position = stop
            else:
                self._attached = 0
                position = self._reject(view, position, end)
        return position

    def _keep(self, view: memoryview, position: int, end: int) -> None:
        """Keep the unfinished rest of a frame for the next read."""
        if self._stopped:
            return
        size = end - position
        needed = HEADER_SIZE + _unpack_header(view, position)[1] if size >= HEADER_SIZE else 0
        if needed < len(self._buffer):
            self._own = None
            self._kept = bytes(view[position:end])
            return
        self._filled = size
        if view is self._own and position == 0 and size < len(view):
            return
        # Doubled, so that the copies stay linear; and never by what was only announced.
        self._own = memoryview(bytearray(min(needed, max(2 * size, len(self._buffer)))))
        self._own[:size] = view[position:end]

    def _reject(self, view: memoryview, position: int, end: int) -> int:
        """Skip what is no frame, or fail; return where a frame may begin next."""
        if not self._tolerates_noise:
            raise self._error(view, position, end)
        memory = view.obj
        assert isinstance(memory, bytearray)
        found = memory.find(MAGIC, position + 1, end)
        if found < 0:
            found = end - _magic_prefix_at_end(bytes(view[max(position + 1, end - 3) : end]))
        self.sink.noise(bytes(view[position:found]))
        return found

    def _error(self, view: memoryview, position: int, end: int) -> Exception:
        shown = bytes(view[position : min(end, position + 32)])
        if len(shown) < HEADER_SIZE or not shown.startswith(MAGIC):
            return RemoteProtocolError(
                f"the other side does not speak this protocol; expected a frame, got {shown!r}"
            )
        _, envelope, attached = _unpack_header(view, position)
        if envelope + attached > self.max_frame:
            return FrameTooLarge(
                f"the other side announced a frame of {envelope + attached} bytes; at most "
                f"{self.max_frame} are allowed (Limits.max_frame; less before a session stands)"
            )
        if envelope == 0:
            return RemoteProtocolError("the other side sent a frame with an empty envelope")
        return RemoteProtocolError(
            f"the other side sent an envelope that is no message: {shown[HEADER_SIZE:]!r}"
        )


def _magic_prefix_at_end(data: bytes) -> int:
    """How many bytes at the end could be the beginning of a magic number that is still coming."""
    return next((size for size in (3, 2, 1) if data.endswith(MAGIC[:size])), 0)
