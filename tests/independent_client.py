"""A client written from docs/protocol.md alone: the proof that the page suffices.

It imports nothing of the library, only the standard library and ``msgpack``; and it blocks, as the
simplest client in any language would. It can be read as an example of one. Numbers in brackets are
the sections of the page.
"""

import contextlib
import hashlib
import hmac
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import msgpack

from tests.independent_values import Descriptor, decode, encode

__all__ = ["Client", "Fault", "Gone", "Refused"]

MAGIC = b"\xf3\x4a\x9d\xe2"
HEADER = struct.Struct(">4sII")

HELLO, AUTH, REQUEST, REPLY, FAULT, NOTIFY, CANCEL, ITEMS, END = range(9)
BEGIN, PART, RETRACT, GOODBYE, CREDIT = range(9, 14)
PROGRESS, PING, PONG = range(64, 67)
FIRST_IGNORABLE = 64

METHOD_NOT_FOUND, REFUSED, UNSUPPORTED = 2, 6, 8

# What this client accepts (4).
LIMITS = {
    "max_frame": 65536,
    "max_message": 16 * 2**20,
    "max_requests": 16,
    "notification_credit": 65536,
    "stream_credit": 65536,
}
SMALLEST_LIMITS = {
    "max_frame": 16384,
    "max_message": 16384,
    "max_requests": 1,
    "notification_credit": 16384,
    "stream_credit": 16384,
}

# Of a transfer, this much goes in one part (10).
PART_SIZE = 16000

# Seconds to wait for what comes next.
PATIENCE = 10


class Fault(Exception):
    """A call ended in a fault (15)."""

    def __init__(self, code: int, message: str, details: dict[str, Any] | None) -> None:
        super().__init__(message)
        self.code = code
        self.details = details or {}


class Refused(Exception):
    """The other side wants no session, and says why in a goodbye."""


class Gone(Exception):
    """The other side has said goodbye, or hung up."""


class Client:
    """A session over a unix socket, from the connecting side.

    :param handlers: what the other side may ask for, by method; called with the params
    :param hear: called with the method and the params of a notification
    """

    features: ClassVar[list[str]] = []
    limits: ClassVar[dict[str, int]] = LIMITS

    def __init__(
        self,
        path: str,
        *,
        codec: str = "msgpack",
        token: str | None = None,
        handlers: dict[str, Callable[[Any], Any]] | None = None,
        hear: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.codec = codec
        self.answers: dict[int, list[Any]] = {}  # terminal messages, by the id of their call
        self.sent_credit = 0
        self.batches_seen = 0
        self.transfers_seen = 0
        self._handlers = handlers or {}
        self._hear = hear or (lambda method, params: None)
        self._on_progress: dict[int, Callable[[Any, Any, Any], None]] = {}
        self._open: dict[int, int] = {}  # calls without a terminal message, and their depth
        self._next_id = 2
        self._last_accepted = 0
        self._is_over = False  # the other side has said goodbye
        self._depth = 0  # of the call that is being served
        self._costs: deque[int] = deque()  # of notifications under way (9)
        self._items: dict[int, deque[Any]] = {}  # that came for a call of this side (8)
        self._ended: set[int] = set()  # calls for which no more items come
        self._item_costs: dict[int, deque[int]] = {}  # of items under way, by the call
        self._transfers: dict[int, tuple[list[int], bytearray]] = {}
        self._next_transfer = 1
        self._pongs: set[int] = set()
        self._limits = dict(SMALLEST_LIMITS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
            self._shake_hands(token)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- hello and authentication (4, 5) ---------------------------------------------------

    def _shake_hands(self, token: str | None) -> None:
        instance = os.urandom(16)
        parameters = {
            "versions": [1, 1],
            "instance": instance,
            "codec": self.codec,
            "features": self.features,
            "limits": self.limits,
        }
        mine: bytes = msgpack.packb([HELLO, parameters])
        self._send_frame(mine)
        theirs = self._receive_handshake(HELLO)
        answer = msgpack.unpackb(theirs)[1]
        self.agreed = [name for name in answer.get("features", []) if name in self.features]
        if answer["instance"] == instance:
            raise Refused("an echo")
        lowest, highest = answer["versions"]
        if not lowest <= 1 <= highest:
            raise Refused("no common version")
        if answer["codec"] != self.codec:
            raise Refused("another codec")
        self._limits |= answer.get("limits", {})
        if "hmac-sha256" in answer.get("auth", []):
            if token is None:
                raise Refused("a token is asked for")
            hashes = hashlib.sha256(mine).digest() + hashlib.sha256(theirs).digest()
            proofs = [
                hmac.digest(token.encode(), label + hashes, "sha256")
                for label in (b"asyncipc connecting ", b"asyncipc listening ")
            ]
            self._send_frame(msgpack.packb([AUTH, proofs[0]]))
            proof = msgpack.unpackb(self._receive_handshake(AUTH))[1]
            if not hmac.compare_digest(proof, proofs[1]):
                raise Refused("the other side does not know the token")
        elif token is not None:
            raise Refused("nobody asks for the token")

    def _receive_handshake(self, kind: int) -> bytes:
        envelope, attached = self._receive_frame()
        message = msgpack.unpackb(envelope)
        if message[0] == GOODBYE:
            raise Refused(message[3])
        if message[0] != kind or attached:
            raise Refused(f"unexpected: {message!r}")
        return envelope

    # -- asking (8, 9, 11) -----------------------------------------------------------------

    def request(
        self,
        method: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any, Any, Any], None] | None = None,
    ) -> Any:
        """Ask and wait for the answer."""
        return self.wait(self.start(method, params, timeout=timeout, on_progress=on_progress))

    def start(
        self,
        method: str,
        params: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any, Any, Any], None] | None = None,
    ) -> int:
        """Ask, and return the id of the call."""
        call, message = self._new_request(method, params, timeout)
        if on_progress is not None:
            self._on_progress[call] = on_progress
        self._send(message)
        return call

    def open(
        self, method: str, params: Any, *, takes: bool = False, sends: bool | str | int = False
    ) -> int:
        """Make a call with streams (8), and return its id.

        :param takes: it gives items
        :param sends: items are sent: True, or the place of the parameter that they are
        """
        call, message = self._new_request(method, params, None)
        metadata: dict[str, Any] = {}
        if takes:
            metadata["stream"] = True
            self._items[call] = deque()
        if sends is not False:
            metadata["items"] = sends
            self._item_costs[call] = deque()
        message[5:] = [{**(message[5] if len(message) > 5 else {}), **metadata}]
        self._send(message)
        return call

    def items(self, call: int) -> Iterator[Any]:
        """What a call gives, until there is no more; a `Fault` comes behind it."""
        came = self._items[call]
        while True:
            while came:
                items = came.popleft()
                yield from items
                if call in self._open:
                    self._send([CREDIT, call, 1])
            if call in self._ended or call not in self._open:
                break
            self._receive()
        if call not in self._open:
            self.wait(call)

    def send_items(self, call: int, items: list[Any]) -> None:
        """Send items, as soon as there is credit for them."""
        costs = self._item_costs[call]
        while sum(costs) >= self._limits["stream_credit"] and call in self._open:
            self._receive()
        if call in self._open:
            costs.append(max(64, self._send([ITEMS, call, items])))

    def end_items(self, call: int) -> None:
        """No more items are sent for a call."""
        self._send([END, call])

    def start_batch(self, *requests: tuple[str, Any]) -> list[int]:
        """Several requests in one envelope (6)."""
        prepared = [self._new_request(method, params, None) for method, params in requests]
        self._send_frame(encode(self.codec, [message for _, message in prepared], []))
        return [call for call, _ in prepared]

    def _new_request(
        self, method: str, params: Any, timeout: float | None
    ) -> tuple[int, list[Any]]:
        while list(self._open.values()).count(self._depth) >= self._limits["max_requests"]:
            self._receive()
        if self._is_over:
            raise Gone("the other side has said goodbye")
        call = self._next_id
        self._next_id += 2
        self._open[call] = self._depth
        message = [REQUEST, call, method, params, timeout]
        if self._depth:
            message.append({"depth": self._depth})
        return call, message

    def wait(self, call: int) -> Any:
        """The result of a call; a `Fault` is raised."""
        while call not in self.answers:
            self._receive()
        kind, *fields = self.answers.pop(call)
        if kind == REPLY:
            return fields[0]
        code, message, details = [*fields, None][:3]
        raise Fault(code, message, details)

    def cancel(self, call: int) -> None:
        """Give a call up. Its terminal message comes all the same."""
        self._send([CANCEL, call])

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification, as soon as there is credit for it."""
        while sum(self._costs) >= self._limits["notification_credit"]:
            self._receive()
        self._costs.append(max(64, self._send([NOTIFY, method, params])))

    def ping(self, token: int) -> None:
        """Ask for a sign of life and wait for it."""
        self._send([PING, token])
        while token not in self._pongs:
            self._receive()
        self._pongs.remove(token)

    def close(self) -> None:
        """Say goodbye (13), and read what the other side still has to say."""
        with contextlib.suppress(OSError, Gone):
            self._send([GOODBYE, self._last_accepted, 0, ""])
            self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, Gone):
            while True:
                self._receive()
        self._socket.close()

    # -- sending (2, 10) -------------------------------------------------------------------

    def _send(self, message: list[Any]) -> int:
        """Send a message; return its size with its attachments."""
        attachments: list[Any] = []
        envelope = encode(self.codec, message, attachments)
        if any(isinstance(attachment, Descriptor) for attachment in attachments):
            return self._send_descriptors(envelope, attachments)
        size = len(envelope) + sum(map(len, attachments))
        if attachments or len(envelope) > self._limits["max_frame"]:
            self._send_transfer([envelope, *attachments])
        else:
            self._send_frame(envelope)
        return size

    def _send_transfer(self, segments: list[bytes]) -> None:
        number = self._next_transfer
        self._next_transfer += 1
        data = b"".join(segments)
        head: list[Any] = [BEGIN, number, list(map(len, segments))]
        for start in range(0, len(data), PART_SIZE):
            self._send_frame(encode(self.codec, head, []), data[start : start + PART_SIZE])
            head = [PART, number]

    def _send_descriptors(self, envelope: bytes, attachments: list[Any]) -> int:
        raise NotImplementedError("a client without features has none to send")

    def _send_frame(self, envelope: bytes, attached: bytes = b"") -> None:
        frame = HEADER.pack(MAGIC, len(envelope), len(attached)) + envelope + attached
        try:
            self._socket.sendall(frame)
        except ConnectionError as error:
            raise Gone("the other side hung up") from error

    # -- receiving -------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take one frame, and do what its messages ask for."""
        envelope, attached = self._receive_frame()
        for message in self._messages(envelope, ()):
            self._take(message, attached)

    def _messages(self, envelope: bytes, attachments: Any) -> Iterator[list[Any]]:
        decoded = decode(self.codec, envelope, attachments)
        if not isinstance(decoded[0], list):
            yield decoded
            return
        self.batches_seen += 1
        yield from decoded

    def _take(self, message: list[Any], attached: bytes = b"") -> None:
        kind, *fields = message
        if kind in (BEGIN, PART):
            self._take_part(kind, *fields[:2], attached=attached)
        elif kind in self._ON:
            self._ON[kind](self, kind, *fields)
        elif kind < FIRST_IGNORABLE:
            text = f"kind {kind} is unknown here"
            self._send([FAULT, fields[0] + 1, UNSUPPORTED, text])

    # One method for each kind. It takes the fields that there are, and ignores later ones.

    def _take_answer(self, kind: int, answer_id: int, *fields: Any) -> None:
        call = answer_id - 1
        if self._open.pop(call, None) is not None:
            self.answers[call] = [kind, *fields]

    def _take_request(
        self,
        _kind: int,
        call: int,
        method: str,
        params: Any = None,
        _timeout: float | None = None,
        metadata: dict[str, Any] | None = None,
        *_: Any,
    ) -> None:
        self._last_accepted = call
        handler = self._handlers.get(method)
        if handler is None:
            self._send([FAULT, call + 1, METHOD_NOT_FOUND, f"{method} is unknown here"])
            return
        outer, self._depth = self._depth, (metadata or {}).get("depth", 0) + 1
        try:
            result = handler(params)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            details = {"type": type(error).__name__}
            self._send([FAULT, call + 1, 1, str(error), details])
        else:
            self._send([REPLY, call + 1, result])
        finally:
            self._depth = outer

    def _take_notification(self, _kind: int, method: str, params: Any = None, *_: Any) -> None:
        self._hear(method, params)
        self._send([CREDIT, 0, 1])
        self.sent_credit += 1

    def _take_cancel(self, _kind: int, _call: int, *_: Any) -> None:
        """It always comes too late: requests are served as they come."""

    def _take_credit(self, _kind: int, stream: int, count: int, *_: Any) -> None:
        costs = self._costs if stream == 0 else self._item_costs[stream - 1]
        for _number in range(count):
            costs.popleft()

    def _take_items(self, _kind: int, answer_id: int, items: list[Any], *_: Any) -> None:
        if answer_id - 1 in self._open:
            self._items[answer_id - 1].append(items)

    def _take_end(self, _kind: int, answer_id: int, *_: Any) -> None:
        self._ended.add(answer_id - 1)

    def _take_progress(
        self, _kind: int, answer_id: int, done: Any, total: Any = None, text: Any = None, *_: Any
    ) -> None:
        report = self._on_progress.get(answer_id - 1)
        if report is not None:
            report(done, total, text)

    def _take_ping(self, _kind: int, token: int, *_: Any) -> None:
        self._send([PONG, token])

    def _take_pong(self, _kind: int, token: int, *_: Any) -> None:
        self._pongs.add(token)

    def _take_goodbye(self, _kind: int, last_id: int, code: int, reason: str, *_: Any) -> None:
        if code != 0:
            raise Gone(reason)
        self._is_over = True
        for call in [call for call in self._open if call > last_id]:
            self._take_answer(FAULT, call + 1, REFUSED, "not started")

    def _take_retract(self, _kind: int, number: int, *_: Any) -> None:
        self._transfers.pop(number, None)

    _ON: ClassVar[dict[int, Callable[..., None]]] = {
        REQUEST: _take_request,
        REPLY: _take_answer,
        FAULT: _take_answer,
        NOTIFY: _take_notification,
        CANCEL: _take_cancel,
        RETRACT: _take_retract,
        GOODBYE: _take_goodbye,
        CREDIT: _take_credit,
        ITEMS: _take_items,
        END: _take_end,
        PROGRESS: _take_progress,
        PING: _take_ping,
        PONG: _take_pong,
    }

    def _take_part(self, kind: int, number: int, where: Any = None, *, attached: bytes) -> None:
        if kind == BEGIN:
            self._begin(number, where)
        elif where is not None:
            attached = self._region(*where)
        lengths, data = self._transfers[number]
        data += attached
        if len(data) < sum(lengths):
            return
        del self._transfers[number]
        self.transfers_seen += 1
        segments, start = [], 0
        for length in lengths:
            segments.append(bytes(data[start : start + length]))
            start += length
        self._fill(number, segments)
        for message in self._messages(segments[0], segments[1:]):
            self._take(message)

    # What a client with features does more (see `independent_carrier`).

    def _begin(self, number: int, lengths: list[Any]) -> None:
        self._transfers[number] = (lengths, bytearray())

    def _fill(self, number: int, segments: list[Any]) -> None:
        pass

    def _region(self, *where: int) -> bytes:
        raise NotImplementedError(f"the feature was not agreed on: {where}")

    def _receive_bytes(self, size: int) -> bytes:
        return self._socket.recv(size)

    def _receive_frame(self) -> tuple[bytes, bytes]:
        magic, envelope, attached = HEADER.unpack(self._read(HEADER.size))
        assert magic == MAGIC
        assert 0 < envelope <= LIMITS["max_frame"] - attached
        return self._read(envelope), self._read(attached)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                chunk = self._receive_bytes(size - len(data))
            except ConnectionError as error:
                raise Gone("the other side hung up") from error
            if not chunk:
                raise Gone("the other side hung up")
            data += chunk
        return data
