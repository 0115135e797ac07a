"""A child's stderr: inherited, captured, or passed on line by line; always drained.

Owns the pipe. Below it is the event loop; above it the peer layer, which starts the child with
`StderrCapture.fd`, and puts `StderrCapture.tail` into the error when the child dies.

Layer 1.
"""

import asyncio
import codecs
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from asyncipc.callbacks import check_callback

__all__ = ["StderrCapture", "StderrMode"]

StderrMode: TypeAlias = Callable[[str], object] | logging.Logger | Literal["capture"] | None
"""What becomes of a child's stderr: None inherits this process's, ``"capture"`` keeps the tail, a
callback gets each line, a logger gets each line at level INFO (most of what programs write there is
chatter; for another level pass a callback, such as ``logger.warning``)."""

# One read per turn of the loop, so that a child that floods its stderr does not starve the rest.
READ_SIZE: Final = 16 * 1024

# Characters of a line after which it is passed on in pieces.
MAX_LINE: Final = 64 * 1024

# The most that a pipe of an unprivileged process holds (/proc/sys/fs/pipe-max-size). Whatever a
# process has written before it died is within it; a survivor that writes on is not waited for.
MAX_PIPE: Final = 1024 * 1024

_logger = logging.getLogger(__name__)


class StderrCapture:
    """Reads the stderr of one child. The child never waits for it, as long as the loop runs.

    Make it, start the child with `fd` as its stderr, then `start` it. After the child's exit:
    `close` (or `drain`, if more may come), then `tail`. Everything runs on the loop's thread.

    :param mode: see `StderrMode`
    :param limit: bytes of the end of the output to keep (``Limits.stderr_tail``)
    :raises TypeError: the mode is none of those
    :raises OSError: no descriptors are left
    """

    def __init__(self, mode: StderrMode, limit: int) -> None:
        self._sink = _sink(mode)
        self._limit = limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tail = bytearray()
        self._cut = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._unfinished = ""
        # What was read and not yet passed on. A queue, and not a loop's variable, so that lines
        # stay in order when a callback drains or closes the capture.
        self._lines: deque[str] = deque()
        self._read_end: int | None = None
        self._write_end: int | None = None
        if mode is not None:
            self._read_end, self._write_end = os.pipe()
            # The ends are two open files: the child's stays blocking.
            os.set_blocking(self._read_end, False)

    @property
    def fd(self) -> int | None:
        """The descriptor to start the child with; None: it inherits. Closed by `start`."""
        return self._write_end

    @property
    def tail(self) -> str:
        r"""The end of what was read so far; bytes that are no UTF-8 appear as ``\xNN``."""
        text = bytes(self._tail)
        if self._cut:
            # The first character may be cut too: skip what continues it, 3 bytes at most.
            text = text[:3].lstrip(_CONTINUATION_BYTES) + text[3:]
        return text.decode("utf-8", "backslashreplace")

    def start(self) -> None:
        """The child has its end: close it here, and read from now on in the running loop."""
        if self._read_end is None or self._loop is not None:
            return
        self._close_write_end()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_end, self._read)

    def drain(self) -> None:
        """Read what is in the pipe now, without waiting. Complete for what a dead process wrote."""
        remaining = MAX_PIPE
        while remaining > 0 and (count := self._read()) > 0:
            remaining -= count

    def close(self) -> None:
        """Drain, pass on the last line also if it is unfinished, and close. May be repeated.

        What a survivor of the child writes later fails there with EPIPE.
        """
        self._close_write_end()
        self.drain()
        self._end()

    def _read(self) -> int:
        """Read once; returns the number of bytes, 0 if there is nothing (more)."""
        if self._read_end is None:
            return 0
        try:
            data = os.read(self._read_end, READ_SIZE)
        except BlockingIOError:
            return 0
        if data:
            self._feed(data)
        else:
            self._end()
        return len(data)

    def _feed(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > self._limit:
            del self._tail[: -self._limit]
            self._cut = True
        if self._sink is not None:
            *lines, self._unfinished = (self._unfinished + self._decoder.decode(data)).split("\n")
            for line in lines:
                self._lines.extend(_pieces(line.removesuffix("\r")))
            *pieces, self._unfinished = _pieces(self._unfinished)
            self._lines.extend(pieces)
            self._deliver()

    def _end(self) -> None:
        """The end of the pipe, or of interest in it."""
        if self._read_end is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self._read_end = None
        self._unfinished += self._decoder.decode(b"", final=True)
        if self._sink is not None and self._unfinished:
            self._lines.extend(_pieces(self._unfinished))
        self._unfinished = ""
        self._deliver()

    def _deliver(self) -> None:
        while self._sink is not None and self._lines:
            line = self._lines.popleft()
            try:
                self._sink(line)
            except Exception:
                # The child must not block because of it, and later lines are still wanted.
                _logger.exception("the callback for a child's stderr failed on %.200r", line)

    def _close_write_end(self) -> None:
        if self._write_end is not None:
            os.close(self._write_end)
            self._write_end = None

    def __del__(self) -> None:
        # Not there if the mode was refused.
        ends = (getattr(self, "_read_end", None), getattr(self, "_write_end", None))
        unclosed = [end for end in ends if end is not None]
        for end in unclosed:
            os.close(end)
        if unclosed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


_CONTINUATION_BYTES: Final = bytes(range(0x80, 0xC0))


def _sink(mode: StderrMode) -> Callable[[str], object] | None:
    """The function that takes lines, if anything does."""
    if mode is None or mode == "capture":
        return None
    if isinstance(mode, logging.Logger):
        logger = mode
        return lambda line: logger.info("%s", line)
    if callable(mode):
        check_callback("stderr", mode)
        return mode
    raise TypeError(
        'stderr must be None, "capture", a plain function that takes a line, or a logger, '
        f"not {mode!r}"
    )


def _pieces(line: str) -> list[str]:
    """The line in pieces of at most `MAX_LINE`; an empty line is one piece."""
    return [line[start : start + MAX_LINE] for start in range(0, len(line) or 1, MAX_LINE)]
