"""The names in the series of a catalog: devices, metrics and sets of tags, each known once, and who has which.

Owns, by series, the numbers of its device, its metric and its set of tags (12 bytes), and each distinct one (about 200
bytes), and which of them passed the patterns lately asked. So a question by patterns tests each name once, and
not each series; when series were added since, the new names alone. Knows nothing of points. No I/O.

Any thread: `_lock` guards everything but the tests of names, which can take long; whoever asks takes in the series
that were added since the last question.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.match import Match, Tester, exact
from common.selector import Selector
from workers.storage.catalog import Catalog, parts_of_key

Integers = npt.NDArray[np.int64]
Tags = tuple[tuple[str, str], ...]
Named = TypeVar("Named")
Check = Callable[[], None]

_FIELDS: Final = ("device_id", "metric_name")
_TAG: Final = "tags."
_FEW: Final = 64  # pairs of exact names that are looked up one by one
_TESTED: Final = 64  # sets of patterns of which the names that passed are kept,
_TESTED_BYTES: Final = 16 << 20  # as long as they and the answers, a byte for each name, take about as much at most
_TESTED_AT_ONCE: Final = 16  # names, before it is asked whether to give up: the worst expression takes 10 ms for each
_FIRST_SERIES: Final = 1024  # rows to begin with, doubled when they run out


def go_on() -> None:
    """What is never given up."""


class Groups(NamedTuple):
    """Series in groups. ids: int64[n], by group and within one ascending; ends: int64[groups], the end of each in ids.

    labels: int32[groups, fields], what `Names.labels` makes texts of.
    """

    ids: Integers
    ends: Integers
    labels: npt.NDArray[np.int32]


class Names:
    """Of all series of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._known = 0  # series taken in
        self._numbers = np.empty((3, _FIRST_SERIES), np.int32)  # device, metric, tags; by series
        self._devices: _Vocabulary[str] = _Vocabulary(_text)
        self._metrics: _Vocabulary[str] = _Vocabulary(_text)
        self._tags: _Vocabulary[bytes] = _Vocabulary(bytes)  # packed: in words they would take three times as much

    def matching(self, match: Match, check: Check = go_on) -> Integers:
        """The ids of the series that match, ascending. Raises ProtocolError for an expression that cannot be used.

        check: called now and then while names are tested, raises what is to end that; those that were tested are kept.
        """
        few = few_names(match)
        if few:
            return self._looked_up(match, few)
        tester = Tester(match)
        with self._lock:
            self._take_in()
            devices_of, metrics_of, tags_of = self._numbers[:, : self._known]
        found = _having(devices_of, self._devices.passed(match.device_id, tester.device, check), None)
        found = _having(metrics_of, self._metrics.passed(match.metric_name, tester.metric, check), found)
        if tester.reads_tags:
            patterns = match.tags, match.more_tags
            passed = self._tags.passed(patterns, lambda packed: tester.tags(_tags(packed)), check)
            found = _having(tags_of, passed, found)
        return np.arange(len(devices_of)) if found is None else found

    def grouped(self, ids: Integers, by: Sequence[str]) -> Groups:
        """Series by what they have in common: of "device_id", "metric_name", "tags.NAME"; by nothing: all together.

        Groups ascend by their texts, series without the tag first. Raises ProtocolError for other
        words.
        """
        group = np.zeros(len(ids), np.int64)
        labels: list[npt.NDArray[np.int32]] = []
        with self._lock:
            if by:
                self._take_in()
            for field in by:
                ranks, numbers = self._ranked(ids, field)
                labels.append(numbers)
                group = np.unique(group * (int(ranks.max(initial=0)) + 1) + ranks, return_inverse=True)[1]
        order = np.argsort(group, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(group[order])), len(ids) - 1) + 1 if len(ids) else ids[:0]
        first = order[np.append(0, ends[:-1])] if len(ids) else order
        columns = [numbers[first] for numbers in labels]
        return Groups(ids[order], ends, np.array(columns, np.int32).reshape(len(by), len(ends)).T)

    def labels(self, labels: npt.NDArray[np.int32], by: Sequence[str]) -> list[list[str | bytes | None]]:
        """The texts of groups; None for a tag that the series do not have."""
        columns = []
        for at, field in enumerate(by):
            text_of = self._text_of(field)
            texts = {each: text_of(each) for each in np.unique(labels[:, at]).tolist()}
            columns.append([texts[each] for each in labels[:, at].tolist()])
        return [list(row) for row in zip(*columns, strict=True)] if by else [[] for _ in range(len(labels))]

    def count_tags(self, ids: Integers) -> dict[str, dict[str, int]]:
        """Of some series, by the name of a tag and its value: how many have it; in ascending order of both."""
        with self._lock:
            self._take_in()
            counts = np.bincount(self._numbers[2, ids])
        found: dict[str, dict[str, int]] = {}
        for number in np.flatnonzero(counts).tolist():
            for name, value in _tags(self._tags.known[number]):
                values = found.setdefault(name, {})
                values[value] = values.get(value, 0) + int(counts[number])
        return {name: dict(sorted(found[name].items())) for name in sorted(found)}

    def _looked_up(self, match: Match, names: list[tuple[str, str]]) -> Integers:
        """The series of few pairs of names are found without looking at all."""
        tester = Tester(match)
        found = np.sort(np.concatenate([self._catalog.matching(Selector(*each)) for each in names]))
        if not tester.reads_tags:
            return found
        passed = [tester.tags(_tags(parts_of_key(key)[2])) for key in self._catalog.keys(found)]
        return found[np.array(passed, np.bool_)]

    def _ranked(self, ids: Integers, field: str) -> tuple[Integers, npt.NDArray[np.int32]]:
        """For each series the rank of its text in a field, 0 for None, and a number that stands for that text."""
        text_of = self._text_of(field)
        numbers, places = np.unique(self._numbers[self._row_of(field), ids], return_inverse=True)
        texts = [text_of(number) for number in numbers.tolist()]
        first = dict(zip(reversed(texts), reversed(numbers.tolist()), strict=True))
        ranks = {text: rank for rank, text in enumerate(sorted(text for text in first if text is not None), 1)}
        rank_of = np.array([0 if text is None else ranks[text] for text in texts], np.int64)
        label_of = np.array([first[text] for text in texts], np.int32)
        return rank_of[places], label_of[places]

    def _row_of(self, field: str) -> int:
        if field in _FIELDS:
            return _FIELDS.index(field)
        if not field.startswith(_TAG):
            raise ProtocolError(f"group by {field[:100]!r}, want device_id, metric_name, tags.NAME, or series alone")
        return 2

    def _text_of(self, field: str) -> Callable[[int], str | None]:
        row = self._row_of(field)
        if row < 2:
            return (self._devices, self._metrics)[row].known.__getitem__
        name, tags = field.removeprefix(_TAG), self._tags.known
        return lambda number: next((value for tag, value in _tags(tags[number]) if tag == name), None)

    def _take_in(self) -> None:
        """The series that are new. Under the lock."""
        begin, end = self._known, len(self._catalog)
        if begin == end:
            return
        while end > self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)], axis=1)
        parts = [parts_of_key(key) for key in self._catalog.keys(np.arange(begin, end))]
        vocabularies: tuple[_Vocabulary[Any], ...] = (self._devices, self._metrics, self._tags)
        for row, vocabulary in enumerate(vocabularies):
            self._numbers[row, begin:end] = vocabulary.numbers([each[row] for each in parts])
        self._known = end


def few_names(match: Match) -> list[tuple[str, str]]:
    """The devices and metrics that a match names exactly, as pairs; none when they are patterns or many."""
    devices, metrics = exact(match.device_id), exact(match.metric_name)
    if not (devices and metrics and len(devices) * len(metrics) <= _FEW):
        return []
    return [(device, metric) for device in dict.fromkeys(devices) for metric in dict.fromkeys(metrics)]


class _Vocabulary(Generic[Named]):
    """Distinct names by number, in order of first sight; a name that is known stays.

    Names are added under the owner's lock. Any thread reads them; `_keeping` guards what was tested.
    """

    def __init__(self, parse: Callable[[bytes], Named]) -> None:
        self.known: list[Named] = []
        self._parse = parse
        self._numbers: dict[bytes, int] = {}
        self._keeping = threading.Lock()
        self._tested: OrderedDict[bytes, npt.NDArray[np.bool_]] = OrderedDict()

    def numbers(self, packed: Sequence[bytes]) -> list[int]:
        """The numbers of names as they stand in keys, given where they are new."""
        numbers = self._numbers
        for each in dict.fromkeys(packed):
            if each not in numbers:
                self.known.append(self._parse(each))
                numbers[each] = len(numbers)
        return [numbers[each] for each in packed]

    def passed(self, patterns: object, test: Callable[[Named], bool], check: Check) -> npt.NDArray[np.bool_]:
        """By number, whether a name passes the test that patterns stand for; each is tested once.

        check: called between some names, raises what is to end the tests; what was found is kept.
        """
        key = msgspec.msgpack.encode(patterns)
        found, known = self._tested.get(key, _NONE_TESTED), len(self.known)
        new: list[bool] = []
        try:
            for begin in range(len(found), known, _TESTED_AT_ONCE):
                check()
                new += [test(name) for name in self.known[begin : min(begin + _TESTED_AT_ONCE, known)]]
        finally:
            found = np.concatenate([found, np.array(new, np.bool_)]) if new else found
            self._keep(key, found)
        return found

    def _keep(self, key: bytes, found: npt.NDArray[np.bool_]) -> None:
        most = min(_TESTED, _TESTED_BYTES // (len(key) + len(found) + 1))
        with self._keeping:
            self._tested[key] = found
            self._tested.move_to_end(key)
            while len(self._tested) > max(most, 1):
                self._tested.popitem(last=False)


_NONE_TESTED: Final[npt.NDArray[np.bool_]] = np.empty(0, np.bool_)


def _having(
    numbers: npt.NDArray[np.int32], passed: npt.NDArray[np.bool_], among: Integers | None
) -> Integers | None:
    """The series, of some or (None) of all, whose name passed; None when all did. numbers: of names, by series."""
    if passed.all():
        return among
    if among is None:
        every: Integers = np.flatnonzero(passed[numbers])
        return every
    few: Integers = among[passed[numbers[among]]]
    return few


def _text(packed: bytes) -> str:
    text: str = msgpack.unpackb(packed)
    return text


def _tags(packed: bytes) -> Tags:
    """The pairs in what follows device and metric in a key."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(packed)
    texts = list(unpacker)
    return tuple(zip(texts[::2], texts[1::2], strict=True))
