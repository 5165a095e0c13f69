"""Work in a process of its own, so that its memory is its own, and what processes hold and have used."""

import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

TICKS_S: Final = os.sysconf("SC_CLK_TCK")  # of utime and stime in /proc

P = ParamSpec("P")
T = TypeVar("T")


def alone(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function of a module in a new process, which begins empty, and give what it gives."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def read_bytes(pid: int) -> int:
    """What a process has read from files so far, whether from the disk or from the system's cache."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def resident_mb(pid: int | None = None) -> float:
    """Memory that a process holds now; None: this one."""
    return _status_mb("VmRSS", pid)


def peak_mb() -> float:
    """The most that this process ever held."""
    return _status_mb("VmHWM", None)


def _status_mb(name: str, pid: int | None) -> float:
    path = Path(f"/proc/{pid or 'self'}/status")
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no {name}")
    return int(found[1]) / 1024
