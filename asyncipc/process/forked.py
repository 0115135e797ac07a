"""A process that another one forked for this one: seen by its pidfd, killed by its lifeline.

Only its parent can reap it, so who forked it reports the exit status (`ForkedProcess.report`). If
that one is dead too, PID 1 reaps it, which in a container may be this process. Otherwise the kernel
is asked (``PIDFD_GET_INFO``, Linux 6.15), or the status stays unknown.

Signals never go to a bare number, which could be a stranger's by now: SIGTERM goes through the
pidfd, and SIGKILL through the lifeline, whose end the kernel turns into one for the whole group.

Layer 1, beside wire and transport. Below it in this package are ``handle`` and ``lifeline``.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
from typing import Final

from asyncipc.process.handle import UNKNOWN_STATUS, ProcessHandle
from asyncipc.process.lifeline import Lifeline

__all__ = ["ForkedProcess"]

# Seconds that who forked the process gets to report its exit status. It does at once.
REPORT_WAIT: Final = 1.0

# From <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes and
# ends with the status of a process that was reaped.
_PIDFD_GET_INFO: Final = 0xC040FF0B
_PIDFD_INFO_EXIT: Final = 1 << 3
_INFO: Final = struct.Struct("=QQ11Ii")


class ForkedProcess(ProcessHandle):
    """A running or ended process; it leads its group and has armed the lifeline.

    :param pid: its number, for people and for ``/proc``
    :param pidfd: a descriptor of it, taken over
    :param lifeline: its lifeline, of which this process still has both ends; taken over
    """

    def __init__(
        self, pid: int, pidfd: int, lifeline: Lifeline, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(loop)
        self._pid = pid
        self._pidfd = pidfd
        self._lifeline = lifeline
        self._status: int | None = None
        self._waits_for_report: asyncio.TimerHandle | None = None
        self._has_reporter = True
        loop.add_reader(pidfd, self._on_exit_noticed)

    @property
    def pid(self) -> int:
        """The process id, also the number of its process group and session."""
        return self._pid

    def terminate(self) -> None:
        """Ask the process to end: SIGTERM, to it alone. Nothing happens after its exit."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
                # A stopped process takes SIGTERM only when it goes on.
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the whole process group: SIGKILL. Nothing happens after the exit."""
        if self._pidfd >= 0:
            self._lifeline.cut()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def report(self, returncode: int) -> None:
        """Who forked it has reaped it."""
        self._status = returncode
        if self._waits_for_report is not None:
            self._bury()

    def lose_reporter(self) -> None:
        """Who forked it will report nothing more."""
        self._has_reporter = False
        if self._waits_for_report is not None:
            self._bury()

    def __repr__(self) -> str:
        return f"<ForkedProcess {self._pid} {self._how_it_stands()}>"

    def _on_exit_noticed(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._status is not None or not self._has_reporter:
            self._bury()
        else:
            self._waits_for_report = self._loop.call_later(REPORT_WAIT, self._bury)

    def _bury(self) -> None:
        if self._waits_for_report is not None:
            self._waits_for_report.cancel()
            self._waits_for_report = None
        status = self._status
        if status is None:
            status = _reap_orphan(self._pidfd)
        if status is None:
            status = _status_of_reaped(self._pidfd)
        self._is_status_unknown = status is None
        self._returncode = UNKNOWN_STATUS if status is None else status
        # What is left of its group ends with it.
        self._lifeline.cut()
        self._lifeline.close()
        os.close(self._pidfd)
        self._pidfd = -1
        self._tell_exit()

    def __del__(self) -> None:
        # The loop holds the object while it watches, so the loop is closed or gone.
        if self._pidfd >= 0:
            self._lifeline.cut()
            self._lifeline.close()
            os.close(self._pidfd)


def _reap_orphan(pidfd: int) -> int | None:
    """The exit status of a dead process that this one has inherited; None if it has not."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except OSError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _status_of_reaped(pidfd: int) -> int | None:
    """The exit status of a process that somebody reaped, where the kernel still knows it."""
    request = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return None
    mask, *_, status = _INFO.unpack(request)
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None
