"""Which series a question by patterns names, and how they are grouped, beside asking each series in turn."""

import fnmatch
import random
import re
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from common import series
from common.errors import ProtocolError
from common.match import Match, Pattern, parse_pattern
from common.match import Tester as MatchTester
from workers.storage.catalog import Catalog, parts_of_key
from workers.storage.names import Names
from workers.storage.work import CancelledError

LONG = "x" * 300
DEVICES = ["", "a", "ab", "a*b", "a?b", "b.c", "AA:BB:CC", "line\nbreak", "größe", "d" * 31, "d" * 32, LONG]
METRICS = ["m", "temperature", "temp.*", "m" * 40]
VALUES = ["1", "2", "room 1", ""]


def _keys(rng: random.Random, count: int) -> list[bytes]:
    found = []
    for _ in range(count):
        tags = {name: rng.choice(VALUES) for name in ("room", "floor", "é") if rng.random() < 0.4}
        found.append(series.series_key(rng.choice(DEVICES), rng.choice(METRICS), tags))
    return list(dict.fromkeys(found))


def _slow(keys: Sequence[bytes], match: Match) -> list[int]:
    """By Python's own globs and regular expressions, series by series."""
    return [at for at, key in enumerate(keys) if _matches(series.parse_key(key), match)]


def _matches(each: series.Series, match: Match) -> bool:
    if not (_any(match.device_id, each.device_id) and _any(match.metric_name, each.metric_name)):
        return False
    have = dict(each.tags)
    if match.tags is None:
        return True
    if not match.more_tags and set(have) != set(match.tags):
        return False
    return all(name in have and _any(wanted, have[name]) for name, wanted in match.tags.items())


def _any(patterns: Sequence[Pattern], text: str) -> bool:
    return not patterns or any(_is(pattern, text) for pattern in patterns)


def _is(pattern: Pattern, text: str) -> bool:
    if pattern.kind == "is":
        return text == pattern.text
    if pattern.kind == "glob":
        return fnmatch.fnmatchcase(text, pattern.text.replace("[", "[[]"))
    return re.fullmatch(pattern.text, text) is not None


def _patterns(rng: random.Random, texts: Sequence[str]) -> tuple[Pattern, ...]:
    kinds = ["*", "a*", "*b*", "?", "a?b", "*.*", "**", "*\n*", "m*e?a*e", "~[ab].*", "~(?i)AA.*", "~.*[0-9]|m"]
    made = [parse_pattern(rng.choice(kinds)) if rng.random() < 0.5 else Pattern("is", rng.choice(texts))]
    return tuple(made * (rng.random() < 0.8) + [Pattern("is", rng.choice(texts))] * (rng.random() < 0.3))


def _match(rng: random.Random) -> Match:
    tags = None
    if rng.random() < 0.6:
        tags = {name: _patterns(rng, VALUES) for name in ("room", "floor") if rng.random() < 0.5}
    return Match(_patterns(rng, DEVICES), _patterns(rng, METRICS), tags, rng.random() < 0.5)


def test_what_matches_is_what_asking_each_series_finds_also_when_series_are_added_between() -> None:
    rng = random.Random(1)
    keys = _keys(rng, 300)
    catalog = Catalog()
    names = Names(catalog)
    asked = [_match(rng) for _ in range(60)]
    for known in (0, 100, 101, len(keys)):
        catalog.add(keys[:known])
        for match in asked:
            assert names.matching(match).tolist() == _slow(keys[:known], match), match


@pytest.mark.parametrize(
    ("glob", "text", "want"),
    [("*", "", True), ("?", "", False), ("a*a", "a", False), ("a*a", "aa", True), ("*ab*abc", "abab abc", True),
     ("*ab*ab", "ab", False), ("a*b*c", "a\nbbc", True), ("[a]*", "[a]b", True), ("*?x", "xx", True),
     ("*a?*", "ba", False)],
)  # fmt: skip
def test_globs(glob: str, text: str, want: bool) -> None:
    catalog = Catalog()
    catalog.add([series.series_key(text, "m", {})])
    assert len(Names(catalog).matching(Match((parse_pattern(glob),)))) == want


def test_groups_are_those_of_a_dictionary_and_in_order() -> None:
    rng = random.Random(2)
    keys = _keys(rng, 400)
    catalog = Catalog()
    ids = catalog.add(keys)
    names = Names(catalog)
    for by in ([], ["device_id"], ["tags.room"], ["metric_name", "tags.floor", "device_id"], ["tags.no", "tags.é"]):
        chosen = np.array(sorted(rng.sample(ids.tolist(), 150)))
        groups = names.grouped(chosen, by)
        want: dict[tuple[str | None, ...], list[int]] = {}
        for each in chosen.tolist():
            parsed = series.parse_key(keys[each])
            fields = {"device_id": parsed.device_id, "metric_name": parsed.metric_name}
            fields |= {f"tags.{name}": value for name, value in parsed.tags}
            want.setdefault(tuple(fields.get(field) for field in by), []).append(each)
        labels = [tuple(label) for label in names.labels(groups.labels, by)]
        assert labels == sorted(want, key=lambda label: [(text is not None, text or "") for text in label])
        members = np.split(groups.ids, groups.ends[:-1])
        assert [each.tolist() for each in members] == [want[label] for label in labels]  # type: ignore[index]


def test_no_series_make_no_group() -> None:
    groups = Names(Catalog()).grouped(np.empty(0, np.int64), ["device_id", "tags.room"])
    assert (len(groups.ids), len(groups.ends), groups.labels.shape) == (0, 0, (0, 2))


def test_another_word_to_group_by_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"group by 'device', want device_id, metric_name, tags.NAME"):
        Names(Catalog()).grouped(np.empty(0, np.int64), ["device"])


def test_tags_are_counted_by_name_and_value() -> None:
    catalog = Catalog()
    catalog.add([series.series_key("a", "m", {"room": "1"}), series.series_key("b", "m", {"room": "1", "floor": "2"})])
    ids = catalog.add([series.series_key("a", "n", {"room": "0"}), series.series_key("b", "n", {})])
    names = Names(catalog)
    assert names.count_tags(np.arange(4)) == {"floor": {"2": 1}, "room": {"0": 1, "1": 2}}
    assert names.count_tags(ids) == {"room": {"0": 1}}


def test_the_parts_of_a_key_are_its_bytes() -> None:
    for key in _keys(random.Random(3), 200):
        assert key.endswith(b"".join(parts_of_key(key)))
        assert len(key) - len(b"".join(parts_of_key(key))) in (1, 3)


def test_readers_see_whole_series_while_some_are_added() -> None:
    catalog = Catalog()
    names = Names(catalog)
    keys = [series.series_key(f"d{number}", "m", {"room": str(number % 3)}) for number in range(6000)]
    wrong: list[int] = []

    def read() -> None:
        seen = 0
        while seen < len(keys):
            found = names.matching(Match((parse_pattern("d*"),), tags={"room": (parse_pattern("?"),)}))
            wrong.extend([seen] * (len(found) < seen or found.tolist() != list(range(len(found)))))
            seen = len(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for begin in range(0, len(keys), 50):
        catalog.add(keys[begin : begin + 50])
    for reader in readers:
        reader.join()
    assert not wrong


def test_a_long_search_is_given_up_without_keeping_others_waiting_and_goes_on_where_it_was() -> None:
    catalog = Catalog()
    catalog.add([series.series_key(f"d{number}", "m", {}) for number in range(100)])
    names = Names(catalog)
    match, left = Match((parse_pattern("*7"),)), [4]

    def give_up() -> None:
        assert not names._lock.locked(), "others can ask"
        left[0] -= 1
        if left[0] == 0:
            raise CancelledError("nobody waits")

    with pytest.raises(CancelledError):
        names.matching(match, give_up)
    asked: list[int] = []
    assert len(names.matching(match, lambda: asked.append(1))) == 10
    assert len(asked) == 5  # three of seven times sixteen devices were tested; then there is one metric
    assert len(names.matching(match, give_up)) == 10


def test_few_answers_of_long_patterns_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.storage.names._TESTED_BYTES", 5000)
    catalog = Catalog()
    catalog.add(_keys(random.Random(4), 50))
    names = Names(catalog)
    for number in range(30):
        names.matching(Match((Pattern("is", f"{number:01000}"),)))
    assert 0 < len(names._devices._tested) < 6


def test_a_glob_over_100_000_series_tests_each_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog()
    keys = [series.series_key(f"dev{number // 10:05d}", f"m{number % 10}", {}) for number in range(100_010)]
    catalog.add(keys[:100_000])
    tested: list[str] = []

    def counting(test: Callable[[str], bool]) -> Callable[[str], bool]:
        def noted(text: str) -> bool:
            tested.append(text)
            return test(text)

        return noted

    class Counting(MatchTester):
        """Notes what it is asked."""

        def __init__(self, match: Match) -> None:
            super().__init__(match)
            self.device = counting(self.device)
            self.metric = counting(self.metric)

    monkeypatch.setattr("workers.storage.names.Tester", Counting)
    names = Names(catalog)
    asked = Match((parse_pattern("*7"),), (parse_pattern("m?"),))
    for want, tests in ((10_000, 10_010), (10_000, 0)):
        assert len(names.matching(asked)) == want
        assert len(tested) == len(set(tested)) == tests
        tested.clear()
    catalog.add(keys)
    assert len(names.matching(asked)) == 10_000
    assert tested == ["dev10000"]
