"""What the storage tests share: stores in a temporary directory, batches, comparison with the oracle."""

import contextlib
import math
import shutil
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from common import config, files, protocol, series
from common.points import PointBatch
from tests import naive
from workers.storage.store import LoggedBatch, Store

PARTITIONS = 16
EVERYWHERE = protocol.bitmap(range(PARTITIONS), PARTITIONS)
EPSILON = 2.0**-53

Row = tuple[bytes, int, float]


def key(device: str, metric: str = "temperature", **tags: str) -> bytes:
    return series.series_key(device, metric, tags)


def open_store(directory: Path, disk: files.Disk = files.DISK, node: str = "ing1", **settings: float) -> Store:
    return Store.open(directory, "cluster", node, PARTITIONS, config.Storage(**settings), disk)  # type: ignore[arg-type]


def batch_of(rows: Sequence[Row], born: int = 1) -> LoggedBatch:
    """A batch as it comes from the bus: encoded and decoded."""
    keys = list(dict.fromkeys(each for each, _, _ in rows))
    place = {each: at for at, each in enumerate(keys)}
    body = PointBatch(
        keys,
        np.array([place[each] for each, _, _ in rows], np.uint32),
        np.array([time for _, time, _ in rows], np.int64),
        np.array([value for _, _, value in rows], np.float64),
    ).encode()
    return LoggedBatch(body, born, PointBatch.decode(body))


def rows_of(each: bytes, times: Iterable[int], value: float = 1.0) -> list[Row]:
    return [(each, time, value) for time in times]


def copy_as_if_killed(directory: Path, to: Path) -> Path:
    """What a process that is killed now leaves behind. WAL first: a file gone from there is in a segment by then."""
    to.mkdir()
    shutil.copy(directory / "NODE", to)
    for part in ("deletes", "wal", "segments", "damaged"):
        (to / part).mkdir()
        for path in (directory / part).iterdir():
            with contextlib.suppress(FileNotFoundError):  # sealed meanwhile
                shutil.copy(path, to / part)
    return to


def assert_answers(
    store: Store,
    oracle: naive.PointSet,
    device: str,
    tags: dict[str, str] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> protocol.AggregateReply:
    """The store's answer equals the oracle's: bits for all but the sum, which is right to the last place or two."""
    got = store.aggregate(device, "temperature", tags, EVERYWHERE, start, end)
    wanted = [each for each in oracle.points if _matches(each, device, tags)]
    want = oracle.aggregate(wanted, start, end)
    assert (got.count, got.first_time, got.last_time) == (want.count, want.first_time, want.last_time)
    forgotten = len(wanted) if oracle.deletes or oracle.cutoff is not None else want.series
    assert want.series <= got.series <= forgotten  # a series without points may be known, or not
    for name in ("min", "max", "first", "last"):
        assert naive.bits(getattr(got, name)) == naive.bits(getattr(want, name)), name
    assert_sum(got.sum_hi, got.sum_lo, want.sum, want.count**2 * Fraction(oracle.magnitude(wanted)))
    return got


def assert_sum(hi: float, lo: float, want: Fraction, weight: float | Fraction, normal: bool = True) -> None:
    """The pair is the sum, but for errors of second order. weight: the sum of absolute values, times the
    count where it is small, and times its square where thousands of errors of lo may all have one sign.
    """
    error = abs(Fraction(hi) + Fraction(lo) - want)
    allowed = 2 * Fraction(weight) * Fraction(EPSILON) ** 2 + Fraction(math.ulp(0.0))
    assert error <= allowed, f"sum {hi} + {lo}, off by {float(error)}, {float(error / allowed)} times what is allowed"
    assert not normal or hi + lo == hi, "the pair is not normal"


def assert_m2(got: float, values: Sequence[float]) -> None:
    """The sum of squared distances from the mean, to nine digits."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction(0)) / (len(exact) or 1)
    want = sum(((value - mean) ** 2 for value in exact), Fraction(0))
    error = abs(Fraction(float(got)) - want)
    assert error <= want / 10**9 + Fraction(1e-300), f"M2 {got}, want {float(want)}"


def _matches(each: Hashable, device: str, tags: dict[str, str] | None) -> bool:
    assert isinstance(each, bytes)
    parsed = series.parse_key(each)
    wanted_tags = None if tags is None else tuple(sorted(tags.items()))
    return (
        parsed.device_id == device
        and parsed.metric_name == "temperature"
        and (wanted_tags is None or parsed.tags == wanted_tags)
    )
