"""The note of the ringctl that carries moves out: who it is, and whether that process lives.

Owns the note's text, which is for people but for the process in it. Judges only processes that it can see: those of
this machine since it was started, in the same namespace of processes. Names of hosts are no proof of that: machines
bear the same name, and containers do.
Thread: that of the caller.
"""

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import Final

from common import clock
from common.timestamps import NS_PER_S
from tools.output import time_text

PROC: Final = Path("/proc")
NOTED: Final = re.compile(r" on (\S+), process (\d+) \(begun (\d+) (\S+)\), ")
ENDED: Final = ("Z", "X")  # states of a process that was killed, and that its parent did not look after yet


def note(token: str) -> str:
    """What this process says of itself. token: its own, at the end."""
    now = time_text(clock.wall_ns() // NS_PER_S * NS_PER_S)
    begun, here = _begun(os.getpid()), _here()
    exactly = f" (begun {begun} {here})" if begun and here else ""
    return f"ringctl on {socket.gethostname()}, process {os.getpid()}{exactly}, last heard {now}, {token}"


def is_gone(text: str) -> bool:
    """Whether the process of a note has certainly ended. False where that cannot be told from here."""
    found = NOTED.search(text)
    if not found or not _here() or (found[1], found[4]) != (socket.gethostname(), _here()):
        return False
    begun = _begun(int(found[2]))
    return begun != int(found[3]) if begun is not None else not _exists(int(found[2]))


def _exists(pid: int) -> bool:
    """Whether there is a process, also where /proc hides those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _begun(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was (proc(5), field 22); 0 for one that has ended and is
    still listed; None for one that is not to be seen.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return 0 if fields[0] in ENDED else int(fields[19])


def _here() -> str:
    """Names the start of this machine and the namespace of its processes; "" where they are not known."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = str((PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
    return hashlib.blake2b(f"{boot} {namespace}".encode(), digest_size=6).hexdigest()
