"""MQTT topics: which filter matches which topic, and templates that give the levels of a topic names.

A template has the levels of a topic: literal text that must match, {name} for a level to be taken under that name,
+ for any one level, and a last # for all that follow (also none). Pure: no I/O, no state.
"""

from typing import Final

MAX_BYTES: Final = 65535  # of a topic or filter, in UTF-8
SHARED: Final = "$share/"


def filter_fault(topic_filter: str) -> str:
    """What is wrong with a filter, "" if nothing: what would be right, as the end of "want ..."."""
    levels = topic_filter.split("/")
    if "\0" in topic_filter or len(topic_filter.encode(errors="surrogatepass")) > MAX_BYTES:
        return f"a filter of at most {MAX_BYTES} bytes without NUL"
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        return "# only as the last level, alone in it"
    if any("+" in level and level != "+" for level in levels):
        return "+ alone in its level"
    return ""


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter matches a topic. A wildcard at the beginning matches no topic that begins with $."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(map(_level_matches, wanted, levels))


def covers(wide: str, narrow: str) -> bool:
    """Whether each topic that the filter `narrow` matches is matched by the filter `wide` too."""
    outer, inner = wide.split("/"), narrow.split("/")
    if inner[0].startswith("$") and outer[0] in ("+", "#"):
        return False
    if outer[-1] == "#":
        outer = outer[:-1]
        inner = inner[: len(outer)]
    return len(outer) == len(inner) and all(
        low != "#" and _level_matches(high, low) for high, low in zip(outer, inner, strict=True)
    )


def _level_matches(wanted: str, level: str) -> bool:
    return wanted in ("+", level)


class Template:
    """A template, taken apart: constant after construction.

    names: of the levels that it names.
    """

    __slots__ = ("_levels", "_open", "names", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError, whose text says what is wanted."""
        self.text = text
        levels = text.split("/")
        self._open = levels[-1] == "#"
        self._levels = tuple(levels[:-1] if self._open else levels)
        self.names = tuple(name for name in map(_name, self._levels) if name)
        if len(set(self.names)) != len(self.names):
            raise ValueError("each name once")

    def match(self, topic: str) -> dict[str, str]:
        """The levels of a topic by name. Raises ValueError, whose text says what does not match."""
        levels = topic.split("/")
        if len(levels) < len(self._levels) or (len(levels) > len(self._levels) and not self._open):
            least = "at least " if self._open else ""
            raise ValueError(f"the topic has {len(levels)} levels, want {least}{len(self._levels)}")
        found: dict[str, str] = {}
        for at, (wanted, level) in enumerate(zip(self._levels, levels, strict=False), 1):
            name = _name(wanted)
            if name:
                found[name] = level
            elif not _level_matches(wanted, level):
                raise ValueError(f"level {at} of the topic is {level!a}, want {wanted!a}")
        return found

    def can_match(self, topic_filter: str) -> bool:
        """Whether the template can match any topic that a filter matches."""
        wanted = topic_filter.split("/")
        endless = wanted[-1] == "#"
        wanted = wanted[:-1] if endless else wanted
        if (len(wanted) > len(self._levels) and not self._open) or (len(wanted) < len(self._levels) and not endless):
            return False
        return all(
            level == "+" or _name(mine) or _level_matches(mine, level)
            for mine, level in zip(self._levels, wanted, strict=False)
        )


def _name(level: str) -> str:
    """The name that a level of a template gives, "" where it gives none. Raises ValueError."""
    if level == "+" or not any(char in level for char in "{}+#"):
        return ""
    name = level[1:-1]
    if level[:1] != "{" or level[-1:] != "}" or not name or any(char in name for char in "{}+#"):
        raise ValueError(f"levels that are text, {{name}}, + or a last # (got the level {level!a})")
    return name
