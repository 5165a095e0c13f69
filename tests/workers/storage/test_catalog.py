"""Series listed and found as a plain scan of all keys would."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import series
from common.errors import ProtocolError
from common.selector import Selector
from workers.storage import catalog as catalog_module
from workers.storage.catalog import Catalog

texts = st.sampled_from(["", "a", "aa", "b", "temperature", "x" * 40, "ü", "\x7f", "\uffff", "a:b/c"])
tags = st.dictionaries(texts, texts, max_size=3)
series_lists = st.lists(st.tuples(texts, texts, tags), max_size=30)


def catalog_of(named: list[tuple[str, str, dict[str, str]]]) -> tuple[Catalog, list[bytes]]:
    catalog = Catalog()
    keys = [series.series_key(*each) for each in named]
    assert (catalog.ids_of(keys) is None) == bool(keys)
    for key in keys:
        catalog.add([key])
    return catalog, sorted(set(keys))


@given(series_lists, st.none() | texts, st.none() | texts, st.binary(max_size=6), st.integers(0, 40))
def test_listing_is_a_sorted_filter_of_all_keys(
    named: list[Any], device: str | None, metric: str | None, after: bytes, at: int
) -> None:
    catalog, keys = catalog_of(named)
    after = keys[at] if at < len(keys) else after
    want = [
        key
        for key in keys
        if key > after
        and device in (None, series.parse_key(key).device_id)
        and metric in (None, series.parse_key(key).metric_name)
    ]
    assert list(catalog.keys_after(after, device, metric)) == want


def test_a_series_that_is_being_added_is_not_found_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, seen = Catalog(), []
    split = catalog_module._device_and_metric

    def look(key: bytes) -> bytes:
        seen.append(catalog.matching(Selector("d", None, None)).tolist())
        return split(key)

    monkeypatch.setattr(catalog_module, "_device_and_metric", look)
    for metric in ("m", "n"):
        catalog.add([series.series_key("d", metric, {"a": "b"})])
    assert seen == [[], [0]]
    assert catalog.matching(Selector("d", None, None)).tolist() == [0, 1]


@given(series_lists, texts, st.none() | texts, st.none() | tags)
def test_matching_is_what_a_scan_finds(
    named: list[Any], device: str, metric: str | None, wanted: dict[str, str] | None
) -> None:
    catalog, keys = catalog_of(named)
    want = [
        key
        for key in keys
        if (parsed := series.parse_key(key)).device_id == device
        and metric in (None, parsed.metric_name)
        and wanted in (None, dict(parsed.tags))
    ]
    found = catalog.matching(Selector(device, metric, wanted))
    assert found.dtype == "int64"
    assert sorted(catalog.key(each) for each in found.tolist()) == want


@pytest.mark.parametrize("length", [1, 31, 32, 255, 256, 65_535, 65_536])
def test_tagged_series_are_found_however_long_their_ids(length: int) -> None:
    named = [("d" * length, "m" * length, {"a": text}) for text in "xy"] + [("d" * length, "n", {"a": "x"})]
    catalog, keys = catalog_of(named)
    found = catalog.matching(Selector("d" * length, "m" * length))
    assert sorted(catalog.key(each) for each in found.tolist()) == [k for k in keys if b"m" in k]


def test_unknown_names_the_places_of_new_keys() -> None:
    catalog, keys = catalog_of([("d", "m", {})])
    assert catalog.unknown([series.series_key("x", "m"), *keys, series.series_key("y", "m")]) == [0, 2]


def test_series_with_more_tags_than_a_short_array_holds_are_listed() -> None:
    many = {f"t{number:02}": "v" for number in range(20)}
    catalog, keys = catalog_of([("d", "m", many), ("d", "m", {}), ("e", "m", many)])
    assert list(catalog.keys_after(b"", "d", "m")) == sorted(k for k in keys if series.parse_key(k).device_id == "d")


def test_ids_are_dense_and_stay() -> None:
    catalog = Catalog()
    keys = [series.series_key(f"d{number}", "m") for number in range(3000)]
    assert catalog.add(keys[:2000]).tolist() == list(range(2000))
    assert catalog.add(keys[::-1]).tolist() == [*range(2000, 3000), *range(1999, -1, -1)]
    assert len(catalog) == 3000
    assert [catalog.hash(at) for at in (0, 1999)] == [series.series_hash(keys[at]) for at in (0, 1999)]
    new = series.series_key("new", "m")
    known = catalog.ids_of(keys[:2500])
    assert known is not None and known.tolist() == [*range(2000), *range(2999, 2499, -1)]
    assert catalog.ids_of([*keys, new]) is None
    expected = [series.series_hash(key) for key in keys]
    assert catalog.hashes_of(keys).tolist() == expected
    assert catalog.hashes_of([*keys, new]).tolist() == [*expected, series.series_hash(new)]


@pytest.mark.parametrize(
    "key", [b"", b"\x92", b"\x92\xa1a\xa1", msgpack.packb(["a"]), msgpack.packb(["a", 1]), b"\xdc\x00\x02\xa1a\xa1b"]
)
def test_key_that_is_not_canonical_is_refused(key: bytes) -> None:
    with pytest.raises(ProtocolError, match="series key"):
        Catalog().ids_of([series.series_key("d", "m"), key])


