"""bench page: the size of the web page, how soon it is there, and whether its chart follows a hand.

A sandbox of three nodes serves the page on loopback to Debian's Chromium, headless, without a graphics card; web/bench
drives it. Each load has an empty cache. Paint and answer count from the start of the navigation, the answer until a
chart of one series is drawn. Frames are those that the page got (requestAnimationFrame) while the mouse drags a chart
of 20 series x 2,000 points to and fro. It does not show a slow network, nor frames of a screen.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from tools.bench import codec
from tools.bench.findings import Bar, Finding
from tools.sandbox_app import Sandbox

ROOT: Final = Path(__file__).resolve().parents[2]
WEB: Final = ROOT / "web"
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
SERIES: Final = 20
POINTS: Final = 2000  # of each series on the chart
STEP_S: Final = 1
MOST_KB: Final = 300.0
MOST_LOAD_MS: Final = 1000.0
FRAME_MS: Final = 1000 / 60
LEAST_FRAMES: Final = 59.0  # 60, but for how exactly clocks tell
MOST_DROPPED: Final = 1.0  # percent


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Loads; medians count.")
@click.option("--seconds", default=5.0, show_default=True, help="How long the chart is dragged.")
@click.option("--quick", is_flag=True, help="Two loads and a second: to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def page(rounds: int, seconds: float, quick: bool, as_json: bool) -> None:
    """The web page: bytes, first paint, first answer, frames while its chart is dragged."""
    if missing := _missing():
        click.echo(f"NOT measured: {missing}", err=True)
        return
    if quick:
        rounds, seconds = 2, 1.0
    seen = _seen(rounds, seconds)
    found = [*sizes(WEB / "dist"), *_loads(seen["loads"]), *frames(seen["frames"])]
    if as_json:
        machine = codec.machine() | {"chromium": seen["chromium"], "chart": seen["shown"]}
        click.echo(json.dumps({"machine": machine, "found": [each.record() for each in found]}))
        return
    click.echo(f"Chromium {seen['chromium']}, headless; the chart: {seen['shown']}")
    for each in found:
        click.echo(each.line())


def _missing() -> str:
    """What is not here and has to be, "" for nothing."""
    if not any(map(shutil.which, CHROMIUM)):
        return "chromium is not installed"
    if not _playwright().exists() or shutil.which("node") is None or not (WEB / "dist" / "index.html").exists():
        return "the page is not built: make env, with Node 18 or newer"
    return ""


def _playwright() -> Path:
    return WEB / "node_modules" / ".bin" / "playwright"


def sizes(dist: Path) -> Iterator[Finding]:
    """Of what a browser fetches before it shows anything, and of all that there is, by compression."""
    index = (dist / "index.html").read_text()
    everything = [path for path in dist.rglob("*") if path.is_file() and path.suffix not in (".br", ".gz")]
    entry = [path for path in everything if path.name == "index.html" or f'"/assets/{path.name}"' in index]
    for name, files in (("entry", entry), ("everything", everything)):
        for suffix in ("br", "gz"):
            kilobytes = sum(_compressed_bytes(path, suffix) for path in files) / 1000
            of = f"{name}, {len(files)} files"
            yield Finding(of, f"bytes as .{suffix}", "kB", kilobytes, bar=Bar("most", MOST_KB))


def _compressed_bytes(path: Path, suffix: str) -> int:
    beside = path.with_name(f"{path.name}.{suffix}")
    return (beside if beside.exists() else path).stat().st_size


def _loads(loads: list[dict[str, float]]) -> Iterator[Finding]:
    def median(key: str) -> float:
        return statistics.median(load[key] for load in loads)

    name = f"empty cache, {len(loads)} loads"
    yield Finding(name, "fetched for Explore", "kB", median("transferredBytes") / 1000, bar=Bar("most", MOST_KB))
    yield Finding(name, "first paint", "ms", median("paintMs"), bar=Bar("most", MOST_LOAD_MS))
    yield Finding(name, "first answer on a chart", "ms", median("answerMs"), bar=Bar("most", MOST_LOAD_MS))
    yield Finding(name, "first answer, slowest", "ms", max(load["answerMs"] for load in loads))


def frames(taken_ms: list[float]) -> Iterator[Finding]:
    """Of the milliseconds between frames: how many there were, and how many should have been there besides."""
    name = f"drag, {SERIES} series x {POINTS:,}"
    dropped = sum(max(0, round(each / FRAME_MS) - 1) for each in taken_ms)
    yield Finding(name, "frames per second", "", 1000 * len(taken_ms) / sum(taken_ms), bar=Bar("least", LEAST_FRAMES))
    yield Finding(name, "frame, median", "ms", statistics.median(taken_ms))
    yield Finding(name, "frame, p99", "ms", sorted(taken_ms)[int(0.99 * (len(taken_ms) - 1))])
    share = 100 * dropped / (len(taken_ms) + dropped)
    yield Finding(name, "frames dropped", "%", share, bar=Bar("most", MOST_DROPPED))


def _seen(rounds: int, seconds: float) -> dict[str, Any]:
    """What the browser saw."""
    with (
        tempfile.TemporaryDirectory(prefix="page-") as home,
        Sandbox(3, 1, "embedded", dir=Path(home) / "c") as sandbox,
    ):
        begin_s = int(time.time()) - 2 * POINTS * STEP_S
        _publish(sandbox, begin_s)
        job = {"first": _view(1, begin_s), "full": _view(SERIES, begin_s), "rounds": rounds, "dragS": seconds}
        out = Path(home) / "seen.json"
        _drive(sandbox, job, out)
        seen: dict[str, Any] = json.loads(out.read_text())
        return seen


def _publish(sandbox: Sandbox, begin_s: int) -> None:
    words = [
        "--sim", "--devices", str(SERIES), "--metrics", "1", "--step", str(STEP_S), "--start", str(begin_s),
        "--count", str(SERIES * POINTS), "--rate", "0",
    ]  # fmt: skip
    command = [sys.executable, "-m", "tools.publisher_app", *words]
    subprocess.run(command, cwd=ROOT, env=sandbox.environment, check=True, stdout=subprocess.DEVNULL)


def _view(series: int, begin_s: int) -> str:
    """The view of so many series, as it stands in the URL; dragging moves it."""
    lines = "&".join(f"line={quote(f'sensor_{number}~temperature')}" for number in range(1, series + 1))
    end_s = begin_s + POINTS * STEP_S
    return f"explore?{lines}&range={1000 * begin_s}..{1000 * end_s - 1}&drag=pan"


def _drive(sandbox: Sandbox, job: dict[str, Any], out: Path) -> None:
    mine = sandbox.environment | {
        "MINITRUE_CHROMIUM": next(filter(None, map(shutil.which, CHROMIUM))),
        "MINITRUE_BENCH_JOB": json.dumps(job),
        "MINITRUE_BENCH_OUT": str(out),
        "MINITRUE_RESULTS": str(out.parent / "results"),
    }
    command = [str(_playwright()), "test", "--config", "bench.config.ts"]
    done = subprocess.run(command, cwd=WEB, env=os.environ | mine, text=True, capture_output=True)
    if done.returncode:
        raise click.ClickException(f"the browser: {done.stdout}{done.stderr}")
