"""A subscription as the configuration has it: what to subscribe to, and what its payloads mean.

Owns the settings of one table of mqtt.subscriptions, and the rules on what of them goes together. What a setting
means to a payload is in docs/bridge.md. Pure: no I/O, no state.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from common import topics

DEVICE: Final = "device_id"
METRIC: Final = "metric_name"
VALUE: Final = "value"
TIME: Final = "timestamp"
IGNORED: Final = "-"  # a column of CSV

Format = Literal[
    "json", "json-metrics", "number", "csv", "line-protocol", "msgpack", "msgpack-metrics", "msgpack-columns"
]


class Subscription(Struct, frozen=True, forbid_unknown_fields=True):
    filter: Annotated[str, Meta(min_length=1)]
    qos: Annotated[int, Meta(ge=0, le=1)] = 1
    format: Format = "json"
    template: str = ""
    device_id: str = ""
    metric_name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    time_field: str = TIME
    time_unit: Literal["default", "s", "ms", "us", "ns", "auto"] = "default"
    retained: Literal["store", "skip"] = "store"
    value_field: str = VALUE
    device_field: str = DEVICE
    metric_field: str = METRIC
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=lambda: [TIME, DEVICE, METRIC, VALUE])
    separator: str = ","

    @property
    def unit(self) -> str:
        """The unit of times that are numbers, as time_unit says; "auto": of each by its size."""
        if self.time_unit != "default":
            return self.time_unit
        return "ns" if self.format in ("line-protocol", "msgpack-columns") else "s"


Problem = tuple[tuple[str, ...], str]  # (key, or key and what is inside), what is wrong

# Settings that mean something to some formats only. time_field: all but number have a time, but only fields of
# objects have a name that can be chosen; the others know "timestamp", and "" for the time of arrival.
_POINTS: Final = ("json", "msgpack")
_METRICS: Final = ("json-metrics", "msgpack-metrics")
_ONLY_FOR: Final[dict[str, tuple[str, ...]]] = {
    "metric_name": (*_POINTS, "number", "csv", "msgpack-columns"),
    "metric_field": _POINTS,
    "value_field": _POINTS,
    "device_field": (*_POINTS, *_METRICS, "line-protocol"),
    "include": _METRICS,
    "exclude": _METRICS,
    "columns": ("csv",),
    "separator": ("csv",),
    "time_unit": (*_POINTS, *_METRICS, "csv", "line-protocol", "msgpack-columns"),
}
_NAMED_TIMES: Final = (*_POINTS, *_METRICS)
_RESERVED: Final = ("tags", "timestamp_unit")  # fields that always mean themselves


def problems(subscriptions: Sequence[Subscription], max_id_bytes: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """What cannot be or does not go together: (("[0]", "filter"), what is wrong).

    max_id_bytes: limit of names.
    """
    if not subscriptions:
        yield (), "want one table at least: nothing else is taken in"
    for at, subscription in enumerate(subscriptions):
        place = f"[{at}]"
        for rule in (_filter_problems, _template_problems, _use_problems, _name_problems, _field_problems):
            yield from (((place, *key), text) for key, text in rule(subscription))
        yield from (((place, *key), text) for key, text in _csv_problems(subscription))
        yield from (((place, *key), text) for key, text in _text_problems(subscription, max_id_bytes))
        for before, earlier in enumerate(subscriptions[:at]):
            if topics.covers(earlier.filter, subscription.filter):
                text = f"never decides: mqtt.subscriptions[{before}].filter = {earlier.filter!r} comes first and"
                yield (place, "filter"), f"{text} matches all of its topics; want it before that one, or not at all"
                break


def template_of(subscription: Subscription) -> topics.Template | None:
    """The subscription's template, taken apart. Raises ValueError."""
    return topics.Template(subscription.template) if subscription.template else None


def gives(subscription: Subscription, name: str) -> bool:
    """Whether topic or subscription give DEVICE or METRIC where the payload has none."""
    template = template_of(subscription)
    return bool(getattr(subscription, name)) or (template is not None and name in template.names)


def _filter_problems(subscription: Subscription) -> Iterator[Problem]:
    fault = topics.filter_fault(subscription.filter)
    if fault:
        yield ("filter",), f"want {fault}"
    elif subscription.filter.startswith(topics.SHARED):
        yield ("filter",), "want the filter alone; mqtt.share_group makes shared subscriptions of all"


def _template_problems(subscription: Subscription) -> Iterator[Problem]:
    try:
        template = template_of(subscription)
    except ValueError as error:
        yield ("template",), f"want {error}"
        return
    if template is None:
        return
    if not template.can_match(subscription.filter):
        yield ("template",), f"matches no topic of filter = {subscription.filter!r}"
    for name in template.names:
        if (name in (DEVICE, METRIC) and getattr(subscription, name)) or name in subscription.tags:
            key = (name,) if name in (DEVICE, METRIC) else ("tags", name)
            yield key, f"has no use: template = {subscription.template!r} names it; want one of the two"


def _use_problems(subscription: Subscription) -> Iterator[Problem]:
    """Settings that mean nothing to the format."""
    default = Subscription(subscription.filter)
    for key, formats in _ONLY_FOR.items():
        if subscription.format not in formats and getattr(subscription, key) != getattr(default, key):
            yield (key,), f"has no use: format = {subscription.format!r}; want it with {', '.join(formats)} only"
    if subscription.format not in _NAMED_TIMES and subscription.time_field not in ("", TIME):
        yield ("time_field",), f"want {TIME!r}, or nothing for the time of arrival: {subscription.format} has no fields"
    if not subscription.time_field and subscription.time_unit != default.time_unit:
        yield ("time_unit",), "has no use: time_field = '' takes the time of arrival"


def _name_problems(subscription: Subscription) -> Iterator[Problem]:
    """Whether each point gets a device and a metric."""
    try:
        template = template_of(subscription)
    except ValueError:
        return
    names = template.names if template else ()
    if METRIC in names and subscription.format not in _ONLY_FOR["metric_name"]:
        yield ("template",), f"{{{METRIC}}} has no use: format = {subscription.format!r} names its metrics itself"
    payload = {"number": (), "csv": tuple(subscription.columns)}.get(subscription.format, (DEVICE, METRIC))
    for name in (DEVICE, METRIC):
        if name not in payload and name not in names and not getattr(subscription, name):
            has = "columns have" if subscription.format == "csv" else f"format = {subscription.format!r} has"
            yield (name,), f"want one, here or as {{{name}}} in template: the payload's {has} none"


def _field_problems(subscription: Subscription) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for key in ("device_field", "metric_field", "value_field", "time_field"):
        path = getattr(subscription, key)
        if not all(path.split(".")) and (path or key != "time_field"):
            yield (key,), "want a field's name, or names joined by dots"
        elif path in _RESERVED:
            yield (key,), f"want another field: {path} has its own meaning"
        elif path and seen.setdefault(path, key) != key:
            yield (key,), f"is {seen[path]} already; want another field"
    for key in ("include", "exclude"):
        if not all(getattr(subscription, key)):
            yield (key,), "want patterns of one character and more"


def _csv_problems(subscription: Subscription) -> Iterator[Problem]:
    names = [name for name in subscription.columns if name != IGNORED]
    if VALUE not in names:
        yield ("columns",), f"want {VALUE!r} among them"
    if len(set(names)) != len(names) or not all(names):
        yield ("columns",), f"want each name once and none empty; {IGNORED!r} ignores a column"
    if len(subscription.separator) != 1 or subscription.separator in '"\r\n':
        yield ("separator",), 'want one character, which is neither " nor a line break'


def _text_problems(subscription: Subscription, max_bytes: int) -> Iterator[Problem]:
    """Names that every point would be refused for."""
    for key in (DEVICE, METRIC):
        if getattr(subscription, key) and not _is_name(getattr(subscription, key), max_bytes):
            yield (key,), f"want 1 to {max_bytes} bytes of UTF-8 (ingest.max_id_bytes) without control characters"
    for name, value in subscription.tags.items():
        if not _is_name(name, max_bytes) or not _is_name(value, max_bytes):
            text = f"want name and value of 1 to {max_bytes} bytes of UTF-8 (ingest.max_id_bytes)"
            yield ("tags", name), f"{text} without control characters"


def _is_name(text: str, max_bytes: int) -> bool:
    controls = any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text)
    return 0 < len(text.encode()) <= max_bytes and not controls
