"""bench codec: what a block takes and how fast it is packed and read, on one core.

First what the policy `auto` makes of columns: bits per item beside Gorilla's and pcodec's by default settings, and
million items per second of packing, of reading into an array, and of pcodec doing both. Then the Gorilla kernels:
"blocks" is what a caller of common.codec sees, wrapper, checks and copies included; "kernel" is the loop alone;
"plain" is the loop of plain_kernels.py, the yardstick for another machine, and "ratio" is kernel over plain.
Data are named and seeded and cut into blocks of 8,192, or of 100 where the name says so. Every block is timed by
itself and its best time counts, so that a busy machine disturbs little; "median" takes the median instead. It does
not show a cache that holds other work between blocks, nor codecs of other systems.
"""

import csv
import gzip
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import llvmlite
import numba
import numpy as np
import pcodec

from common import codec as codecs
from common.codec import CodecId, kernels
from common.codec.units import UNITS_NS
from tools.bench import plain_kernels
from tools.bench.data import BESIDE_CHECKOUT, SECOND_NS, SHARED_VARIABLE, START_NS

BLOCK = 8192
BLOCKS = 16
SEED = 1
SMALL = 100
SMALL_BLOCKS = 200

Columns = list[np.ndarray[Any, Any]]


class Speed(NamedTuple):
    """Million items per second: from the best and from the median time of each block."""

    best: float
    median: float


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Times that every block is coded.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def codec(rounds: int, as_json: bool) -> None:
    """Bits per item and items per second of blocks, and of the Gorilla kernels against plain ones."""
    report: dict[str, Any] = {"machine": machine(), "block": BLOCK, "auto": {}, "values": {}, "times": {}}
    if not as_json:
        click.echo(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    if not as_json:
        click.echo(AUTO_HEADING)
    for kind, sets in (("values", value_sets), ("times", time_sets)):
        for name, columns in (*sets(), *small_sets(sets())):
            report["auto"][f"{kind}: {name}"] = found = measure_auto(kind, columns, rounds)
            if not as_json:
                click.echo(auto_line(f"{kind}: {name}", found))
    for kind, sets, measure in (("values", value_sets, measure_values), ("times", time_sets, measure_times)):
        if not as_json:
            click.echo(heading(kind))
        for name, columns in sets():
            report[kind][name] = found = measure(columns, rounds)
            if not as_json:
                click.echo(line(name, found))
    if as_json:
        click.echo(json.dumps(report))


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith(("model name", "Model")):
            cpu = text.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "pcodec": importlib.metadata.version("pcodec"),
    }


def value_sets() -> Iterator[tuple[str, Columns]]:
    """Named columns of values: made ones, then the real files where they are."""
    random = np.random.default_rng(SEED)
    count = BLOCK * BLOCKS
    walk = 20 + np.cumsum(random.normal(0, 0.3, count))
    yield "constant", blocks(np.full(count, 21.5))
    yield "walk, 2 decimals", blocks(np.round(walk, 2))
    yield "walk, 1 decimal", blocks(np.round(walk, 1))
    yield "half repeated", blocks(np.where(random.random(count) < 0.5, 20.25, np.round(walk, 2)))
    yield "integer counter", blocks(np.arange(count, dtype=np.float64))
    yield "uniform noise", blocks(random.random(count))
    yield "float32 widened", blocks(random.normal(20, 5, count).astype(np.float32).astype(np.float64))
    yield "walk, 2 decimals, as float32", blocks(np.round(walk, 2).astype(np.float32).astype(np.float64))
    yield "walk, 2 decimals, 1% noise", blocks(np.where(random.random(count) < 0.01, walk, np.round(walk, 2)))
    for name, (_, values) in real_columns().items():
        yield name, blocks(np.array(values))


def time_sets() -> Iterator[tuple[str, Columns]]:
    """Named columns of timestamps, nanoseconds."""
    random = np.random.default_rng(SEED)
    every_10_s = START_NS + np.arange(BLOCK * BLOCKS, dtype=np.int64) * 10 * SECOND_NS
    yield "every 10 s", blocks(every_10_s)
    lost = random.random(len(every_10_s)) < 0.02
    yield "every 10 s, 2% lost", blocks(every_10_s[~lost])
    yield "jitter of 50 ms", blocks(every_10_s + random.integers(-50, 51, len(every_10_s)) * 1_000_000)
    yield "jitter in ns", blocks(every_10_s + random.integers(-50_000_000, 50_000_001, len(every_10_s)))
    yield "jitter that adds up", blocks(every_10_s + np.cumsum(random.integers(-50, 51, len(every_10_s))) * 1_000_000)
    yield "gaps of an hour", blocks(every_10_s + 3600 * SECOND_NS * np.cumsum(random.random(len(every_10_s)) < 0.001))
    late = np.where(random.random(len(every_10_s)) < 0.1, random.integers(1, 101, len(every_10_s)), 0)
    yield "out of order", blocks(every_10_s[np.argsort(np.arange(len(every_10_s)) + late, kind="stable")])
    for name, (times, _) in real_columns().items():
        yield name, blocks(np.array(times, np.int64) * SECOND_NS)


def small_sets(sets: Iterable[tuple[str, Columns]]) -> Iterator[tuple[str, Columns]]:
    """The first of each set's blocks in small ones, of what small blocks are measured with."""
    for name, columns in sets:
        if name in ("walk, 2 decimals", "every 10 s", "jitter of 50 ms"):
            column = np.concatenate(columns)[: SMALL * SMALL_BLOCKS]
            yield f"{name}, {SMALL} rows", [column[begin : begin + SMALL] for begin in range(0, len(column), SMALL)]


def blocks(column: np.ndarray[Any, Any]) -> Columns:
    """A column in blocks of BLOCK items, the last one shorter."""
    return [column[begin : begin + BLOCK] for begin in range(0, len(column), BLOCK)]


def real_columns() -> dict[str, tuple[list[int], list[float]]]:
    """Times in seconds and values of each series in the files of real measurements, where they are."""
    directory = Path(os.environ.get(SHARED_VARIABLE, BESIDE_CHECKOUT))
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for path in sorted(directory.glob("*.csv.gz")):
        with gzip.open(path, "rt") as file:
            for row in csv.DictReader(file):
                times, values = columns.setdefault(f"{row['device_id']}/{row['metric_name']}", ([], []))
                times.append(int(row["timestamp"]))
                values.append(float(row["value"]))
    return columns


def measure_auto(kind: str, columns: Columns, rounds: int) -> dict[str, Any]:
    """Codecs, bits per item and speeds of the policy auto, beside Gorilla's bits and pcodec by its defaults."""
    pack, decode = (
        (codecs.pack_values, codecs.decode_values_into)
        if kind == "values"
        else (codecs.pack_times, codecs.decode_times_into)
    )
    packed = [pack(column, "auto") for column in columns]
    defaults = [pcodec.standalone.simple_compress(column, pcodec.ChunkConfig()) for column in columns]
    rooms, items, timed = [np.empty_like(column) for column in columns], sum(map(len, columns)), Timed(columns, rounds)
    return {
        "codecs": {codec_id.name.lower(): count for codec_id, count in Counter(each[0] for each in packed).items()},
        "bits": 8 * sum(len(each[1]) for each in packed) / items,
        "bits_gorilla": 8 * sum(len(pack(column, "gorilla")[1]) for column in columns) / items,
        "bits_pcodec": 8 * sum(map(len, defaults)) / items,
        "pack": timed(lambda i: pack(columns[i], "auto"))._asdict(),
        "decode": timed(lambda i: decode(packed[i][1], len(rooms[i]), packed[i][0], rooms[i]))._asdict(),
        "pack_pcodec": timed(lambda i: pcodec.standalone.simple_compress(columns[i], pcodec.ChunkConfig()))._asdict(),
        "decode_pcodec": timed(lambda i: pcodec.standalone.simple_decompress_into(defaults[i], rooms[i]))._asdict(),
    }


def measure_values(columns: Columns, rounds: int) -> dict[str, Any]:
    """Bits per value under both rules for windows, and speeds."""
    out, words, items = room(), room().view(np.uint64), sum(map(len, columns))
    patterns = [column.view(np.uint64) for column in columns]
    data = [codecs.encode_values(column, CodecId.GORILLA) for column in columns]
    streams = [padded(each) for each in data]
    paper = sum(plain_kernels.encode_values(column, True, words) for column in patterns)
    plain = sum(plain_kernels.encode_values(column, False, words) for column in patterns)
    if plain != sum(map(len, data)):
        raise click.ClickException("BUG: kernels and plain kernels disagree")
    sizes, results = [len(column) for column in columns], [np.empty(len(column), np.uint64) for column in columns]
    timed = Timed(columns, rounds)
    return {
        "bits": 8 * plain / items,
        "bits_paper": 8 * paper / items,
        "encode": speeds(
            timed(lambda i: codecs.encode_values(columns[i], CodecId.GORILLA)),
            timed(lambda i: kernels.encode_values(patterns[i], out)),
            timed(lambda i: plain_kernels.encode_values(patterns[i], False, words)),
        ),
        "decode": speeds(
            timed(lambda i: codecs.decode_values(data[i], sizes[i], CodecId.GORILLA)),
            timed(lambda i: kernels.decode_values(streams[i], len(data[i]), results[i])),
            timed(lambda i: plain_kernels.decode_values(streams[i], results[i])),
        ),
    }


def measure_times(columns: Columns, rounds: int) -> dict[str, Any]:
    """Bits per timestamp, and speeds. The kernels' encoding is timed without the division by the unit."""
    out, words, items = room(), room().view(np.uint64), sum(map(len, columns))
    data = [codecs.encode_times(column, CodecId.GORILLA) for column in columns]
    streams, units = [padded(each[1:]) for each in data], [UNITS_NS[each[0]] for each in data]
    divided = [column // unit for column, unit in zip(columns, units, strict=True)]
    plain = sum(1 + plain_kernels.encode_times(column, words) for column in divided)
    if plain != sum(map(len, data)):
        raise click.ClickException("BUG: kernels and plain kernels disagree")
    sizes, results = [len(column) for column in columns], [np.empty(len(column), np.int64) for column in columns]
    timed = Timed(columns, rounds)
    return {
        "bits": 8 * plain / items,
        "encode": speeds(
            timed(lambda i: codecs.encode_times(columns[i], CodecId.GORILLA)),
            timed(lambda i: kernels.encode_times(divided[i], out)),
            timed(lambda i: plain_kernels.encode_times(divided[i], words)),
        ),
        "decode": speeds(
            timed(lambda i: codecs.decode_times(data[i], sizes[i], CodecId.GORILLA)),
            timed(lambda i: kernels.decode_times(streams[i], len(data[i]) - 1, units[i], results[i])),
            timed(lambda i: plain_kernels.decode_times(streams[i], units[i], results[i])),
        ),
    }


def room() -> np.ndarray[Any, Any]:
    """Space for any stream of a block."""
    return np.zeros(16 * BLOCK, np.uint8)


def padded(data: bytes) -> np.ndarray[Any, Any]:
    """A stream with the zero bytes that decoders need behind it."""
    return np.frombuffer(data + bytes(kernels.SLACK_BYTES), np.uint8)


class Timed:
    """Runs a function of a block's number on every block, some rounds long."""

    def __init__(self, columns: Columns, rounds: int) -> None:
        self._items = sum(map(len, columns))
        self._blocks = len(columns)
        self._rounds = rounds

    def __call__(self, work: Callable[[int], Any]) -> Speed:
        taken_s: list[list[float]] = [[] for _ in range(self._blocks)]
        for _ in range(self._rounds):
            for i in range(self._blocks):
                begin_s = time.perf_counter()
                work(i)
                taken_s[i].append(time.perf_counter() - begin_s)
        millions = self._items / 1e6
        return Speed(millions / sum(map(min, taken_s)), millions / sum(map(statistics.median, taken_s)))


def speeds(whole: Speed, kernel: Speed, plain: Speed) -> dict[str, Any]:
    """The figures of one direction, million items per second."""
    return {
        "blocks": whole._asdict(),
        "kernel": kernel._asdict(),
        "plain": plain._asdict(),
        "ratio": kernel.best / plain.best,
    }


def heading(kind: str) -> str:
    """The titles of one table."""
    columns = "".join(
        f" | {direction:>6} {'median':>6} {'kernel':>6} {'plain':>6} {'ratio':>5}" for direction in ("encode", "decode")
    )
    bits = f"{'bits':>6} {'paper':>6}" if kind == "values" else f"{'bits':>6} {'':6}"
    return f"\n{kind + ', M/s':28} {bits}{columns}"


def line(name: str, found: dict[str, Any]) -> str:
    """One row of a table."""
    text = f"{name:28} {found['bits']:6.2f} " + (f"{found['bits_paper']:6.2f}" if "bits_paper" in found else " " * 6)
    for direction in ("encode", "decode"):
        one = found[direction]
        text += f" | {one['blocks']['best']:6.0f} {one['blocks']['median']:6.0f} {one['kernel']['best']:6.0f}"
        text += f" {one['plain']['best']:6.0f} {one['ratio']:5.2f}"
    return text


AUTO_HEADING = (
    f"\n{'auto, M/s':36} {'bits':>6} {'gorilla':>7} {'pcodec':>6} | {'pack':>6} {'median':>6} {'pcodec':>6} "
    f"| {'decode':>6} {'median':>6} {'pcodec':>6} | codecs"
)


def auto_line(name: str, found: dict[str, Any]) -> str:
    """One row of the table of what auto makes of columns."""
    text = f"{name:36} {found['bits']:6.2f} {found['bits_gorilla']:7.2f} {found['bits_pcodec']:6.2f}"
    for direction in ("pack", "decode"):
        own, other = found[direction], found[f"{direction}_pcodec"]
        text += f" | {own['best']:6.1f} {own['median']:6.1f} {other['best']:6.1f}"
    return f"{text} | {', '.join(found['codecs'])}"
