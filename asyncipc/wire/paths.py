"""Where in a message something went wrong (``params.items[3].when``), and what.

Layer 1. Above: codecs. Below: the table of messages.
"""

from typing import Any

from asyncipc.wire.messages import FIELD_NAMES

__all__ = ["PathError", "describe"]


class PathError(Exception):
    """A value that cannot be sent or understood, and the way to it from the message inward.

    Raised where the fault is; each container on the way out puts its step in front. That costs
    nothing until something goes wrong.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._steps: list[object] = []  # innermost first

    def inside(self, step: object) -> None:
        """The fault lies in a container, under this key or index."""
        self._steps.append(step)

    def text(self, message: list[Any]) -> str:
        """The path and the reason, with the names of the fields of this kind of message."""
        steps = self._steps[::-1]
        if steps and type(steps[0]) is int:
            names = FIELD_NAMES.get(message[0], ()) if type(message[0]) is int else ()
            position = steps[0]
            if 0 < position <= len(names):
                steps[0] = names[position - 1]
        path = "".join(_step(step) for step in steps).removeprefix(".")
        return f"{path or 'message'}: {self.reason}"


def describe(error: Exception) -> str:
    """What an exception says; the name of its class where it says nothing."""
    return str(error) or type(error).__name__


def _step(step: object) -> str:
    if isinstance(step, str) and step.isidentifier():
        return f".{step}"
    shown = repr(step)
    return f"[{shown if len(shown) <= 40 else shown[:37] + '...'}]"
