"""What a process uses, as the kernel counts it.

Layer 1, beside wire and transport. Linux alone; elsewhere nothing is known.
"""

import os
from pathlib import Path
from typing import Final

__all__ = ["cpu_time", "private_memory", "resident_memory"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK: Final = os.sysconf("SC_CLK_TCK")


def resident_memory(pid: int) -> int | None:
    """Bytes of physical memory, those shared with other processes included; None if unknown."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def cpu_time(pid: int) -> float | None:
    """Seconds of processor time, user and system; None if unknown."""
    try:
        # The name stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, IndexError, ValueError):
        return None


def private_memory(pid: int) -> int | None:
    """Bytes that would be free if the process ended: what it shares does not count."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    private = 0
    for line in lines:
        if line.startswith("Private_"):
            private += int(line.split()[1]) * 1024
    return private
