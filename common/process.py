"""How a worker process begins and ends: configuration, logging, mode, signals, one-line fatal errors.

Owns the process's signal handlers. `run` is called once, from the main thread.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from common import config, log
from common.errors import ConfigError, MinitrueError
from common.wake import Wake

MODE_VARIABLE = "MINITRUE_MODE"
MODES = ("ingestion", "query", "all")
NOT_HERE = 78  # exit code of a worker that this machine's mode leaves out; supervisord expects it
_PAST_STARTSECS_S = 5.5  # supervisord takes an earlier exit for a failed start, whatever its code

Role = Literal["ingestion", "query"]


class Stop:
    """Set by SIGTERM or SIGINT. Pollable: `fileno` becomes readable and stays so."""

    def __init__(self) -> None:
        self._wake = Wake()
        self._set = False

    def set(self) -> None:
        """Ask the process to end. Safe in a signal handler and from any thread."""
        self._set = True
        self._wake.set()

    def is_set(self) -> bool:
        """Whether the process was asked to end."""
        return self._set

    def fileno(self) -> int:
        """A descriptor that is readable from the moment the process was asked to end."""
        return self._wake.fileno()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until asked to end, at most timeout_s (None: for ever); whether it was."""
        if not self._set:
            self._wake.wait(timeout_s)
        return self._set


def run(worker: str, role: Role, body: Callable[[config.Settings, Stop], None], config_file: str | None = None) -> None:
    """Load the configuration, set up logging, and run `body(settings, stop)` until it returns; then exit.

    Exit codes: 0 after a clean stop, 1 after a MinitrueError (printed in one line), 78 when MINITRUE_MODE leaves
    this role out.
    """
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = config.load(Path(config_file) if config_file else None)
        log.setup(settings.log, worker)
        if not _role_wanted(worker, role):
            sys.exit(NOT_HERE)
        body(settings, stop)
    except MinitrueError as error:
        print(f"minitrue {worker}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def _role_wanted(worker: str, role: Role) -> bool:
    mode = os.environ.get(MODE_VARIABLE, "all")
    if mode not in MODES:
        raise ConfigError(f"{MODE_VARIABLE}={mode!r}: want one of {', '.join(MODES)}")
    if mode in ("all", role):
        return True
    log.get(worker).info("left out on this machine", mode=mode, role=role)
    time.sleep(_PAST_STARTSECS_S)
    return False
