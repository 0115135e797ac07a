"""What a caller may write, checked and brought into the one form that stands on the wire.

Layer 2, inside the session. Below: wire.
"""

from collections.abc import Mapping
from typing import Any, Final

from asyncipc.wire.registry import is_message, wire_name

__all__ = ["DEFAULT_TIMEOUT", "DefaultTimeout", "check_timeout", "normalize"]


class DefaultTimeout:
    """The type of `DEFAULT_TIMEOUT`, which stands for a timeout that was not given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<the peer's timeout>"


DEFAULT_TIMEOUT: Final = DefaultTimeout()


def normalize(method: Any, params: Any) -> tuple[str, Any]:
    """The method and the params as they stand on the wire: absent, an array, or a map.

    :raises TypeError: the method is neither a string nor a registered message
    """
    if is_message(method):
        if params is not None:
            raise TypeError("a message object is the one parameter; nothing can stand beside it")
        name = wire_name(type(method))
        assert name is not None
        return name, [method]
    if not isinstance(method, str):
        raise TypeError(
            "the method must be a string or an object of a class registered with @message, "
            f"not {method!r:.60}"
        )
    if params is None or params.__class__ in (dict, list):
        return method, params
    if isinstance(params, Mapping) and not is_message(params):
        return method, dict(params)
    return method, [params]


# A timeout of more seconds than this (30 years) is none: not every clock could take it.
LONGEST_TIMEOUT: Final = 1e9


def check_timeout(timeout: object) -> float | None:
    """Check what was given as a timeout.

    :returns: the timeout; None where it is so long that it is none
    :raises TypeError: it is neither seconds nor None
    :raises ValueError: it is negative or not a number
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be seconds or None, not {timeout!r:.60}")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, but is {timeout!r}")
    return timeout if timeout <= LONGEST_TIMEOUT else None
