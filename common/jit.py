"""Compiled kernels: the only module that imports numba. Owns the kernel cache and the lock around compiling.

    @jit.kernel(jit.int64(jit.readonly(jit.float64), jit.uint8[::1]))
    def encode(values, out): ...

A kernel has one explicit signature, so it is compiled, or loaded from the cache, when its module is imported, and
never at the first request. It releases the GIL and keeps strict IEEE arithmetic. `python -m common.jit`
compiles every kernel module; `make env` calls it.

Rules for a kernel module
- numba does not see a change in a function of another file, so a kernel calls kernels and helpers of its own
  file, and the intrinsics below, and nothing else.
- Numba turns uint64 mixed with int64 into float64: write unsigned arithmetic with np.uint64 constants only.
- A shift by 64 or more is undefined: bring the count below 64 first.
- Index checks are off: a kernel proves its indices, or its caller does.

The cache lies in the environment, <sys.prefix>/var/minitrue-kernels, and nowhere else. Two traps of numba's cache
shape it. Two processes that compile one kernel at once can leave a file that returns wrong numbers: every
compile and load holds an exclusive lock. And numba names the new code in its index before it writes it, so a
process killed in between leaves the new name on the old code: each version of a source file therefore has a
directory of its own, named by a digest of that file, this file and numba's version. Where the cache is not
writable kernels are compiled at every start, with a warning, rather than written elsewhere.

NUMBA_DISABLE_JIT=1 runs kernels as plain Python (for coverage); the intrinsics then are Python too.
Thread rule: importing a kernel module is safe in any thread; kernels share no state.
"""

import fcntl
import hashlib
import importlib
import inspect
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numba.core.caching
import numba.core.config
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic

from common import log

KERNEL_MODULES = (
    "common.codec.kernels",
    "common.codec.integer_kernels",
    "common.codec.decimal_kernels",
    "common.codec.grid_kernels",
    "common.codec.small_kernels",
    "workers.storage.kernels",
    "workers.storage.aggregate_kernels",
    "workers.storage.window_kernels",
    "workers.storage.step_kernels",
    "workers.storage.value_kernels",
    "workers.storage.scan_kernels",
    "workers.storage.compaction_kernels",
    "workers.storage.digest_kernels",
)
CACHE = Path(sys.prefix) / "var" / "minitrue-kernels"

void, boolean = types.void, types.boolean
uint8, uint16, uint32, uint64 = types.uint8, types.uint16, types.uint32, types.uint64
int32, int64, float64 = types.int32, types.int64, types.float64

_OPTIONS: Any = {"nogil": True, "fastmath": False, "boundscheck": False}
_TORN = (EOFError, pickle.UnpicklingError)  # what numba raises on a cache file that a power cut left short

config: Any = numba.core.config
Function = Callable[..., Any]
logger = log.get("jit")


def readonly(dtype: Any) -> Any:
    """The type of a one-dimensional contiguous array that the kernel only reads; writable ones are taken too."""
    return types.Array(dtype, 1, "C", readonly=True)


def kernel(signature: Any) -> Callable[[Function], Function]:
    """Compile a function for one signature, or load it from the cache, under the lock.

    signature: a numba signature such as `int64(readonly(float64), uint8[::1])`.
    """

    def decorate(function: Function) -> Function:
        if config.DISABLE_JIT:
            return np.errstate(over="ignore")(function)  # unsigned arithmetic wraps without a word, as compiled
        if not _writable():
            compiled: Function = numba.njit(signature, cache=False, **_OPTIONS)(function)
            return compiled
        with _locked():
            return _load_or_compile(signature, function)

    return decorate


def helper(function: Function) -> Function:
    """A function that is compiled into the kernels of the same file that call it; not to be called from Python."""
    inlined: Function = numba.njit(**_OPTIONS)(function)
    return inlined


def _load_or_compile(signature: Any, function: Function) -> Function:
    directory = CACHE / _version(inspect.getfile(function))
    try:
        return _cached(signature, function, directory)
    except _TORN:
        logger.warning("kernel cache damaged, compiling again", directory=str(directory))
        shutil.rmtree(directory)
        return _cached(signature, function, directory)


def _cached(signature: Any, function: Function, directory: Path) -> Function:
    config.CACHE_DIR = str(directory)
    # Numba keeps code by the path of its source: by the real one, a checkout reached by a link finds what is there.
    source = os.path.realpath(inspect.getfile(function))
    function.__code__ = function.__code__.replace(co_filename=source)
    dispatcher: Any = numba.njit(**_OPTIONS)(function)
    dispatcher._cache = _Cache(function)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    if dispatcher.stats.cache_misses:
        _make_durable(directory)
    compiled: Function = dispatcher
    return compiled


_FunctionCache: Any = numba.core.caching.FunctionCache


class _Cache(_FunctionCache):  # type: ignore[misc]
    """Numba's cache, loading at a quarter less of a storage worker's start.

    Before it loads code numba brings in everything that can be compiled: linear algebra, random numbers, typed
    dictionaries. Code that is there already needs nothing of it but the runtime; a compilation brings it in by itself.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for a signature, None where there is none."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def _make_durable(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _version(source: str) -> str:
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for path in (Path(source), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked() -> Iterator[None]:
    descriptor = os.open(CACHE / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _writable() -> bool:
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _warn_unwritable()
    return os.access(CACHE, os.W_OK | os.X_OK) or _warn_unwritable()


def _warn_unwritable() -> bool:
    if logger.limited("unwritable", 3600.0):
        logger.warning("kernel cache not writable, compiling at every start", directory=str(CACHE))
    return False


def _single(name: str, python: Callable[[int], int]) -> Any:
    """A uint64 -> uint64 function that is one LLVM instruction; ctlz and cttz give 64 for 0."""
    if config.DISABLE_JIT:
        return lambda word: np.uint64(python(int(word)))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(arguments[0], ir.Constant(ir.IntType(1), 0))

    @intrinsic
    def count(typing_context: Any, word: Any) -> Any:
        return uint64(uint64), generate

    return count


leading_zeros = _single("ctlz", lambda word: 64 - word.bit_length())
trailing_zeros = _single("cttz", lambda word: (word & -word).bit_length() - 1 if word else 64)


@intrinsic
def _compiled_choose(typing_context: Any, condition: Any, one: Any, other: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen = builder.select(*arguments)
        chosen.set_metadata("unpredictable", builder.module.add_metadata([]))
        return chosen

    return uint64(boolean, uint64, uint64), generate


# choose(condition, one, other): of two uint64 the first if true, without a branch that the processor has to guess.
# Plain `one if condition else other` is for numba a branch, which LLVM removes or not as it sees fit.
choose: Any = (lambda condition, one, other: one if condition else other) if config.DISABLE_JIT else _compiled_choose


def _word_address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    address = builder.gep(data, [offset])
    return builder.bitcast(address, ir.IntType(64).as_pointer())


@intrinsic
def _compiled_load_word(typing_context: Any, array: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _word_address(context, builder, signature.args[0], *arguments)
        return builder.bswap(builder.load(address, align=1))

    return uint64(array, types.intp), generate


@intrinsic
def _compiled_store_word(typing_context: Any, array: Any, offset: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _word_address(context, builder, signature.args[0], *arguments[:2])
        builder.store(builder.bswap(arguments[2]), address, align=1)
        return context.get_dummy_value()

    return void(array, types.intp, uint64), generate


def _python_load_word(array: Any, offset: int) -> np.uint64:
    return np.uint64(int.from_bytes(array[int(offset) : int(offset) + 8].tobytes(), "big"))


def _python_store_word(array: Any, offset: int, word: Any) -> None:
    array[int(offset) : int(offset) + 8] = np.frombuffer(int(word).to_bytes(8, "big"), np.uint8)


# load_word(uint8 array, offset) -> uint64 and store_word(uint8 array, offset, uint64): eight bytes at any offset,
# most significant first. Offsets are not checked: all eight bytes lie inside the array, or the process dies.
load_word: Any = _python_load_word if config.DISABLE_JIT else _compiled_load_word
store_word: Any = _python_store_word if config.DISABLE_JIT else _compiled_store_word


def compile_all() -> None:
    """Import every kernel module, printing the time each took, and drop the code of older versions."""
    kept = {"LOCK"}
    for name in KERNEL_MODULES:
        begin_s = time.perf_counter()
        print(f"{name} ...", end=" ", flush=True)
        module = importlib.import_module(name)
        print(f"{time.perf_counter() - begin_s:.1f} s", flush=True)
        kept.add(_version(inspect.getfile(module)))
    _drop_others(kept)


def _drop_others(kept: set[str]) -> None:
    if not _writable():
        return
    with _locked():
        for path in CACHE.iterdir():
            if path.name not in kept:
                shutil.rmtree(path)


if __name__ == "__main__":
    compile_all()
