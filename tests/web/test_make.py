"""`make env` where Node is not: one line says that there is no page and why, and that is an error in CI alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import CI_VARIABLE, ROOT


@pytest.mark.parametrize(("in_ci", "code"), [(False, 0), (True, 2)])
def test_without_node_one_line_says_why_there_is_no_page(tmp_path: Path, in_ci: bool, code: int) -> None:
    for program in ("bash", "sh", "find", "test", "echo"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    done = subprocess.run(
        [str(shutil.which("make")), "-C", str(ROOT), "--no-print-directory", "page"],
        env={"PATH": str(tmp_path)} | ({CI_VARIABLE: "1"} if in_ci else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    said = done.stderr.splitlines()[0]
    assert said.startswith("make env: the page ") and said.endswith("(it wants Node 18 or newer, and npm). All else works.")
    built = (ROOT / "web" / "dist" / "index.html").exists()
    assert ("stays as it was built before" if built else "is not built, / says how to") in said
