"""Part "sizes" of bench storage: bytes at rest and CPU of ingest, sealing and compaction, on named data, beside peers.

Peers take the same rows in the same order over HTTP; their ingest is all their CPU from the first request until they
rest after a flush. VictoriaMetrics' forced merge comes after that and is a figure of its own.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from tools.bench import data, engine, peers
from tools.bench.data import SECOND_NS, Dataset
from tools.bench.findings import Bar, Finding

INGEST: Final = Bar("ratio", 0.4)
TIDY: Final = Bar("ratio", 0.3)
ROLLUPS: Final = 1.05  # what rollups may add to a bar of bytes per point
_SIGMA: Final = 5.0  # 4.4 bits of entropy per value
_QUIET_SIGMA: Final = 1.0  # 2.1 bits
_SERIES, _STEPS = 50, 20_000  # of the sets that only show what a shape of data costs

Maker = Callable[[float], Dataset]


def walks(scale: float, of_plant: bool = False) -> Dataset:
    """Many points of some hundred series."""
    return data.made("500 x 10,000 walk", 500, _some(10_000, scale), data.regular(10 * SECOND_NS, _SIGMA), of_plant)


def long(scale: float, of_plant: bool = False) -> Dataset:
    """Dense series."""
    steps = _some(5_000_000, scale)
    return data.made("3 x 5 M walk at 1 s", 3, steps, data.regular(SECOND_NS, _QUIET_SIGMA), of_plant)


def jitter(scale: float, of_plant: bool = False) -> Dataset:
    """Devices with clocks and networks of their own."""
    shape = data.jittered(10 * SECOND_NS, 50, _SIGMA)
    return data.made("500 x 10,000 jitter", 500, _some(10_000, scale), shape, of_plant)


def many(scale: float) -> Dataset:
    """Many short series."""
    return data.made("20,000 x 100 walk", _some(20_000, scale), 100, data.regular(10 * SECOND_NS, _SIGMA))


def _shape(name: str, shape: data.Shape) -> Maker:
    return lambda scale: data.made(name, _SERIES, _some(_STEPS, scale), shape)


def _some(count: int, scale: float) -> int:
    return max(100, round(count * scale))


MADE: Final[dict[str, tuple[Maker, float | None]]] = {  # by name: how it is made, bar of bytes per point
    "walks": (walks, 1.0 * ROLLUPS),
    "long": (long, 1.0 * ROLLUPS),
    "jitter": (jitter, 0.85 * ROLLUPS),
    "many": (many, 1.2 * ROLLUPS),
    "constant": (_shape("constant", data.with_values(lambda _, n, steps: np.full((steps, n), 21.5))), None),
    "walk1": (_shape("walk, 1 decimal", data.regular(10 * SECOND_NS, _SIGMA, 1)), None),
    "counter": (_shape("integer counter", data.with_values(data.counting)), None),
    "noise": (_shape("uniform noise", data.with_values(lambda random, n, steps: random.random((steps, n)))), None),
    "float32": (_shape("float32 widened", data.with_values(data.widened)), None),
    "gaps": (_shape("gaps", data.gappy), None),
    "disorder": (_shape("out of order", data.out_of_order), None),
}
_REAL_BAR: Final = 0.85 * ROLLUPS


def sets(names: tuple[str, ...], scale: float) -> Iterator[tuple[Dataset, Bar | None]]:
    """The data asked for with their bars, all for no names; "real" means the files of real measurements."""
    for name, (make, bar) in MADE.items():
        if not names or name in names:
            yield make(scale), None if bar is None else Bar("ratio", bar)
    if not names or "real" in names:
        for found in data.real():
            yield found, Bar("ratio", _REAL_BAR)


def sizes(names: tuple[str, ...], scale: float, rounds: int, kinds: list[type[peers.Peer]]) -> Iterator[Finding]:
    """Measure each set so many times in turn; medians count."""
    for points, bar in sets(names, scale):
        ours: list[dict[str, float]] = []
        theirs: dict[str, list[dict[str, float]]] = {kind.name: [] for kind in kinds}
        for _ in range(rounds):
            ours.append(_measure(points))
            for kind in kinds:
                theirs[kind.name].append(_measure_peer(kind, points))
        yield from _findings(points, bar, ours, theirs)


def _measure(points: Dataset) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        return engine.measure(Path(scratch) / "node", engine.bodies(points), len(points)).figures()


def _measure_peer(kind: type[peers.Peer], points: Dataset) -> dict[str, float]:
    with peers.running(kind) as peer:
        before_s = peer.cpu_s()
        peer.write(points)
        peer.flush()
        ingested_s = peer.cpu_s()
        peer.merge()
        return {
            "bytes_per_point": peer.bytes_at_rest() / len(points),
            "ingest_us": 1e6 * (ingested_s - before_s) / len(points),
            "merge_us": 1e6 * (peer.cpu_s() - ingested_s) / len(points),
        }


def _findings(
    points: Dataset, bar: Bar | None, ours: list[dict[str, float]], theirs: dict[str, list[dict[str, float]]]
) -> Iterator[Finding]:
    def of_peers(what: str) -> dict[str, float]:
        return {name: _median(found, what) for name, found in theirs.items()}

    barred = bar is not None
    name = points.name
    yield Finding(name, "bytes per point", "B", _median(ours, "bytes_per_point"), of_peers("bytes_per_point"), bar)
    ingest = of_peers("ingest_us")
    yield Finding(name, "CPU, ingest", "us/point", _median(ours, "ingest_us"), ingest, INGEST if barred else None)
    yield Finding(name, "CPU, seal + compact", "us/point", _median(ours, "tidy_us"), ingest, TIDY if barred else None)


def _median(found: list[dict[str, Any]], what: str) -> float:
    return float(statistics.median(each[what] for each in found))
