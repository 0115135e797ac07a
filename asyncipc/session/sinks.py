"""Where an outbox writes to: the part of a transport that it uses, and what takes its place.

Layer 2, inside the session. Above: the outbox. Below: transport.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from asyncipc.transport.base import Buffer

__all__ = ["NOWHERE", "DescriptorSink", "Sink"]


class Sink(Protocol):
    """The part of a transport that the outbox uses."""

    def write(self, buffers: Sequence[Buffer]) -> bool:
        """See `asyncipc.transport.base.Transport.write`."""
        ...

    def copy_kept(self) -> None:
        """See `asyncipc.transport.base.Transport.copy_kept`."""


class DescriptorSink(Sink, Protocol):
    """The same of one that can carry descriptors."""

    def write_with_descriptors(self, buffers: Sequence[Buffer], descriptors: Sequence[int]) -> bool:
        """See `asyncipc.transport.base.DescriptorCarrier`."""
        ...


class Nowhere:
    """Takes what is still put after the session's end, and makes nothing of it."""

    def write(self, _buffers: Sequence[Buffer]) -> bool:
        """Everything fits."""
        return True

    def copy_kept(self) -> None:
        """Nothing is kept."""


NOWHERE: Final = Nowhere()
