"""The values of the independent client: MessagePack and JSON, from docs/protocol.md alone (6, 16).

Of the extension values it understands those that are plain data under another name, and takes the
rest for text.
"""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

__all__ = ["Descriptor", "decode", "encode"]

# Binary from so many bytes on is attached (10).
ATTACH_FROM = 4096

ATTACHMENT, INT = 64, 70
AS_THEY_ARE = {65: "bytearray", 66: "memoryview", 67: "tuple", 68: "set", 69: "frozenset"}
CODES = {"$attachment": ATTACHMENT, "$int": INT, **{f"${n}": c for c, n in AS_THEY_ARE.items()}}


class Descriptor(int):
    """A file descriptor, where it is to be sent as one."""


def encode(codec: str, message: Any, attachments: list[Any]) -> bytes:
    """A message or a batch as an envelope; large binary goes to the attachments."""
    if codec == "json":
        return json.dumps(_to_json(message, attachments), ensure_ascii=False).encode()
    data: bytes = msgpack.packb(_to_msgpack(message, attachments))
    return data


def decode(codec: str, envelope: bytes, attachments: Sequence[Any]) -> Any:
    """What an envelope holds."""
    if codec == "json":
        return _from_json(json.loads(envelope), attachments)

    def extension(code: int, payload: bytes) -> Any:
        value = msgpack.unpackb(payload, ext_hook=extension, strict_map_key=False)
        return _understood(code, value, attachments)

    return msgpack.unpackb(envelope, ext_hook=extension, strict_map_key=False)


def _understood(code: int, payload: Any, attachments: Sequence[Any]) -> Any:
    if code == ATTACHMENT:
        return attachments[payload[0]]
    if code == INT:
        return int(payload, 16)
    return payload if code in AS_THEY_ARE else str(payload)


def _attached(value: Any, attachments: list[Any]) -> list[Any]:
    attachments.append(value)
    return [len(attachments) - 1, "bytes" if isinstance(value, bytes) else "descriptor"]


def _goes_aside(value: Any) -> bool:
    return isinstance(value, Descriptor) or (isinstance(value, bytes) and len(value) >= ATTACH_FROM)


def _to_msgpack(value: Any, attachments: list[Any]) -> Any:
    if _goes_aside(value):
        return msgpack.ExtType(ATTACHMENT, msgpack.packb(_attached(value, attachments)))
    if isinstance(value, list):
        return [_to_msgpack(item, attachments) for item in value]
    if isinstance(value, dict):
        return {key: _to_msgpack(item, attachments) for key, item in value.items()}
    return value


def _to_json(value: Any, attachments: list[Any]) -> Any:
    escaped = value
    if _goes_aside(value):
        escaped = {"$attachment": _attached(value, attachments)}
    elif isinstance(value, bytes):
        escaped = {"$bytes": base64.b64encode(value).decode()}
    elif isinstance(value, list):
        escaped = [_to_json(item, attachments) for item in value]
    elif isinstance(value, dict):
        pairs = [[_to_json(key, attachments), _to_json(value[key], attachments)] for key in value]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        escaped = dict(pairs) if plain else {"$dict": pairs}
    elif type(value) is int and abs(value) > 2**53 - 1:
        escaped = {"$int": format(value, "x")}
    return escaped


def _from_json(value: Any, attachments: Sequence[Any]) -> Any:
    if isinstance(value, list):
        return [_from_json(item, attachments) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _from_json(item, attachments) for key, item in value.items()}
    for name, payload in value.items():
        if name in ESCAPES:
            return ESCAPES[name](payload)
        if name.startswith("$"):
            return _understood(CODES.get(name, 0), payload, attachments)
    return value


ESCAPES: dict[str, Callable[[Any], Any]] = {
    "$bytes": base64.b64decode,
    "$float": float,
    "$dict": dict,
}
