"""What a call takes over from the one that it is made for: remaining time, and depth.

Layer 2, inside the session. Above: the calls. Below: config.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from asyncipc.errors import CallDepthExceeded, LocalProtocolError
from asyncipc.session.context import Call
from asyncipc.session.settings import SessionSettings

__all__ = ["Inherited", "inherit"]

# The timeout, the depth and the metadata of a call.
Inherited = tuple[float | None, int, dict[str, Any] | None]

# Metadata that the library makes itself.
OWN_KEYS: Final = ("depth", "items", "stream")


class Heir(Protocol):
    """The calls of a session, one of which takes something over."""

    session: object
    settings: SessionSettings


def inherit(
    calls: Heir,
    parent: Call | None,
    timeout: float | None,
    metadata: Mapping[str, Any] | None,
    *,
    inherits: bool,
) -> Inherited:
    """Timeout, depth and metadata of a call.

    :param parent: the call that is being served where this one is made
    :param inherits: take over the time that the parent has left
    :raises ValueError: the metadata has a key of the library's own
    :raises CallDepthExceeded: calls are nested too deeply
    """
    settings = calls.settings
    extra = dict(metadata) if metadata is not None else {}
    for key in OWN_KEYS:
        if key in extra:
            raise ValueError(f"the metadata key {key!r} is the library's own; take another name")
    if settings.request_ids is not None and "request_id" not in extra:
        try:
            extra["request_id"] = settings.request_ids()
        except StopIteration:
            raise LocalProtocolError("the peer's request_ids have come to their end") from None
    depth = 0
    # What outlives the call it was started for is a call's work no longer.
    if parent is not None and not parent.finished:
        remaining = parent.remaining
        if inherits and remaining is not None:
            timeout = remaining if timeout is None else min(timeout, remaining)
        if parent.session is calls.session:
            depth = parent.depth + 1
            if depth > settings.limits.max_depth:
                raise CallDepthExceeded(
                    f"calls of this session are nested {depth} deep; "
                    f"Limits.max_depth is {settings.limits.max_depth}"
                )
            extra["depth"] = depth
    return timeout, depth, extra or None
