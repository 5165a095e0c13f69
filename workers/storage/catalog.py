"""The series of a node: key <-> local id, hashes, and which series a question names.

Owns the only table of series in the process. A local id is a dense int, given in order of first sight; it means
nothing outside this process. Series are never removed. No I/O.
The writer thread adds, and whoever takes in points of another store; any thread reads. A series is complete before its
id can be found.
"""

import bisect
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt

from common import series
from common.selector import Selector

_UNTAGGED: Final = 0x92  # msgpack's header of an array of two: what the key of a series without tags begins with


class Catalog:
    """All series that the node has seen, in whatever state their points are."""

    def __init__(self) -> None:
        self._first_stamp = 1 + secrets.randbits(62)
        self._ids: dict[bytes, int] = {}
        self._keys: list[bytes] = []  # by id
        self._hashes = np.empty(1024, np.uint64)  # by id, grown by doubling
        self._tagged: dict[bytes, int | list[int]] = {}  # by packed device and metric: series with tags
        self._adding = threading.Lock()  # held by who adds: a key gets one id
        self._sorting = threading.Lock()  # guards _sorted
        self._sorted: list[bytes] = []

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def stamp(self) -> int:
        """Grows with each new series, and begins at random. Whoever looks afterwards finds all that it counts."""
        return self._first_stamp + len(self._ids)  # of a new series, _ids takes the last step

    def key(self, local_id: int) -> bytes:
        """The key of a series."""
        return self._keys[local_id]

    def keys(self, local_ids: npt.NDArray[np.int64]) -> list[bytes]:
        """The keys of many series."""
        return [self._keys[each] for each in local_ids.tolist()]

    def hash(self, local_id: int) -> int:
        """series_hash of a series."""
        return int(self._hashes[local_id])

    def hashes(self, local_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """series_hash of many series."""
        return self._hashes[local_ids]

    def hashes_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.uint64]:
        """series_hash of keys, known or new. Raises ProtocolError as ids_of."""
        ids = self.ids_of(keys)
        if ids is None:
            return series.series_hashes(keys)
        return self._hashes[ids]

    def find(self, key: bytes) -> int | None:
        """The id of a key, or None."""
        return self._ids.get(key)

    def ids_of(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64] | None:
        """The ids of keys; None when there are new ones among them.

        Raises ProtocolError for a new one that is not canonical. Known keys were checked when they were new.
        """
        ids = list(map(self._ids.get, keys))
        if None not in ids:
            return np.array(ids, np.int64)
        for key, found in zip(keys, ids, strict=True):
            if found is None:
                series.parse_key(key)
        return None

    def add(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The ids of checked keys, given where there are none."""
        ids = list(map(self._ids.get, keys))
        if None in ids:
            with self._adding:
                self._add_new([key for key in keys if key not in self._ids])
            ids = list(map(self._ids.get, keys))
        return np.array(ids, np.int64)

    def unknown(self, keys: Sequence[bytes]) -> list[int]:
        """The places of keys that have no id."""
        return [at for at, key in enumerate(keys) if key not in self._ids]

    def matching(self, selector: Selector) -> npt.NDArray[np.int64]:
        """The ids of the series that a selector names."""
        if selector.metric_name is None:
            return np.array(self._of_device(selector), np.int64)
        plain = self._ids.get(series.series_key(selector.device_id, selector.metric_name, selector.tags))
        found = [] if plain is None else [plain]
        if selector.tags is None:
            tagged = self._tagged.get(msgpack.packb(selector.device_id) + msgpack.packb(selector.metric_name), ())
            found += (tagged,) if isinstance(tagged, int) else tagged
        return np.array(found, np.int64)

    def keys_after(self, after: bytes, device: str | None, metric: str | None) -> Iterator[bytes]:
        """Keys above `after` in ascending byte order, of one device or metric where given."""
        ordered, packed = self._in_order(), msgpack.packb(metric)
        for low, high in _ranges(ordered, device, metric):
            for at in range(max(low, bisect.bisect_right(ordered, after)), high):
                if device is not None or metric is None or parts_of_key(ordered[at])[1] == packed:
                    yield ordered[at]

    def _of_device(self, selector: Selector) -> list[int]:
        keys = self.keys_after(b"", selector.device_id, None)
        if selector.tags is not None:
            keys = (key for key in keys if selector.matches(series.parse_key(key)))
        return [found for key in keys if (found := self._ids.get(key)) is not None]  # None: being added just now

    def _add_new(self, keys: Sequence[bytes]) -> None:
        new = list(dict.fromkeys(keys))
        first, end = len(self._keys), len(self._keys) + len(new)
        while end > len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[first:end] = series.series_hashes(new)
        self._keys += new
        for local_id, key in enumerate(new, first):
            if key[0] != _UNTAGGED:
                self._add_tagged(_device_and_metric(key), local_id)
        self._ids.update(zip(new, range(first, end), strict=True))

    def _add_tagged(self, prefix: bytes, local_id: int) -> None:
        """Most pairs of device and metric have one set of tags: a list for each would take as much as the key."""
        known = self._tagged.setdefault(prefix, local_id)
        if isinstance(known, list):
            known.append(local_id)
        elif known != local_id:
            self._tagged[prefix] = [known, local_id]

    def _in_order(self) -> list[bytes]:
        """All keys in ascending order; the list is replaced, never changed."""
        with self._sorting:
            known = len(self._sorted)
            if known < len(self._keys):
                self._sorted = sorted(self._sorted + self._keys[known:])  # nearly sorted: timsort merges
            return self._sorted


def _ranges(ordered: list[bytes], device: str | None, metric: str | None) -> Iterator[tuple[int, int]]:
    """Spans of the ordered keys within which those of a device (and metric) lie, ascending.

    A key begins with the array's header, which depends on the number of tags: one span for each header.
    """
    if device is None:
        yield 0, len(ordered)
        return
    prefix = msgpack.packb(device) + (b"" if metric is None else msgpack.packb(metric))
    low = 0
    while low < len(ordered):
        header = _array_header(ordered[low])
        yield bisect.bisect_left(ordered, header + prefix), _end_of(ordered, header + prefix)
        low = _end_of(ordered, header)


def parts_of_key(key: bytes) -> tuple[bytes, bytes, bytes]:
    """Device, metric and tags of a canonical key, each as it is packed there, without the array's header."""
    if key[0] < 0xDC and key[1] <= 0xBF:  # most keys: an opening store asks for every one
        metric = 2 + (key[1] & 0x1F)
        if key[metric] <= 0xBF:
            tags = metric + 1 + (key[metric] & 0x1F)
            return key[1:metric], key[metric:tags], key[tags:]
    begin = len(_array_header(key))
    metric = _behind_text(key, begin)
    tags = _behind_text(key, metric)
    return key[begin:metric], key[metric:tags], key[tags:]


def _device_and_metric(key: bytes) -> bytes:
    """The part of a key with tags that holds the first two strings."""
    device, metric, _ = parts_of_key(key)
    return device + metric


def _behind_text(key: bytes, at: int) -> int:
    """Where the msgpack string that begins here ends."""
    if key[at] <= 0xBF:  # fixstr
        return at + 1 + (key[at] & 0x1F)
    width = 1 << (key[at] - 0xD9)  # of the length: str 8, str 16, str 32
    return at + 1 + width + int.from_bytes(key[at + 1 : at + 1 + width], "big")


def _array_header(key: bytes) -> bytes:
    return key[:1] if key[0] < 0xDC else key[:3]  # fixarray is one byte, array 16 three


def _end_of(ordered: list[bytes], prefix: bytes) -> int:
    """The place after the last key with this prefix."""
    above = (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")
    return bisect.bisect_left(ordered, above)
