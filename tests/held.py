"""Runs a storage worker whose store opens no further than its first WAL file while a file is there:
`python -m tests.held FILE workers.storage ...`.
"""

import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from workers.storage.recovery import Recovery, Replayed

POLL_S = 0.02

if __name__ == "__main__":
    held, replay = Path(sys.argv[1]), Recovery.replay

    def slowly(self: Recovery) -> Iterator[Replayed]:
        for each in replay(self):
            yield each
            while held.exists():
                time.sleep(POLL_S)

    Recovery.replay = slowly  # type: ignore[method-assign]
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
