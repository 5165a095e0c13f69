"""Run by test_crash.py: appends batches until killed, and prints the number of each once it is acked."""

import sys
from pathlib import Path

from tests.workers.storage.support import batch_of, key, open_store

ROWS = 50


def main(directory: Path, first: int, head_rows: int) -> None:
    store = open_store(directory, head_rows=head_rows)
    number = first
    while True:
        rows = [(key(f"d{at % 5}"), number * ROWS + at, float(number)) for at in range(ROWS)]
        store.append([batch_of(rows)])
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
