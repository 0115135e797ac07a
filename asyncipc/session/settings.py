"""What a peer hands down to each of its sessions.

Layer 2, inside the session. Below: config, wire.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from asyncipc.config import Limits, Timeouts
from asyncipc.wire.codec import Codec

__all__ = ["CodecMaker", "SessionSettings"]


# Codecs are made when a session has settled on them.
CodecMaker: TypeAlias = Callable[[], Codec]


class SessionSettings(NamedTuple):
    """Settings of a session, shared by all sessions of one peer.

    :ivar codec: name of the one asked for where this side decides
    :ivar codecs: what makes each codec that this side speaks, by name
    :ivar limits: what this side accepts and holds
    :ivar timeouts: how long the steps of opening and closing may take
    :ivar timeout: seconds a request waits for its answer by default; None for no limit
    :ivar request_ids: makes ids that travel with requests for logs and traces
    :ivar tracebacks: whether faults carry the traceback of the handler
    :ivar read_buffer: memory that the decoders of one loop share
    """

    codec: str
    codecs: Mapping[str, CodecMaker]
    limits: Limits
    timeouts: Timeouts
    timeout: float | None
    request_ids: Callable[[], object] | None
    tracebacks: bool
    read_buffer: memoryview
