"""supervisord that ends when the process that started it ends, however that one ended.

Runs supervisord in this process, beside a thread that watches the parent: a sandbox that was killed must not
leave a cluster behind. Arguments: the parent's process id, then those of supervisord.
"""

import os
import select
import signal
import sys
import threading

from supervisor import supervisord


def main() -> None:
    """Watch the parent, be supervisord. Ends at once where the parent is gone already."""
    try:
        parent = os.pidfd_open(int(sys.argv[1]))
    except ProcessLookupError:
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    supervisord.main(sys.argv[2:])


def _end_with(parent: int) -> None:
    select.select([parent], [], [])  # readable from the moment the process has ended
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
