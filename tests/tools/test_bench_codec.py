"""`python -m tools.bench codec` runs, agrees with itself, and says what was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(*arguments: str, data: Path) -> str:
    environ = {**os.environ, "MINITRUE_SHARED_DATA": str(data)}
    command = [sys.executable, "-m", "tools.bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench("codec", "--rounds", "2", "--json", data=tmp_path_factory.mktemp("none")))
    return found


def test_it_names_the_machine_and_the_versions(report: dict[str, Any]) -> None:
    assert set(report["machine"]) == {"cpu", "python", "numpy", "numba", "llvmlite", "pcodec"}
    assert all(report["machine"].values())


def test_bits_per_item_are_those_of_the_format(report: dict[str, Any]) -> None:
    constant = report["values"]["constant"]
    assert constant["bits"] == constant["bits_paper"] == pytest.approx(8 * (8 + 1024) / 8192)  # 64 + 8191 bits a block
    assert 50 < report["values"]["walk, 2 decimals"]["bits"] < 51
    assert report["times"]["every 10 s"]["bits"] == pytest.approx(8 * (1 + 8 + 1025) / 8192)


def test_auto_takes_the_fewest_bits_and_says_by_which_codecs(report: dict[str, Any]) -> None:
    auto = report["auto"]
    assert auto["values: walk, 2 decimals"]["codecs"] == {"decimal": 16}
    assert auto["times: jitter of 50 ms"]["codecs"] == {"grid": 16}
    for found in auto.values():
        assert found["bits"] <= found["bits_gorilla"]
        assert found["bits"] < 1.03 * found["bits_pcodec"]


def test_every_set_has_speeds_and_their_ratio(report: dict[str, Any]) -> None:
    for kind in ("values", "times"):
        for found in report[kind].values():
            for direction in ("encode", "decode"):
                one = found[direction]
                assert one["ratio"] == pytest.approx(one["kernel"]["best"] / one["plain"]["best"])
                assert one["blocks"]["best"] >= one["blocks"]["median"] > 0


def test_the_list_of_benchmarks_names_this_one(tmp_path: Path) -> None:
    assert "\n  codec " in bench("--help", data=tmp_path)
