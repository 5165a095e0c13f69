"""The exposition is what Prometheus's own parser reads, whatever the labels hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter, Gauge, Histogram, Summary
from prometheus_client.parser import text_string_to_metric_families

from common import metrics
from common.protocol import MetricFamily


@pytest.fixture(autouse=True)
def _metrics_of_one_test_only():
    before = dict(metrics._readers._readers)
    known = set(metrics.REGISTRY._collector_to_names)
    yield
    metrics._readers._readers.clear()
    metrics._readers._readers.update(before)
    for collector in set(metrics.REGISTRY._collector_to_names) - known:
        metrics.REGISTRY.unregister(collector)


def _parsed(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            place = (sample.name, tuple(sorted(sample.labels.items())))
            assert place not in samples, f"{place} is there twice"
            samples[place] = sample.value
    return samples


def _gauge(value: float, labels: dict[str, str], name: str = "minitrue_g", kind: str = "gauge") -> MetricFamily:
    return MetricFamily(name, kind, "Help.", [(name, labels, value)])


def test_metrics_of_every_kind_are_rendered_for_each_worker():
    Counter("minitrue_messages", "Messages.", ["kind"], registry=metrics.REGISTRY).labels("good").inc(3)
    Gauge("minitrue_depth", "Depth.", registry=metrics.REGISTRY).set(-1.5)
    Histogram("minitrue_wait_seconds", "Wait.", buckets=(0.1, 1.0), registry=metrics.REGISTRY).observe(0.5)
    own = metrics.snapshot()
    samples = _parsed(metrics.render({"ing1": own, "ing2": own}))
    for worker in ("ing1", "ing2"):
        at = ("worker", worker)
        assert samples["minitrue_messages_total", (("kind", "good"), at)] == 3
        assert samples["minitrue_depth", (at,)] == -1.5
        assert samples["minitrue_wait_seconds_bucket", (("le", "0.1"), at)] == 0
        assert samples["minitrue_wait_seconds_bucket", (("le", "1.0"), at)] == 1
        assert samples["minitrue_wait_seconds_bucket", (("le", "+Inf"), at)] == 1
        assert samples["minitrue_wait_seconds_sum", (at,)] == 0.5
        assert samples["minitrue_wait_seconds_count", (at,)] == 1


def test_each_family_has_its_help_and_type_once():
    text = metrics.render({"a": [_gauge(1, {})], "b": [_gauge(2, {})]}).decode()
    assert text == (
        "# HELP minitrue_g Help.\n"
        "# TYPE minitrue_g gauge\n"
        'minitrue_g{worker="a"} 1.0\n'
        'minitrue_g{worker="b"} 2.0\n'
    )


def test_process_metrics_are_there():
    names = {name for name, _ in _parsed(metrics.render({"w": metrics.snapshot()}))}
    assert {"minitrue_process_cpu_seconds_total", "minitrue_process_resident_memory_bytes"} <= names


def test_plain_ints_are_read_when_asked_and_a_newer_reader_replaces_an_older():
    counts = {"points": 1}
    metrics.counters_from("minitrue_test", {"points": "Points.", "batches": "Batches."}, lambda: counts)
    metrics.gauge_from("minitrue_size", "Size.", lambda: 1)
    metrics.gauge_from("minitrue_size", "Size.", lambda: 2)
    metrics.counter_from("minitrue_bad_total", "Bad.", lambda: {("x",): 4}, ["reason"])
    counts["points"] = 7
    samples = _parsed(metrics.render({"w": metrics.snapshot()}))
    at = ("worker", "w")
    assert samples["minitrue_test_points_total", (at,)] == 7
    assert samples["minitrue_test_batches_total", (at,)] == 0
    assert samples["minitrue_size", (at,)] == 2
    assert samples["minitrue_bad_total", (("reason", "x"), at)] == 4


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(alphabet='\\"\n\r{}, =', max_size=20))
def test_any_label_value_and_worker_name_reads_back(value, worker):
    samples = _parsed(metrics.render({worker: [_gauge(1.0, {"topic": value})]}))
    assert samples == {("minitrue_g", (("topic", value), ("worker", worker))): 1.0}


@pytest.mark.parametrize("help_text", ["two\nlines", "back\\slash", "carriage\rreturn", "# TYPE x counter"])
def test_help_cannot_break_out_of_its_line(help_text):
    family = MetricFamily("minitrue_g", "gauge", help_text, [("minitrue_g", {}, 1.0)])
    text = metrics.render({"w": [family]})
    assert len(text.decode().splitlines()) == 3
    assert _parsed(text) == {("minitrue_g", (("worker", "w"),)): 1.0}


@pytest.mark.parametrize("value", [math.inf, -math.inf, 0.0, 1e300, 5e-324, 2.0**60])
def test_values_read_back_exactly(value):
    assert list(_parsed(metrics.render({"w": [_gauge(value, {})]})).values()) == [value]


def test_nan_reads_back():
    assert math.isnan(*_parsed(metrics.render({"w": [_gauge(math.nan, {})]})).values())


def test_a_label_named_worker_is_kept_under_another_name():
    samples = _parsed(metrics.render({"w": [_gauge(1, {"worker": "x"})]}))
    assert list(samples) == [("minitrue_g", (("exported_worker", "x"), ("worker", "w")))]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        (_gauge(1, {}, "bad name\n"), "not a metric name"),
        (_gauge(1, {"bad label": "x"}), "not a label name: 'bad label'"),
        (_gauge(1, {}, kind="nonsense"), "unknown type 'nonsense'"),
        (MetricFamily("minitrue_g", "gauge", "", [("other", {}, 1.0)]), "sample 'other' does not belong to it"),
        (_gauge(1, {}, "minitrue_ok", "counter"), "counter here, gauge in another process"),
    ],
)
def test_what_would_break_the_exposition_is_left_out_and_said(family, reason):
    text = metrics.render({"first": [_gauge(5, {}, "minitrue_ok")], "second": [family]})
    assert _parsed(text) == {("minitrue_ok", (("worker", "first"),)): 5}
    assert text.decode().splitlines()[-1].endswith(f"of 'second': {reason}")


def test_a_kind_of_metric_that_the_bus_does_not_know_is_a_bug():
    Summary("minitrue_summary", "Summary.", registry=metrics.REGISTRY)
    with pytest.raises(TypeError, match="BUG: metric minitrue_summary is a summary"):
        metrics.snapshot()
