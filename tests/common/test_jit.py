"""The kernel cache: what is loaded, when it is compiled again, and that two processes never do it at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = """
import numpy as np
from common import jit

@jit.helper
def scaled(x):
    return x * {factor}

@jit.kernel(jit.int64(jit.int64))
def scale(x):
    return scaled(x)

@jit.kernel(jit.uint64(jit.uint64))
def ends(x):
    return jit.leading_zeros(x) * np.uint64(100) + jit.trailing_zeros(x)

@jit.kernel(jit.uint64(jit.readonly(jit.uint8), jit.uint8[::1]))
def move(source, target):
    word = jit.load_word(source, 1)
    jit.store_word(target, 3, word)
    return word
"""
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from common import jit
jit.CACHE = Path(sys.argv[1])
import sample_kernels as sample
stats = getattr(sample.scale, "stats", None)
target = np.zeros(12, np.uint8)
with np.errstate(over="ignore"):
    ends = [int(sample.ends(np.uint64(x))) for x in (0, 1, 2**63, 48)]
print(json.dumps({
    "answer": int(sample.scale(6)),
    "ends": ends,
    "word": hex(sample.move(np.arange(10, dtype=np.uint8), target)),
    "target": target.tobytes().hex(),
    "compiled": stats and sum(stats.cache_misses.values()),
    "everything": "numba.np.linalg" in sys.modules,
    "loaded": stats and sum(stats.cache_hits.values()),
}))
"""
COMPILE_ALL = """
import sys
from pathlib import Path
from common import jit
jit.CACHE, jit.KERNEL_MODULES = Path(sys.argv[1]), ("sample_kernels",)
jit.compile_all()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of its own; the kernel module that fills it lies beside it."""
    write_kernels(tmp_path, factor=7)
    return tmp_path / "environment" / "kernels"


def write_kernels(directory: Path, factor: int) -> None:
    (directory / "sample_kernels.py").write_text(KERNELS.format(factor=factor))


def start(cache: Path, program: str = PROGRAM, **environ: str) -> "subprocess.Popen[bytes]":
    folder = cache.parent.parent
    environ = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1", **environ}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(cache)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def answer(process: "subprocess.Popen[bytes]") -> dict[str, object]:
    out, error = process.communicate()
    assert process.returncode == 0, error.decode()
    answered: dict[str, object] = json.loads(out)
    return answered


def files(cache: Path, suffix: str) -> list[Path]:
    return sorted(cache.rglob(f"*{suffix}"))


def test_a_kernel_is_compiled_once_and_then_loaded(cache: Path) -> None:
    first, second = answer(start(cache)), answer(start(cache))
    assert (first["answer"], first["compiled"], first["loaded"]) == (42, 1, 0)
    assert (second["answer"], second["compiled"], second["loaded"]) == (42, 0, 1)
    assert (first["everything"], second["everything"]) == (True, False)  # what loading needs is much less


def test_processes_that_start_at_once_compile_once_between_them(cache: Path) -> None:
    answers = [answer(process) for process in [start(cache) for _ in range(4)]]
    assert [each["answer"] for each in answers] == [42] * 4
    assert sorted(each["compiled"] for each in answers) == [0, 0, 0, 1]  # type: ignore[type-var]


def test_a_changed_helper_changes_the_answer(cache: Path) -> None:
    assert answer(start(cache))["answer"] == 42
    write_kernels(cache.parent.parent, factor=8)
    assert answer(start(cache))["answer"] == 48
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(("suffix", "left"), [(".nbi", b""), (".nbc", b"\0" * 4096), (".nbc", b"\x80\x05")])
def test_a_cache_file_that_a_power_cut_tore_is_compiled_again(cache: Path, suffix: str, left: bytes) -> None:
    answer(start(cache))
    for path in files(cache, suffix):
        path.write_bytes(left)
    again = answer(start(cache))
    assert (again["answer"], again["compiled"]) == (42, 1)
    assert answer(start(cache))["loaded"] == 1


def test_an_index_whose_code_was_never_written_is_compiled_again(cache: Path) -> None:
    answer(start(cache))
    for path in files(cache, ".nbc"):
        path.unlink()
    assert answer(start(cache))["compiled"] == 1


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.write_text("not a directory")
    process = start(cache)
    out, error = process.communicate()
    assert process.returncode == 0, error.decode()
    assert json.loads(out)["answer"] == 42
    assert error.decode().count("kernel cache not writable") == 1
    assert not list(cache.parent.parent.rglob("*.nb?"))


def test_kernels_run_as_plain_python_when_the_compiler_is_off(cache: Path) -> None:
    plain, compiled = answer(start(cache, NUMBA_DISABLE_JIT="1")), answer(start(cache))
    assert plain["compiled"] is None
    for field in ("answer", "ends", "word", "target"):
        assert plain[field] == compiled[field]


def test_bits_are_counted_and_words_moved_from_the_most_significant_end(cache: Path) -> None:
    found = answer(start(cache))
    assert found["ends"] == [6464, 6300, 63, 5804]
    assert found["word"] == "0x102030405060708"
    assert found["target"] == "000000" + "0102030405060708" + "00"


def test_compiling_all_drops_the_code_of_older_versions(cache: Path) -> None:
    answer(start(cache))
    (old,) = [path for path in cache.iterdir() if path.is_dir()]
    write_kernels(cache.parent.parent, factor=9)
    process = start(cache, COMPILE_ALL)
    out, error = process.communicate()
    assert process.returncode == 0, error.decode()
    assert out.startswith(b"sample_kernels ... ")
    assert not old.exists()
    fresh = answer(start(cache))
    assert (fresh["answer"], fresh["loaded"]) == (54, 1)


def test_numba_is_imported_here_and_nowhere_else() -> None:
    sources = [path for folder in ("common", "workers") for path in (ROOT / folder).rglob("*.py")]
    importers = [path for path in sources if re.search(r"^\s*(from|import) (numba|llvmlite)\b", path.read_text(), re.M)]
    assert importers == [ROOT / "common" / "jit.py"]
