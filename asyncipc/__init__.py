"""asyncipc: an asyncio-native IPC RPC library.

The names here are the public ones. Each is imported when it is first used (PEP 562), so that a
process which needs two modules imports two modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncipc.config import NETWORK_LIMITS as NETWORK_LIMITS
    from asyncipc.config import Limits as Limits
    from asyncipc.config import Timeouts as Timeouts
    from asyncipc.errors import AddressError as AddressError
    from asyncipc.errors import AddressInUse as AddressInUse
    from asyncipc.errors import AuthenticationError as AuthenticationError
    from asyncipc.errors import Busy as Busy
    from asyncipc.errors import CallDepthExceeded as CallDepthExceeded
    from asyncipc.errors import DecodeError as DecodeError
    from asyncipc.errors import EncodeError as EncodeError
    from asyncipc.errors import FaultCode as FaultCode
    from asyncipc.errors import FrameTooLarge as FrameTooLarge
    from asyncipc.errors import HandshakeTimeout as HandshakeTimeout
    from asyncipc.errors import InvalidParams as InvalidParams
    from asyncipc.errors import IPCError as IPCError
    from asyncipc.errors import LocalProtocolError as LocalProtocolError
    from asyncipc.errors import MethodNotFound as MethodNotFound
    from asyncipc.errors import PeerDied as PeerDied
    from asyncipc.errors import PermissionDenied as PermissionDenied
    from asyncipc.errors import ProtocolError as ProtocolError
    from asyncipc.errors import RemoteError as RemoteError
    from asyncipc.errors import RemoteProtocolError as RemoteProtocolError
    from asyncipc.errors import RequestCancelled as RequestCancelled
    from asyncipc.errors import RequestRefused as RequestRefused
    from asyncipc.errors import RequestTimeout as RequestTimeout
    from asyncipc.errors import SessionClosed as SessionClosed
    from asyncipc.peer.address import register_scheme as register_scheme
    from asyncipc.peer.peer import Peer as Peer
    from asyncipc.peer.peer import memory_pair as memory_pair
    from asyncipc.peer.server import Server as Server
    from asyncipc.runner import run as run
    from asyncipc.session.context import Call as Call
    from asyncipc.session.context import Progress as Progress
    from asyncipc.session.context import current_call as current_call
    from asyncipc.session.context import progress as progress
    from asyncipc.session.session import Session as Session
    from asyncipc.session.session import Statistics as Statistics
    from asyncipc.transport.base import Credentials as Credentials
    from asyncipc.wire.codec import Codec as Codec
    from asyncipc.wire.json_codec import JSON as JSON
    from asyncipc.wire.msgpack_codec import MessagePack as MessagePack
    from asyncipc.wire.types import message as message
    from asyncipc.wire.values import Extension as Extension

__version__ = "0.1.0"

_MODULES = {
    "asyncipc.config": ("Limits", "NETWORK_LIMITS", "Timeouts"),
    "asyncipc.errors": (
        "AddressError",
        "AddressInUse",
        "AuthenticationError",
        "Busy",
        "CallDepthExceeded",
        "DecodeError",
        "EncodeError",
        "FaultCode",
        "FrameTooLarge",
        "HandshakeTimeout",
        "IPCError",
        "InvalidParams",
        "LocalProtocolError",
        "MethodNotFound",
        "PeerDied",
        "PermissionDenied",
        "ProtocolError",
        "RemoteError",
        "RemoteProtocolError",
        "RequestCancelled",
        "RequestRefused",
        "RequestTimeout",
        "SessionClosed",
    ),
    "asyncipc.peer.address": ("register_scheme",),
    "asyncipc.peer.peer": ("Peer", "memory_pair"),
    "asyncipc.peer.server": ("Server",),
    "asyncipc.runner": ("run",),
    "asyncipc.session.context": ("Call", "Progress", "current_call", "progress"),
    "asyncipc.session.session": ("Session", "Statistics"),
    "asyncipc.transport.base": ("Credentials",),
    "asyncipc.wire.codec": ("Codec",),
    "asyncipc.wire.json_codec": ("JSON",),
    "asyncipc.wire.msgpack_codec": ("MessagePack",),
    "asyncipc.wire.types": ("message",),
    "asyncipc.wire.values": ("Extension",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: PLE0604 - the names are strings
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
