"""The kernels stay inside their buffers, whatever the bytes: checked with pages that kill the process when touched."""

import ctypes
import mmap
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE = mmap.PAGESIZE
PROT_NONE = 0
ROUNDS = 4000


class Fenced:
    """Memory that ends where a page without access begins, and begins where one ends."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for fence in (0, (pages + 1) * PAGE):
            if libc.mprotect(ctypes.c_void_p(whole.ctypes.data + fence), ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._inside = whole[PAGE:-PAGE]

    def last(self, size: int) -> np.ndarray:
        """The last bytes before the fence."""
        return self._inside[len(self._inside) - size :]


def fuzz() -> None:
    """Runs in a process of its own: a kernel that leaves its buffer ends it by a signal."""
    from common.codec import kernels

    chance = random.Random(11)
    source, target = Fenced(4), Fenced(4)
    for _ in range(ROUNDS):
        count = chance.randint(1, 400)
        out = target.last(8 * count)
        size = chance.randint(8, 2000)
        stream = source.last(size + kernels.SLACK_BYTES)
        stream[:size] = np.frombuffer(chance.randbytes(size), np.uint8) & chance.choice([0, 1, 0x80, 0xFF])
        stream[:size] |= chance.choice([0, 0, 0xF0, 0xFF])
        stream[size:] = 0
        kernels.decode_values(stream, size, out.view(np.uint64))
        kernels.decode_times(stream, size, chance.choice([1, 1000, 10**9]), out.view(np.int64))
        items = source.last(8 * count)
        items[:] = np.frombuffer(chance.randbytes(8 * count), np.uint8) & chance.choice([0x11, 0xFF])
        kernels.encode_values(items.view(np.uint64), target.last(room(count, kernels.MAX_VALUE_BITS)))
        kernels.encode_times(items.view(np.int64), target.last(room(count, kernels.MAX_TIME_BITS)))
        fuzz_columns(chance, source, target, count)
    print("inside")


def fuzz_columns(chance: random.Random, source: Fenced, target: Fenced, count: int) -> None:
    """The kernels behind the other codecs, on anything."""
    from common.codec import decimal_kernels, grid_kernels, integer_kernels, kernels

    items = source.last(8 * count)
    items[:] = np.frombuffer(chance.randbytes(8 * count), np.uint8) & chance.choice([0, 1, 0x11, 0xFF])
    numbers, values, out = items.view(np.int64), items.view(np.float64), target.last(8 * count).view(np.int64)
    integer_kernels.survey(numbers, np.empty(integer_kernels.FINDINGS, np.int64))
    integer_kernels.common_step(numbers)
    kernels.least_value_bytes(items.view(np.uint64), chance.choice([0, 100, 10**6]))
    kernels.time_bytes(numbers, chance.choice([0, 100, 10**6]))
    exponent = decimal_kernels.choose(values, chance.randint(1, 9))
    decimal_kernels.scale(values, max(exponent, 0), out)
    if count > 1:
        skips = np.empty(count, np.int64)
        grid_kernels.find(numbers, out, skips, np.empty(grid_kernels.FINDINGS, np.int64))
        integer_kernels.is_linear(numbers)
    sparse = source.last(chance.randint(0, 99))
    sparse[:] = np.frombuffer(chance.randbytes(len(sparse)), np.uint8) & chance.choice([0x0F, 0x7F, 0xFF])
    integer_kernels.put_back(sparse, out)
    integer_kernels.take_out(out, 1, target.last(integer_kernels.SPARSE_BYTES * count))


def room(count: int, most_bits: int) -> int:
    from common.codec import kernels

    return 8 + count * most_bits // 8 + kernels.SLACK_BYTES


def test_no_kernel_reads_or_writes_outside_its_buffers() -> None:
    run = subprocess.run([sys.executable, __file__], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (run.returncode, run.stdout) == (0, b"inside\n"), run.stderr.decode()


def test_the_fence_kills_a_process_that_touches_it() -> None:
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\nfrom tests.common.test_codec_bounds import Fenced\n"
    script += "Fenced(1).last(8).ctypes.data\nimport ctypes\n"
    script += "ctypes.string_at((fence := Fenced(1)).last(8).ctypes.data, 9)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode < 0


if __name__ == "__main__":
    fuzz()
