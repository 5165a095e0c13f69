"""Subscriptions that cannot be, each refused at start with its place, its value and what would be right."""

from pathlib import Path

import pytest

from common import config
from common.errors import ConfigError

HEAD = "[[mqtt.subscriptions]]\n"


def load(tmp_path: Path, text: str) -> config.Settings:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return config.load(file, {})


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('filter = "a/#/b"', "filter = 'a/#/b': want # only as the last level"),
        ('filter = "$share/g/a"', "filter = '$share/g/a': want the filter alone; mqtt.share_group"),
        ('filter = "a"\nformat = "xml"', "format = 'xml': want one of json, json-metrics, number, csv"),
        ('filter = "a"\ntags = [1]', "tags = [1]: want a table of texts"),
        ('filter = "a"\ntags = {x = 1}', "tags = {'x': 1}: want a table of texts"),
        ('filter = "a"\ninclude = "x"', "include = 'x': want a list of texts"),
        ('filter = "a"\nretained = "keep"', "retained = 'keep': want one of store, skip"),
        ('filter = "a"\ntime_unit = "h"', "time_unit = 'h': want one of default, s, ms, us, ns, auto"),
        ('filter = "a/+"\ntemplate = "a/{x"', "template = 'a/{x': want levels that are text, {name}, +"),
        ('filter = "a/+"\ntemplate = "b/{x}"', "template = 'b/{x}': matches no topic of filter = 'a/+'"),
        (
            'filter = "a/+"\ntemplate = "a/{device_id}"\ndevice_id = "d"',
            "device_id = 'd': has no use: template = 'a/{device_id}' names it; want one of the two",
        ),
        ('filter = "a/+"\ntemplate = "a/{x}"\ntags = {x = "y"}', "tags.x = 'y': has no use: template = 'a/{x}'"),
        ('filter = "a"\nformat = "number"\nmetric_name = "m"', "device_id = '': want one, here or as {device_id} in"),
        ('filter = "a"\nformat = "number"\ndevice_id = "d"', "metric_name = '': want one, here or as {metric_name} in"),
        (
            'filter = "a"\nformat = "csv"\ncolumns = ["metric_name", "value"]',
            "device_id = '': want one, here or as {device_id} in template: the payload's columns have none",
        ),
        ('filter = "a"\nformat = "csv"\ncolumns = ["device_id", "metric_name"]', "want 'value' among them"),
        (
            'filter = "a"\nformat = "csv"\ncolumns = ["device_id", "metric_name", "value", "value"]',
            "want each name once and none",
        ),
        ('filter = "a"\nformat = "csv"\nseparator = "ab"', "separator = 'ab': want one character"),
        ('filter = "a"\nseparator = ";"', "separator = ';': has no use: format = 'json'; want it with csv only"),
        ('filter = "a"\ninclude = ["x"]', "has no use: format = 'json'; want it with json-metrics, msgpack-metrics"),
        (
            'filter = "a"\nformat = "line-protocol"\nvalue_field = "v"',
            "value_field = 'v': has no use: format = 'line-protocol'",
        ),
        (
            'filter = "a/+"\nformat = "json-metrics"\ntemplate = "a/{metric_name}"',
            "template = 'a/{metric_name}': {metric_name} has no use: format = 'json-metrics' names its metrics itself",
        ),
        ('filter = "a"\nformat = "json-metrics"\nmetric_name = "m"', "metric_name = 'm': has no use"),
        ('filter = "a"\nformat = "csv"\ntime_field = "at"', "time_field = 'at': want 'timestamp', or nothing"),
        ('filter = "a"\ntime_field = ""\ntime_unit = "ms"', "time_unit = 'ms': has no use: time_field = ''"),
        ('filter = "a"\nvalue_field = "tags"', "value_field = 'tags': want another field: tags has its own meaning"),
        ('filter = "a"\nvalue_field = "a..b"', "value_field = 'a..b': want a field's name, or names joined by dots"),
        ('filter = "a"\nvalue_field = ""', "value_field = '': want a field's name"),
        ('filter = "a"\nvalue_field = "device_id"', "value_field = 'device_id': is device_field already"),
        ('filter = "a"\nformat = "json-metrics"\nexclude = [""]', "exclude = ['']: want patterns of one character"),
        ('filter = "a"\ndevice_id = "a\\u0007"', "want 1 to 256 bytes of UTF-8 (ingest.max_id_bytes) without control"),
        ('filter = "a"\ntags = {x = ""}', "tags.x = '': want name and value of 1 to 256 bytes"),
    ],
    ids=lambda text: text.replace("\n", " ")[:60],
)  # fmt: skip
def test_what_does_not_go_together_stops_the_program(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, HEAD + lines)
    assert "mqtt.subscriptions[0]" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bridge_without_subscriptions_is_refused(tmp_path: Path) -> None:
    """It would take nothing in, and paho raises an error for an empty SUBSCRIBE."""
    with pytest.raises(ConfigError, match=r"mqtt\.subscriptions = \[\]: want one table at least"):
        load(tmp_path, "[mqtt]\nsubscriptions = []")


@pytest.mark.parametrize(
    ("first", "second"), [("a/#", "a/b"), ("a/#", "a/#"), ("#", "x/+/y"), ("+/b", "a/b"), ("a/#", "a")]
)
def test_a_subscription_that_never_decides_is_refused(tmp_path: Path, first: str, second: str) -> None:
    text = f'{HEAD}filter = "{first}"\n{HEAD}filter = "{second}"'
    with pytest.raises(ConfigError, match=r"subscriptions\[1\]\.filter = .*: never decides: mqtt\.subscriptions\[0\]"):
        load(tmp_path, text)


@pytest.mark.parametrize(("first", "second"), [("a/b", "a/#"), ("#", "$SYS/#"), ("a/+", "a/b/c"), ("+", "#")])
def test_a_subscription_that_decides_for_some_topics_is_fine(tmp_path: Path, first: str, second: str) -> None:
    settings = load(tmp_path, f'{HEAD}filter = "{first}"\n{HEAD}filter = "{second}"')
    assert [each.filter for each in settings.mqtt.subscriptions] == [first, second]


@pytest.mark.parametrize(
    ("form", "unit", "want"),
    [
        ("json", "default", "s"), ("csv", "default", "s"), ("line-protocol", "default", "ns"),
        ("msgpack-columns", "default", "ns"), ("line-protocol", "ms", "ms"), ("json", "auto", "auto"),
    ],
)  # fmt: skip
def test_the_default_unit_is_the_formats_own(tmp_path: Path, form: str, unit: str, want: str) -> None:
    settings = load(tmp_path, f'{HEAD}filter = "a"\nformat = "{form}"\ntime_unit = "{unit}"')
    assert settings.mqtt.subscriptions[0].unit == want


def test_a_list_of_subscriptions_from_the_environment_is_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("")
    variable = "MINITRUE__MQTT__SUBSCRIPTIONS"
    with pytest.raises(ConfigError, match=f"^{variable}: mqtt.subscriptions.0..template = 'b/c': matches no topic"):
        config.load(file, {variable: '[{filter = "a", template = "b/c"}]'})
