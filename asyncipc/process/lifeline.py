"""The lifeline: a pipe that ends a child when its parent is gone, whatever the child is doing.

The parent holds the only write end of a pipe and never writes to it. The child inherits the read
end. When the parent dies, of whatever cause, the kernel closes the write end, and that kills.

On Linux the kernel itself does the killing: the read end is set to ``O_ASYNC`` with ``SIGKILL`` as
its signal and the child's process group as its owner (``fcntl(2)``, "Managing signals"). No code
runs in the child for it, so it works while the child is stopped, in a busy loop, in C code that
holds the GIL, or blocked in a system call. These settings belong to the open file that parent and
child share, so the *parent* makes them as soon as it knows the process id (`Lifeline.attach`): it
works for programs in any language. What remains is a parent that dies between fork and `attach`; a
child that uses this library covers that itself (`arm_inherited_lifeline`). ``PR_SET_PDEATHSIG``
would be no substitute: it fires when the parent's *thread* ends, and spares grandchildren.

Elsewhere a daemon thread of the child waits for the end of the pipe: it needs a child that uses
this library, and the GIL.

A child that closes the read end (a daemon does) is let go.

Layer 1, beside wire and transport. Above it in this package is ``child``.
"""

import contextlib
import fcntl
import os
import select
import signal
import stat
import struct
import threading
from typing import Final

__all__ = ["LIFELINE_VARIABLE", "Lifeline", "arm_inherited_lifeline", "arm_lifeline"]

LIFELINE_VARIABLE: Final = "ASYNCIPC_LIFELINE_FD"
"""Names the inherited read end to the child: ``<descriptor>:<inode>``.

The inode is there because the variable is inherited further than the descriptor: in a grandchild
the same number may be any other file, which must not be armed.
"""

# Linux alone can choose the signal, and so has the constant.
_KERNEL_KILLS: Final = hasattr(fcntl, "F_SETSIG")

# From <linux/fcntl.h>; the fcntl module has it from Python 3.13 on. F_GETOWN is no use: it returns
# a process group as a negative number, which Python takes for an error.
_F_GETOWN_EX: Final = 16
_OWNER: Final = struct.Struct("ii")  # struct f_owner_ex: type, process or group id


class Lifeline:
    """The parent's side: one for each child, kept until the child was reaped.

    Make it, start the child with `fd` inherited and `environment` added, `attach` the child, and
    `close` it when the child is gone. Closing it earlier kills the child.

    :raises OSError: no descriptors are left
    """

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        self._read_end = _above_standard_streams(read_end)
        _held.add(self)

    @property
    def fd(self) -> int:
        """The read end, which the child must inherit under the same number. Not below 3."""
        return self._read_end

    @property
    def environment(self) -> dict[str, str]:
        """What the child's environment must have, so that it finds the read end."""
        return {LIFELINE_VARIABLE: f"{self._read_end}:{os.fstat(self._read_end).st_ino}"}

    def attach(self, process_group: int) -> None:
        """From now on this process's death kills the group. Closes the read end in this process.

        :param process_group: the group the child leads, so the same number as its process id;
            the child is not reaped yet
        """
        if _KERNEL_KILLS:
            # A group that is not there was reaped already: the application ignores SIGCHLD.
            with contextlib.suppress(ProcessLookupError):
                _kill_at_end_of_pipe(self._read_end, -process_group)
        self._read_end = _closed(self._read_end)

    def cut(self) -> None:
        """Kill the whole group of a child that armed its read end, by ``fd`` handed over to it.

        Where this process still has the read end too, that reaches all of the group, also those
        without the descriptor, and no stranger whose number happens to be the same: the kernel
        remembers the group itself. Linux alone.
        """
        _held.discard(self)
        self._write_end = _closed(self._write_end)

    def close(self) -> None:
        """Let go of both ends. A child that still has its read end is killed. May be repeated."""
        _held.discard(self)
        self._read_end = _closed(self._read_end)
        self._write_end = _closed(self._write_end)


# Every lifeline whose write end is open in this process.
_held: set[Lifeline] = set()


def _release_in_forked_process() -> None:
    # A write end that lived on in a forked sibling would keep children of a dead parent alive.
    for lifeline in tuple(_held):
        lifeline.close()


os.register_at_fork(after_in_child=_release_in_forked_process)


def arm_inherited_lifeline() -> bool:
    """In a child: die when the parent that passed a lifeline is gone, now if it is gone already.

    Kills the whole process group if this process leads it, which is so in every child that this
    library started, else this process alone. Takes `LIFELINE_VARIABLE` out of the environment and
    keeps the descriptor from programs that this process starts.

    :return: False if there is no lifeline here, also where the variable was meant for an ancestor
    """
    fd = _take_inherited()
    if fd is None:
        return False
    os.set_inheritable(fd, False)
    if not _KERNEL_KILLS:
        threading.Thread(
            target=_die_at_end_of_pipe, args=(fd,), name="asyncipc lifeline", daemon=True
        ).start()
        return True
    # The owner that the parent has set stays: its group may be larger than this process knows.
    _, owner = _OWNER.unpack(fcntl.fcntl(fd, _F_GETOWN_EX, bytes(_OWNER.size)))
    if owner == 0:
        _kill_at_end_of_pipe(fd, -os.getpid() if _leads_group() else os.getpid())
    # The signal is sent when the pipe ends, so not for a parent that died before it was asked for.
    if _has_ended(fd):
        _die()
    return True


def arm_lifeline(fd: int) -> None:
    """In a child that leads its group: die with the process that holds the write end. Linux alone.

    :param fd: the read end, handed over by other ways than inheritance
    """
    _kill_at_end_of_pipe(fd, -os.getpid())
    # For a holder that died before.
    if _has_ended(fd):
        _die()


def _take_inherited() -> int | None:
    """The read end that `LIFELINE_VARIABLE` names, if it is that pipe."""
    number, _, inode = os.environ.pop(LIFELINE_VARIABLE, "").partition(":")
    try:
        fd = int(number)
        status = os.fstat(fd)
    except (ValueError, OverflowError, OSError):
        return None
    return fd if stat.S_ISFIFO(status.st_mode) and str(status.st_ino) == inode else None


def _kill_at_end_of_pipe(fd: int, owner: int) -> None:
    """Have the kernel send SIGKILL when ``fd`` ends, to a process or (negative) process group."""
    # The owner comes first: O_ASYNC without one would signal nobody if the pipe ended in between.
    fcntl.fcntl(fd, fcntl.F_SETOWN, owner)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _die_at_end_of_pipe(fd: int) -> None:
    try:
        while os.read(fd, 1):
            pass
    except OSError:
        return  # The process has closed the descriptor: it wants to outlive its parent.
    _die()


def _has_ended(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poller.poll(0))


def _leads_group() -> bool:
    return os.getpgrp() == os.getpid()


def _die() -> None:
    if _leads_group():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _above_standard_streams(fd: int) -> int:
    """The same file under a number above 2: the child's standard streams would replace it there."""
    if fd > 2:
        return fd
    copy: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return copy


def _closed(fd: int) -> int:
    """Close ``fd`` unless it is closed; returns the mark of a closed one."""
    if fd >= 0:
        os.close(fd)
    return -1
