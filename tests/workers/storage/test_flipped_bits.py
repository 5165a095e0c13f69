"""A bit that flips in any file of a store: found and said, the file set aside, the rest answers, nothing lies."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from common.errors import StorageError
from common.selector import Selector
from tests import naive
from tests.disks import QuickDisk, copy_directory
from tests.workers.storage import answers
from tests.workers.storage.support import EVERYWHERE, Row, batch_of, key, open_store
from workers.storage import wal
from workers.storage.store import DeleteRecord, Store

A, B, C = key("a"), key("b", room="1"), key("c")
SERIES = [A, B, C]
DELETE = DeleteRecord(1, Selector("a"), 10, 19)

FIRST = [(each, time, time / 2) for each in SERIES for time in range(40)]
SECOND = [(each, time, -time / 2) for each in (A, C) for time in range(30, 300)]
THIRD = [(each, time, 1000.0 + time) for each in (B, C) for time in range(1000, 5000)]
LOGGED = [[(A, 12, 5.0), (B, 2000, 5.0)], [(A, 6000, 1.0)], [(C, 6001, 2.0)], [(B, 6002, 3.0)]]


class Source(NamedTuple):
    """Rows that are lost with a file, or with a part of one; before: whether the delete masks them."""

    rows: Sequence[Row]
    before: bool


def state_of(sources: Sequence[Source], deleted: bool = True) -> naive.PointSet:
    oracle = naive.PointSet()
    for source in sources:
        if source.before:
            for row in source.rows:
                oracle.add(*row)
    if deleted:
        oracle.delete(1, lambda each: each == A, 10, 19)
    for source in sources:
        if not source.before:
            for row in source.rows:
                oracle.add(*row)
    return oracle


def open_quickly(directory: Path) -> Store:
    return open_store(directory, QuickDisk(), compaction_bytes=4 << 20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compacted segment, two sealed ones of which the older is masked in part, a delete, a WAL of four records."""
    directory = tmp_path_factory.mktemp("whole") / "store"
    store = open_quickly(directory)
    for rows in (THIRD[:4000], THIRD[4000:]):
        store.append([batch_of(rows)])
        store.seal()
    store.compact()
    store.append([batch_of(FIRST)])
    store.seal()
    store.delete(DELETE)
    store.append([batch_of(SECOND)])
    store.seal()
    for rows in LOGGED:
        store.append([batch_of(rows)])
    store.close()
    return directory


SOURCES = [Source(THIRD, True), Source(FIRST, True), Source(SECOND, False), *(Source(rows, False) for rows in LOGGED)]


def flipped(directory: Path, name: str, bit: int, to: Path) -> Path:
    copy_directory(directory, to)
    path = to / name
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return to


def read_stubbornly(store: Store) -> tuple[answers.Contents, list[str]]:
    """All points; and the errors of requests that met damage, after each of which the others must be answered."""
    errors: list[str] = []
    while True:
        try:
            for device in "abc":
                store.by_interval(Selector(device), EVERYWHERE, None, None, 60, 0, {"count"})
            return answers.contents(store, SERIES), errors
        except StorageError as error:
            errors.append(str(error))
            assert len(errors) < 10, errors


def sampled(size: int, count: int, salt: int) -> list[int]:
    """Positions of bits: many of the first and last bytes, where everything is told apart, and some between."""
    edges = [*range(0, min(64, size), 3), *range(max(0, size - 96), size, 3)]
    between = [(at * 7919 + salt) % size for at in range(count)]
    return [8 * byte + (byte + salt) % 8 for byte in sorted({*edges, *between})]


def segments_of(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in (directory / "segments").iterdir())


@pytest.mark.parametrize("place", [0, 1, 2], ids=["compacted", "masked in part", "sealed last"])
def test_bit_flipped_anywhere_in_a_segment_costs_that_segment_alone(tmp_path: Path, whole: Path, place: int) -> None:
    name = segments_of(whole)[place]
    lost = [source for at, source in enumerate(SOURCES) if at != place]
    full, without = answers.expected(state_of(SOURCES), SERIES), answers.expected(state_of(lost), SERIES)
    assert full != without
    found_while_reading = 0
    for bit in sampled((whole / name).stat().st_size, 60, place):
        directory = flipped(whole, name, bit, tmp_path / str(bit))
        store = open_quickly(directory)
        with store._maintainer.exclusive():  # else it may find the damage meanwhile, and be about to say so
            found, errors = read_stubbornly(store)
        assert all(Path(name).name in error for error in errors)
        found_while_reading += bool(errors)
        assert found == without, f"bit {bit} of {name}"
        damaged = store.status()["damaged"]
        assert [note["file"] for note in damaged] == [Path(name).name]
        assert not (directory / name).exists()
        assert (directory / "damaged" / Path(name).name).exists()
        store.append([batch_of([(A, 7000, 1.0)])])
        store.close()
        store = open_quickly(directory)
        assert answers.contents(store, [B, C]) == {each: without[each] for each in (B, C)}
        assert store.status()["damaged"] == damaged
        store.close()
        shutil.rmtree(directory)
    assert found_while_reading > 0, "no flip was met by a request: the samples miss the blocks"


def test_compaction_that_meets_a_flipped_bit_goes_on_without_that_file(tmp_path: Path, whole: Path) -> None:
    name = segments_of(whole)[1]
    states = [answers.expected(state_of(each), SERIES) for each in (SOURCES, [SOURCES[0], *SOURCES[2:]])]
    damaged = 0
    for bit in sampled((whole / name).stat().st_size, 40, 5):
        directory = flipped(whole, name, bit, tmp_path / str(bit))
        store = open_quickly(directory)
        store.compact()
        with store._maintainer.exclusive():
            found, _ = read_stubbornly(store)
        noted = [note["file"] for note in store.status()["damaged"]]
        assert (found, noted) in ((states[1], [Path(name).name]), (states[0], [])), f"bit {bit}"
        damaged += bool(noted)
        store.close()
        shutil.rmtree(directory)
    assert damaged > 20


def test_bit_flipped_in_a_record_of_the_wal_costs_that_record_alone(tmp_path: Path, whole: Path) -> None:
    (path,) = (whole / "wal").iterdir()
    data = path.read_bytes()
    begins = [at for at in range(len(data)) if data.startswith(wal.RECORD_MAGIC, at)]
    assert len(begins) == len(LOGGED)
    for place, (begin, end) in enumerate(itertools.pairwise(begins)):
        lost = [source for source in SOURCES if source.rows is not LOGGED[place]]
        want = answers.expected(state_of(lost), SERIES)
        for byte in range(begin, end, 5):
            directory = flipped(whole, f"wal/{path.name}", 8 * byte + byte % 8, tmp_path / "flipped")
            store = open_quickly(directory)
            assert answers.contents(store, SERIES) == want, f"byte {byte}"
            notes = store.status()["damaged"]
            assert [(note["file"], note["offset"]) for note in notes] == [(path.name, begin)]
            store.close()
            shutil.rmtree(directory)


def test_bit_flipped_in_a_delete_record_brings_back_what_it_deleted_and_that_is_said(
    tmp_path: Path, whole: Path
) -> None:
    (path,) = (whole / "deletes").iterdir()
    want = answers.expected(state_of(SOURCES, deleted=False), SERIES)
    again = state_of(SOURCES, deleted=False)
    again.delete(2, lambda each: each == A, DELETE.start, DELETE.end)
    assert want != answers.expected(state_of(SOURCES), SERIES)
    for bit in range(0, 8 * path.stat().st_size, 5):
        directory = flipped(whole, f"deletes/{path.name}", bit, tmp_path / "flipped")
        store = open_quickly(directory)
        assert answers.contents(store, SERIES) == want, f"bit {bit}"
        (note,) = store.status()["damaged"]
        assert note["file"] == path.name
        assert "delete them again" in note["reason"]
        assert store.delete(DeleteRecord(2, DELETE.selector, DELETE.start, DELETE.end))
        assert answers.contents(store, SERIES) == answers.expected(again, SERIES)
        store.close()
        shutil.rmtree(directory)
