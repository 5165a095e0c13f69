"""Filters and templates: what they match, against an obvious matcher, and which are refused with which words."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import topics
from common.topics import Template

_levels = st.sampled_from(["a", "b", "", "$x"])
_topic = st.lists(_levels, min_size=1, max_size=4).map("/".join)
_filter = st.tuples(
    st.lists(st.sampled_from(["a", "b", "", "+", "$x"]), min_size=1, max_size=3), st.booleans()
).map(lambda parts: "/".join(parts[0] + ["#"] * parts[1]))
LEVELS = ["a", "b", "", "$x", "c"]
ALL_TOPICS = ["/".join(levels) for n in range(1, 5) for levels in itertools.product(LEVELS, repeat=n)]


def naive_matches(topic_filter: str, topic: str) -> bool:
    """The filter as a regular expression."""
    if topic[:1] == "$" and topic_filter[:1] in "+#":
        return False
    if topic_filter == "#":
        return True
    text = re.escape(topic_filter).replace(r"\+", "[^/]*")
    text = re.sub(r"/\\#$", "(/.*)?", text)
    return re.fullmatch(text, topic, re.DOTALL) is not None


@given(_filter, _topic)
def test_a_filter_matches_what_the_standard_says(topic_filter: str, topic: str) -> None:
    assert topics.matches(topic_filter, topic) == naive_matches(topic_filter, topic)


@given(_filter, _filter)
def test_a_filter_covers_another_if_it_matches_all_of_its_topics(wide: str, narrow: str) -> None:
    missed = [topic for topic in ALL_TOPICS if naive_matches(narrow, topic) and not naive_matches(wide, topic)]
    if topics.covers(wide, narrow):
        assert missed == []
    else:
        assert missed, "covers says no, but no topic shows why"


@pytest.mark.parametrize(
    ("topic_filter", "words"),
    [
        ("a/#/b", "# only as the last level"), ("a#", "# only as the last level"), ("a+/b", "+ alone in its level"),
        ("a\0", "without NUL"), ("x" * 65536, "at most 65535 bytes"),
    ],
)  # fmt: skip
def test_a_wrong_filter_is_told_what_is_right(topic_filter: str, words: str) -> None:
    assert words in topics.filter_fault(topic_filter)


@pytest.mark.parametrize("topic_filter", ["#", "+", "+/a/#", "a b/ü", "/", "$SYS/#", "+/+"])
def test_a_right_filter_has_no_fault(topic_filter: str) -> None:
    assert topics.filter_fault(topic_filter) == ""


@pytest.mark.parametrize(
    ("template", "topic", "names"),
    [
        ("site/{site}/{device_id}", "site/north/d1", {"site": "north", "device_id": "d1"}),
        ("{a}", "x", {"a": "x"}),
        ("+/{a}/#", "any/x", {"a": "x"}),
        ("+/{a}/#", "any/x/y/z", {"a": "x"}),
        ("{a}/{b}", "/", {"a": "", "b": ""}),
        ("#", "x/y", {}),
    ],
)
def test_a_template_names_levels(template: str, topic: str, names: dict[str, str]) -> None:
    assert Template(template).match(topic) == names


@pytest.mark.parametrize(
    ("template", "topic", "words"),
    [
        ("a/{b}", "a", "the topic has 1 levels, want 2"),
        ("a/{b}", "a/b/c", "the topic has 3 levels, want 2"),
        ("a/{b}/#", "a", "the topic has 1 levels, want at least 2"),
        ("a/{b}", "ü/b", r"level 1 of the topic is '\xfc', want 'a'"),
    ],
)
def test_a_topic_that_does_not_fit_is_told_where(template: str, topic: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Template(template).match(topic)


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "x{a}", "{a}{b}", "a/#/b", "{a+}", "a+", "{{a}}", "{a}/{a}"])
def test_a_template_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"each name once|levels that are text"):
        Template(text)


_template = st.tuples(
    st.lists(st.sampled_from(["a", "b", "", "+", "{n}", "$x"]), min_size=1, max_size=3, unique=True), st.booleans()
).map(lambda parts: "/".join(parts[0] + ["#"] * parts[1]))


@given(_template, _filter)
def test_a_template_can_match_a_filter_if_a_topic_of_the_filter_fits(text: str, topic_filter: str) -> None:
    template = Template(text)

    def fits(topic: str) -> bool:
        try:
            template.match(topic)
        except ValueError:
            return False
        return True

    shown = any(naive_matches(topic_filter, topic) and fits(topic) for topic in ALL_TOPICS)
    if shown:
        assert template.can_match(topic_filter)
    elif topic_filter[:1] not in ("+", "#"):
        assert not template.can_match(topic_filter)
