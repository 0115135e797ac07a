"""How many bytes an echo takes on asyncipc's wire: what the raw floors pass back and forth."""

import msgpack

from benchmarks.worker import MESSAGE

__all__ = ["REPLY_SIZE", "REQUEST_SIZE"]

# docs/protocol.md: a header of 12 bytes, then [kind, id, method, params, timeout] or
# [kind, id, result]; ids beyond the first hundreds take three bytes.
_HEADER_SIZE = 12
_ID = 20_000

REQUEST_SIZE = _HEADER_SIZE + len(msgpack.packb([2, _ID, "echo", MESSAGE, 30.0]))
REPLY_SIZE = _HEADER_SIZE + len(msgpack.packb([3, _ID, MESSAGE]))
