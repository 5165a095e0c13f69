"""Named points for benchmarks: series, times and values under fixed seeds, and the files of real measurements.

Rows come in order of arrival, all series side by side, as devices send them. The walks have normal steps; sigma is
in units of the last decimal, so that their entropy per value is log2(sigma) + 2.05 bits: 4.4 bits for 5.
Real files are those of a directory named by MINITRUE_SHARED_DATA, by default ../shared/data beside the checkout.
"""

import csv
import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from common.series import Series, series_key

SEED: Final = 1
SECOND_NS: Final = 1_000_000_000
MS_NS: Final = 1_000_000
PLANT: Final = "plant"
START_NS: Final = 1_700_000_000 * SECOND_NS
SHARED_VARIABLE: Final = "MINITRUE_SHARED_DATA"
BESIDE_CHECKOUT: Final = Path(__file__).resolve().parents[3] / "shared" / "data"

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Shape = Callable[[np.random.Generator, int, int], tuple[Times, Values]]


class Rows(NamedTuple):
    """Some rows in order of arrival. owners: place of each row's series; times: ns; arrays of shape (rows,)."""

    owners: npt.NDArray[np.uint32]
    times: Times
    values: Values

    def at(self, places: slice | npt.NDArray[np.int64]) -> "Rows":
        """Those at some places."""
        return Rows(self.owners[places], self.times[places], self.values[places])


class Dataset(NamedTuple):
    """Points of several series. rows: all of them."""

    name: str
    series: list[Series]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.times)

    def span_ms(self) -> tuple[int, int]:
        """First and last time, whole milliseconds."""
        return int(self.rows.times.min()) // MS_NS, int(self.rows.times.max()) // MS_NS

    def parts(self, count: int) -> Iterator[Rows]:
        """The rows, `count` at a time."""
        for begin in range(0, len(self), count):
            yield self.rows.at(slice(begin, begin + count))


def series_keys(series: Iterable[Series]) -> list[bytes]:
    """The key of each."""
    return [series_key(each.device_id, each.metric_name, dict(each.tags)) for each in series]


def of_device(number: int) -> Series:
    """The temperature of a device of its own."""
    return Series(f"sensor_{number:05d}", "temperature")


def of_plant_series(number: int) -> Series:
    """A temperature of the one device PLANT."""
    return Series(PLANT, "temperature", (("sensor", f"{number:05d}"),))


def labels(series: Series) -> tuple[tuple[str, str], ...]:
    """What names a series in a peer, but for the metric: pairs, sorted."""
    return tuple(sorted((("device", series.device_id), *series.tags)))


def grid(step_ns: int, series: int, steps: int) -> Times:
    """Regular times, shape (steps, series)."""
    times = START_NS + np.arange(steps, dtype=np.int64) * step_ns
    return np.repeat(times[:, np.newaxis], series, axis=1)


def walk(random: np.random.Generator, series: int, steps: int, sigma: float, decimals: int = 2) -> Values:
    """Random walks from 20, whose values have so many decimals, shape (steps, series)."""
    moves = np.rint(random.normal(0, sigma, (steps, series)))
    values: Values = (20 * 10**decimals + np.cumsum(moves, axis=0)) / 10**decimals
    return values


def made(name: str, series: int, steps: int, shape: Shape, of_plant: bool = False) -> Dataset:
    """Points of so many series with so many steps, as a shape makes them; the name is part of the seed.

    of_plant: all series are of one device and differ by a tag, so that one question can be about all of them.
    """
    times, values = shape(np.random.default_rng([SEED, zlib.crc32(name.encode())]), series, steps)
    owners = np.broadcast_to(np.arange(series, dtype=np.uint32), times.shape)
    names = [of_plant_series(number) if of_plant else of_device(number) for number in range(series)]
    return Dataset(name, names, Rows(owners.reshape(-1), times.reshape(-1), values.reshape(-1)))


def regular(step_ns: int, sigma: float, decimals: int = 2) -> Shape:
    """A walk on a regular grid."""
    return lambda random, series, steps: (
        grid(step_ns, series, steps),
        walk(random, series, steps, sigma, decimals),
    )


def jittered(step_ns: int, jitter_ms: int, sigma: float) -> Shape:
    """A walk whose times, whole milliseconds, lie within +-jitter_ms of a grid."""

    def shape(random: np.random.Generator, series: int, steps: int) -> tuple[Times, Values]:
        times = grid(step_ns, series, steps)
        times += random.integers(-jitter_ms, jitter_ms + 1, times.shape) * MS_NS
        return times, walk(random, series, steps, sigma)

    return shape


def with_values(values: Callable[[np.random.Generator, int, int], Values]) -> Shape:
    """Some values every 10 s."""
    return lambda random, series, steps: (grid(10 * SECOND_NS, series, steps), values(random, series, steps))


def counting(random: np.random.Generator, series: int, steps: int) -> Values:
    """Integers that grow by 0 to 9, as meters count."""
    counts: Values = np.cumsum(random.integers(0, 10, (steps, series)), axis=0).astype(np.float64)
    return counts


def widened(random: np.random.Generator, series: int, steps: int) -> Values:
    """float32 noise in float64."""
    return random.normal(20, 5, (steps, series)).astype(np.float32).astype(np.float64)


def gappy(random: np.random.Generator, series: int, steps: int) -> tuple[Times, Values]:
    """A walk every 10 s of which 2% of the steps are lost, and now and then an hour: steps longer than the others."""
    lost = (random.random((steps, series)) < 0.02).astype(np.int64)
    hours = 360 * (random.random((steps, series)) < 0.0005)
    times = START_NS + np.cumsum(1 + lost + hours, axis=0) * 10 * SECOND_NS
    return times, walk(random, series, steps, 5)


def out_of_order(random: np.random.Generator, series: int, steps: int) -> tuple[Times, Values]:
    """A walk every 10 s of which one row in ten arrives up to 100 steps late."""
    late = np.where(random.random(steps) < 0.1, random.integers(1, 101, steps), 0)
    arrival = np.argsort(np.arange(steps) + late, kind="stable")
    return grid(10 * SECOND_NS, series, steps)[arrival], walk(random, series, steps, 5)[arrival]


def real() -> list[Dataset]:
    """The files of real measurements, where they are; their rows in order of time."""
    directory = Path(os.environ.get(SHARED_VARIABLE, BESIDE_CHECKOUT))
    return [_read(path) for path in sorted(directory.glob("*.csv.gz"))]


def _read(path: Path) -> Dataset:
    places: dict[Series, int] = {}
    owners: list[int] = []
    times: list[int] = []
    values: list[float] = []
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            owners.append(places.setdefault(Series(row["device_id"], row["metric_name"]), len(places)))
            times.append(int(row["timestamp"]) * SECOND_NS)
            values.append(float(row["value"]))
    order = np.argsort(np.array(times, np.int64), kind="stable")
    rows = Rows(np.array(owners, np.uint32), np.array(times, np.int64), np.array(values, np.float64))
    return Dataset(path.name, list(places), rows.at(order))
