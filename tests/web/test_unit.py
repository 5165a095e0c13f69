"""The logic of the page, by vitest: the tests lie beside what they test, in web/src. `make lint` checks its types."""

import os
import shutil
import subprocess

import pytest

from tests.support import CI_VARIABLE
from tests.web.page import WEB

BIN = WEB / "node_modules" / ".bin"


def _run(*command: str) -> None:
    if shutil.which("node") is None or not (BIN / command[0]).exists():
        text = "web/node_modules is not there: make env, with Node 18 or newer; the logic of the page was NOT tested"
        if os.environ.get(CI_VARIABLE):
            pytest.fail(text)
        pytest.skip(text)
    program = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(program, cwd=WEB, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_the_logic_of_the_page() -> None:
    _run("vitest", "run")
