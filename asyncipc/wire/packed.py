"""Packed data, before it is unpacked: whether it holds what its lengths announce.

Layer 1. Above: the MessagePack codec, the handshake.
"""

from typing import Final

import msgpack

from asyncipc.wire.attachments import Buffer

__all__ = ["UNCHECKED", "check_lengths"]

# An array is allocated as long as it says, and arrays in arrays may each say that they are as long
# as the whole input: 1024 levels times 8 bytes for each byte received. Up to here that is less
# than 3 MB; for longer input the lengths are added up first, without making anything of it.
UNCHECKED: Final = 1024


def check_lengths(data: Buffer) -> None:
    """Whether all that the lengths in packed data announce is there.

    :raises Exception: it is not
    """
    scanner = msgpack.Unpacker(
        strict_map_key=False, max_buffer_size=max(len(data), 1), read_size=max(len(data), 1)
    )
    scanner.feed(data)
    scanner.skip()
