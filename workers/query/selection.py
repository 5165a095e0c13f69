"""Which points a request is about: patterns of device, metric and tags, and a range of time.

The same for every route: the mapping is a JSON body, or a URL's parameters turned into one (a repeated parameter is
a list, tags.NAME=VALUE an entry of tags). Every error is a Refusal. Pure: no clock, no state: now is given.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from common import config, match
from common.errors import ProtocolError
from common.match import Match, Pattern
from workers.query.refusal import bad, flag, shown, type_of
from workers.query.times import check_order, time_ns

FIELDS: Final = ("device_id", "metric_name", "tags", "more_tags", "start_time", "end_time")
MAX_TEXTS: Final = 10_000  # in one list: a body of the largest size could hold a hundred thousand
MAX_EXPRESSIONS: Final = 100  # globs and regular expressions of a request: each may take a megabyte, compiled

_WANTED: Final = 'text, a list of texts, or {"exact": text}'


class Selection(msgspec.Struct, frozen=True):
    """What is asked about. start_ns, end_ns: inclusive, None is open."""

    match: Match
    start_ns: int | None
    end_ns: int | None


def selection(
    parameters: Mapping[str, Any], limits: config.Ingest, now_ns: int, required: Collection[str] = ()
) -> Selection:
    """The selection in a request's fields; other fields than FIELDS are not looked at. limits: those of ids and tags.

    required: of device_id and metric_name, those that cannot be left out. Raises Refusal.
    """
    start, end = parameters.get("start_time"), parameters.get("end_time")
    found = Selection(
        match_of(parameters, limits, required), time_ns("start_time", start, now_ns), time_ns("end_time", end, now_ns)
    )
    check_order(found.start_ns, found.end_ns, start, end)
    return found


def match_of(parameters: Mapping[str, Any], limits: config.Ingest, required: Collection[str] = ()) -> Match:
    """The match in a request's fields. Raises Refusal."""
    fields = {}
    for field in ("device_id", "metric_name"):
        if parameters.get(field) is None and field in required:
            raise bad(field, f"{field} is missing, want {_WANTED}")
        fields[field] = _patterns(field, parameters.get(field), 1, limits.max_id_bytes)
    tags = _tags(parameters.get("tags"), limits)
    more_tags = flag("more_tags", parameters.get("more_tags"))
    every = [*fields.values(), *(tags or {}).values()]
    expressions = sum(pattern.kind != "is" for patterns in every for pattern in patterns)
    if expressions > MAX_EXPRESSIONS:
        text = f"the request has {expressions} globs and regular expressions, want at most {MAX_EXPRESSIONS}"
        raise bad(None, text)
    return Match(fields["device_id"], fields["metric_name"], tags, more_tags)


def _tags(tags: Any, limits: config.Ingest) -> dict[str, tuple[Pattern, ...]] | None:
    if tags is None:
        return None
    if not isinstance(tags, dict):
        raise bad("tags", f"tags is {type_of(tags)}, want an object of texts")
    if len(tags) > limits.max_tags:
        raise bad("tags", f"tags has {len(tags)} entries, want at most {limits.max_tags}")
    for name in tags:
        if _size(name) > limits.max_id_bytes:
            raise bad("tags", f"tags has a name of {_size(name)} bytes, want at most {limits.max_id_bytes}")
    return {name: _tag(name, value, limits.max_id_bytes) for name, value in tags.items()}


def _tag(name: str, value: Any, most: int) -> tuple[Pattern, ...]:
    if value is None:
        raise bad("tags", f"tag {shown(name)} is null, want {_WANTED}")
    return _patterns(f"tags.{name}"[:100], value, 0, most, "tags")


def _patterns(name: str, value: Any, least: int, most: int, field: str | None = None) -> tuple[Pattern, ...]:
    """The patterns of a value. name: of what, in texts; least, most: bytes of an exact text; field: at fault."""
    if value is None:
        return ()
    each = value if isinstance(value, list) else [value]
    if not 1 <= len(each) <= MAX_TEXTS:
        raise bad(field or name, f"{name} is a list of {len(each)} texts, want 1 to {MAX_TEXTS}")
    return tuple([_pattern(name, one, least, most, field or name) for one in each])


def _pattern(name: str, value: Any, least: int, most: int, field: str) -> Pattern:
    if isinstance(value, dict) and value.keys() == {"exact"} and isinstance(value["exact"], str):
        pattern = Pattern("is", value["exact"])
    elif not isinstance(value, str):
        raise bad(field, f"{name} is {shown(value)}, {type_of(value)}; want {_WANTED}")
    elif not value and least:
        raise bad(field, f"{name} is empty, want {_WANTED}")
    else:
        try:
            pattern = match.parse_pattern(value)
        except ProtocolError as error:
            raise bad(field, f"{name} is {shown(value)}: {error}") from error
    if pattern.kind == "is" and not least <= _size(pattern.text) <= most:
        raise bad(field, f"{name} has {_size(pattern.text)} bytes, want {least} to {most}")
    return pattern


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
