"""asyncipc: an asyncio-native IPC RPC library.

The names here are the public ones. Each is imported when it is first used (PEP 562), so that a
process which needs two modules imports two modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncipc.config import NETWORK_LIMITS, Limits, Timeouts
    from asyncipc.errors import (
        AddressError,
        AddressInUse,
        AuthenticationError,
        Busy,
        CallDepthExceeded,
        DecodeError,
        EncodeError,
        FaultCode,
        FrameTooLarge,
        HandshakeTimeout,
        InvalidParams,
        IPCError,
        LocalProtocolError,
        MethodNotFound,
        PeerDied,
        PermissionDenied,
        PoolClosed,
        PoolError,
        ProtocolError,
        RemoteError,
        RemoteProtocolError,
        RequestCancelled,
        RequestRefused,
        RequestTimeout,
        SessionClosed,
        TaskTimeout,
        WorkerDied,
    )
    from asyncipc.peer.address import register_scheme
    from asyncipc.peer.peer import Peer, memory_pair
    from asyncipc.peer.server import Server
    from asyncipc.pool.pool import Pool
    from asyncipc.pool.statistics import PoolStatistics
    from asyncipc.pool.stream import PoolStream
    from asyncipc.pool.task import PoolTask
    from asyncipc.pool.worker_view import Worker
    from asyncipc.runner import run
    from asyncipc.session.channel import Channel, ChannelBroken, ChannelClosed, ChannelEnded
    from asyncipc.session.context import Call, Progress, current_call, progress
    from asyncipc.session.session import Session
    from asyncipc.session.statistics import Statistics
    from asyncipc.session.stream import Stream
    from asyncipc.transport.base import Credentials
    from asyncipc.transport.fd import Fd
    from asyncipc.transport.shared_memory import shared_array, shared_buffer
    from asyncipc.wire.codec import Codec
    from asyncipc.wire.json_codec import JSON
    from asyncipc.wire.msgpack_codec import MessagePack
    from asyncipc.wire.types import message
    from asyncipc.wire.values import Extension

__all__ = [
    "JSON",
    "NETWORK_LIMITS",
    "AddressError",
    "AddressInUse",
    "AuthenticationError",
    "Busy",
    "Call",
    "CallDepthExceeded",
    "Channel",
    "ChannelBroken",
    "ChannelClosed",
    "ChannelEnded",
    "Codec",
    "Credentials",
    "DecodeError",
    "EncodeError",
    "Extension",
    "FaultCode",
    "Fd",
    "FrameTooLarge",
    "HandshakeTimeout",
    "IPCError",
    "InvalidParams",
    "Limits",
    "LocalProtocolError",
    "MessagePack",
    "MethodNotFound",
    "Peer",
    "PeerDied",
    "PermissionDenied",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolStatistics",
    "PoolStream",
    "PoolTask",
    "Progress",
    "ProtocolError",
    "RemoteError",
    "RemoteProtocolError",
    "RequestCancelled",
    "RequestRefused",
    "RequestTimeout",
    "Server",
    "Session",
    "SessionClosed",
    "Statistics",
    "Stream",
    "TaskTimeout",
    "Timeouts",
    "Worker",
    "WorkerDied",
    "__version__",
    "current_call",
    "memory_pair",
    "message",
    "progress",
    "register_scheme",
    "run",
    "shared_array",
    "shared_buffer",
]

__version__ = "0.1.0"

# Where each name lives, for `__getattr__`; type checkers read it off the imports above.
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
        "PoolClosed",
        "PoolError",
        "ProtocolError",
        "RemoteError",
        "RemoteProtocolError",
        "RequestCancelled",
        "RequestRefused",
        "RequestTimeout",
        "SessionClosed",
        "TaskTimeout",
        "WorkerDied",
    ),
    "asyncipc.peer.address": ("register_scheme",),
    "asyncipc.peer.peer": ("Peer", "memory_pair"),
    "asyncipc.peer.server": ("Server",),
    "asyncipc.pool.worker_view": ("Worker",),
    "asyncipc.pool.pool": ("Pool",),
    "asyncipc.pool.statistics": ("PoolStatistics",),
    "asyncipc.pool.stream": ("PoolStream",),
    "asyncipc.pool.task": ("PoolTask",),
    "asyncipc.runner": ("run",),
    "asyncipc.session.channel": ("Channel", "ChannelBroken", "ChannelClosed", "ChannelEnded"),
    "asyncipc.session.context": ("Call", "Progress", "current_call", "progress"),
    "asyncipc.session.session": ("Session",),
    "asyncipc.session.statistics": ("Statistics",),
    "asyncipc.session.stream": ("Stream",),
    "asyncipc.transport.base": ("Credentials",),
    "asyncipc.transport.fd": ("Fd",),
    "asyncipc.transport.shared_memory": ("shared_array", "shared_buffer"),
    "asyncipc.wire.codec": ("Codec",),
    "asyncipc.wire.json_codec": ("JSON",),
    "asyncipc.wire.msgpack_codec": ("MessagePack",),
    "asyncipc.wire.types": ("message",),
    "asyncipc.wire.values": ("Extension",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
