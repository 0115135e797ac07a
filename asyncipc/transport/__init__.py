"""Transports: bytes between the kernel, or a library's streams, and a receiver.

``base`` is the contract. ``sockets`` and ``pipes`` share ``polled``; ``stdio`` is a pair of pipes;
``tls`` and ``streams`` stand on what asyncio and anyio bring along; ``memory`` stands on nothing.

Layer 1. Above: the session and the peer. Below: errors.
"""
