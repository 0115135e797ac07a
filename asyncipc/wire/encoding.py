"""Makes a message flat: of the few types a codec writes by itself, everything else wrapped.

The walk goes through the message once, copies only containers in which something changes, turns
values of the table (`asyncipc.wire.values`) into extension values, and puts bulk aside. It is the
exact way; a codec that can tell a plain message quickly need not take it.

Layer 1. Above: codecs. Below: values, attachments, paths.
"""

import enum
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from asyncipc.wire.arrays import describe_array, is_array
from asyncipc.wire.attachments import (
    ATTACH_ABOVE,
    BUFFER_TYPES,
    DESCRIPTOR,
    MAX_ATTACHMENTS,
    Attachment,
    Buffer,
    NoDescriptors,
    Writable,
    as_attachment,
)
from asyncipc.wire.paths import PathError, describe
from asyncipc.wire.registry import registration
from asyncipc.wire.values import (
    ARRAY,
    ATTACHMENT,
    BY_CLASS,
    ENUM,
    INT,
    MAX_EXTENSION_DEPTH,
    MESSAGE,
    Extension,
    ValueType,
)

__all__ = ["MAX_DEPTH", "Flattener", "by_type"]

# Containers may nest this deep. Each level takes two frames, of the 1000 that Python allows.
MAX_DEPTH: Final = 256


def by_type(extensions: Sequence[Extension]) -> dict[type, Extension]:
    """The extensions by their class.

    :raises ValueError: two of them share a code or a class
    """
    by_class = {extension.type: extension for extension in extensions}
    by_code = {extension.code for extension in extensions}
    if not len(by_class) == len(by_code) == len(extensions):
        raise ValueError("two extensions share a code or a class")
    return by_class


class Flattener:
    """One walk through one message; a subclass says how its codec writes what is not native.

    :param attachments: buffers and descriptors put aside are appended here
    :param attach_above: put buffers of at least this many bytes aside
    :param extensions: the user's own types
    :param trusted: types whose values are taken as they are, unseen. A quick first attempt trusts
        more than it knows (any str, any int); when writing the result fails, a second attempt
        trusts less and finds the culprit.
    """

    QUICK: ClassVar[frozenset[type]]
    THOROUGH: ClassVar[frozenset[type]]

    def __init__(
        self,
        attachments: list[Attachment],
        *,
        extensions: Mapping[type, Extension],
        trusted: frozenset[type],
        attach_above: int = ATTACH_ABOVE,
    ) -> None:
        self._attachments = attachments
        self._attach_above = attach_above
        self._extensions = extensions
        self._trusted = trusted
        self._open: set[int] = set()  # ids of the registered objects around the current value
        self._depth = 0  # of containers
        self._nesting = 0  # of extension values

    def flat(self, value: Any) -> Any:  # noqa: PLR0911 - one for each native type
        """The value in terms of what the codec writes; itself where there is nothing to change.

        :raises PathError: it cannot be sent
        """
        kind = type(value)
        if kind in self._trusted:
            return value
        if kind is list:
            return self._list(value)
        if kind is dict:
            return self.flat_dict(value)
        if kind is int:
            return self.flat_int(value)
        if kind is str:
            return self._str(value)
        if kind in BUFFER_TYPES:
            return self._buffer(value)
        if kind is float:
            return self.flat_float(value)
        if value is None or kind is bool:
            return value
        return self._extended(value, kind)

    # What the codecs do differently.

    def wrap(self, row: ValueType, payload: Any) -> Any:
        """An extension value of the library; the payload is flat."""
        raise NotImplementedError

    def wrap_extension(self, code: int, payload: Any) -> Any:
        """An extension value of the user; the payload is flat."""
        raise NotImplementedError

    def flat_dict(self, value: dict[Any, Any]) -> Any:
        """A dict; see `flat`."""
        raise NotImplementedError

    def flat_int(self, value: int) -> Any:
        """An int; see `flat`."""
        raise NotImplementedError

    def flat_float(self, value: float) -> Any:
        """A float; see `flat`."""
        raise NotImplementedError

    def flat_bytes(self, value: bytes) -> Any:
        """Bytes that are not put aside; see `flat`."""
        raise NotImplementedError

    # What they share.

    def big_int(self, value: int) -> Any:
        """An int that the codec has no number for; see `flat`."""
        return self.wrap(INT, self._payload(INT.encode, value))

    def key(self, key: Any) -> Any:
        """The key of a dict; see `flat`."""
        try:
            return self.flat(key)
        except PathError as fault:
            raise PathError(f"the key {reprlib.repr(key)}: {fault.reason}") from fault.__cause__

    def enter(self) -> None:
        """Go one container deeper; `leave` on every way out."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._depth -= 1
            raise PathError(f"nested more than {MAX_DEPTH} levels deep, or contains itself")

    def leave(self) -> None:
        """The reverse of `enter`."""
        self._depth -= 1

    def _list(self, items: list[Any]) -> list[Any]:
        trusted, flat = self._trusted, items
        self.enter()
        try:
            for index, item in enumerate(items):
                if type(item) in trusted:
                    continue
                try:
                    new = self.flat(item)
                except PathError as fault:
                    fault.inside(index)
                    raise
                if new is not item:
                    if flat is items:
                        flat = items.copy()
                    flat[index] = new
        finally:
            self.leave()
        return flat

    def _str(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PathError(
                f"{reprlib.repr(text)} is no valid Unicode text ({error.reason})"
            ) from error
        return text

    def _buffer(self, buffer: Buffer) -> Any:
        try:
            size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
            if not self._is_put_aside(size):
                return self.flat_bytes(buffer) if isinstance(buffer, bytes) else self._row(buffer)
            attachment = as_attachment(buffer)
        except ValueError as error:
            raise PathError(f"a memoryview that was released: {error}") from error
        return self._placeholder(attachment, type(buffer).__name__)

    def _is_put_aside(self, size: int) -> bool:
        return size >= self._attach_above and len(self._attachments) < MAX_ATTACHMENTS

    def _placeholder(self, attachment: Attachment, kind: str) -> Any:
        self._attachments.append(attachment)
        index = len(self._attachments) - 1
        return self.wrap(ATTACHMENT, [index, kind])

    def _array(self, value: Any) -> Any:
        head, data = self._payload(describe_array, value)
        if self._is_put_aside(len(data)):
            content = self._placeholder(data, ARRAY.name)
        else:
            content = self.flat_bytes(bytes(data))
        return self.wrap(ARRAY, [*self.flat(head), content])

    def _writable(self, buffer: memoryview) -> Any:
        if not self._is_put_aside(buffer.nbytes):
            return self._row(bytearray(buffer))
        return self._placeholder(as_attachment(buffer), ARRAY.name)

    def _descriptor(self, value: Any) -> Any:
        """A placeholder for an object with a file descriptor, which must be open."""
        name = type(value).__qualname__
        if isinstance(self._attachments, NoDescriptors):
            raise PathError(
                f"a file descriptor ({name}) can only be sent over a unix socket to a side that "
                "takes them"
            )
        if hasattr(value, "do_handshake"):
            raise PathError("a TLS socket cannot be sent: what makes it one is in this process")
        if len(self._attachments) >= MAX_ATTACHMENTS:
            raise PathError(f"a message has at most {MAX_ATTACHMENTS} attachments")
        if self._payload(lambda holder: holder.fileno(), value) < 0:
            raise PathError(f"this {name} is closed")
        return self._placeholder(value, DESCRIPTOR)

    def _extended(self, value: Any, kind: type) -> Any:
        if kind is _Flat:
            return value.content
        self._nesting += 1
        try:
            if self._nesting > MAX_EXTENSION_DEPTH:
                raise PathError(
                    f"objects nested more than {MAX_EXTENSION_DEPTH} levels deep; "
                    "lists and dicts may nest deeper"
                )
            extension = self._extensions.get(kind)
            if extension is not None:
                payload = self._payload(extension.encode, value)
                return self.wrap_extension(extension.code, self.flat(payload))
            if kind in BY_CLASS:
                return self._row(value)
            if isinstance(value, enum.Enum):
                return self.wrap(ENUM, self.flat(self._payload(ENUM.encode, value)))
            entry = registration(kind)
            if entry is not None:
                return self._message(value, entry.lenient)
            return self._foreign(value, kind)
        finally:
            self._nesting -= 1

    def _foreign(self, value: Any, kind: type) -> Any:
        """Of a type that nobody registered."""
        if is_array(kind):
            return self._array(value)
        if kind is Writable:
            return self._writable(value.buffer)
        if callable(getattr(kind, "fileno", None)):
            return self._descriptor(value)
        raise PathError(_advice(kind))

    def _row(self, value: Any) -> Any:
        row = BY_CLASS[type(value)]
        return self.wrap(row, self.flat(self._payload(row.encode, value)))

    def _message(self, value: Any, lenient: bool) -> Any:
        identity = id(value)
        if identity in self._open:
            raise PathError(f"a {type(value).__qualname__} that contains itself")
        self._open.add(identity)
        try:
            name, fields = self._payload(MESSAGE.encode, value)
            if lenient:
                fields = self._what_fits(fields)
            # Not as part of the payload, so that a path has no step for the payload itself.
            return self.wrap(MESSAGE, [self.flat(name), self.flat(fields)])
        finally:
            self._open.discard(identity)

    def _what_fits(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of an exception with their contents flat, as far as they can be sent."""
        args = [self._attempt(arg) or reprlib.repr(arg) for arg in fields["args"]]
        state = {key: self._attempt(item) for key, item in fields["state"].items()}
        return {"args": args, "state": {key: item for key, item in state.items() if item}}

    def _attempt(self, value: Any) -> "_Flat | None":
        """A value made flat; None, with nothing left of the attempt, where it cannot be sent."""
        attached = len(self._attachments)
        try:
            return _Flat(self.flat(value))
        except PathError:
            del self._attachments[attached:]
            return None

    def _payload(self, encode: Any, value: Any) -> Any:
        try:
            return encode(value)
        except PathError:
            raise
        except Exception as error:  # code of the user's class or extension may run here
            raise PathError(describe(error)) from error


class _Flat:
    """Something that was made flat before, on its way through `Flattener.flat`."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


def _advice(kind: type) -> str:
    """Why a value of an unknown type is not sent, and what can be done about it."""
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    convert = "or convert the value, or give the codec an Extension"
    for base in kind.__mro__[1:-1]:
        if registration(base) is not None:
            return f"{name} is not registered, its base {base.__qualname__} is: put @message on it"
        if base in BY_CLASS or base in _PLAIN:
            what = f"{name} is a subclass of {base.__qualname__} and would not arrive as itself"
            if base is tuple and hasattr(kind, "_fields"):
                return f"{what}: put @message on the class, {convert}"
            return (
                f"{what}: convert it with {base.__qualname__}(...), or give the codec an Extension"
            )
    return f"a value of type {name} cannot be sent: put @message on the class, {convert}"


_PLAIN: Final = frozenset({int, float, str, bytes, list, dict})
