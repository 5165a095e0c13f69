"""Metrics of this process, and the Prometheus text in which all processes are shown together.

Owns the process's registry. Metrics are made with prometheus_client on `REGISTRY`, or, where a lock per event
costs too much, counted in plain ints and read when asked (`gauge_from`, `counters_from`). A process hands out
`snapshot()` over the bus; the query worker joins the snapshots of all with `render`.
Any thread may call anything here; the callables given are called by the thread that takes the snapshot.
"""

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from common.protocol import MetricFamily

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Sample name endings by type; a sample of any other name would make the exposition invalid.
_ENDINGS: Final = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

Reading = float | Mapping[tuple[str, ...], float]
Sample = tuple[str, dict[str, str], float]


class _Readers(Collector):
    """The metrics that are read only when asked: name -> reader. Guarded by its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[str, Callable[[], Iterable[Metric]]] = {}

    def put(self, name: str, reader: Callable[[], Iterable[Metric]]) -> None:
        with self._lock:
            self._readers[name] = reader

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            readers = list(self._readers.values())
        for reader in readers:
            yield from reader()


REGISTRY: Final = CollectorRegistry(auto_describe=False)
_readers: Final = _Readers()
REGISTRY.register(_readers)
ProcessCollector(namespace="minitrue", registry=REGISTRY)  # CPU seconds, resident bytes, open files, start time


def gauge_from(name: str, help: str, read: Callable[[], Reading], labels: Sequence[str] = ()) -> None:
    """Export what `read()` returns whenever the metrics are asked for.

    read: returns a number, or with `labels` a map from the tuple of their values to a number.
    A second call with the same name replaces the first.
    """

    def family() -> Iterable[Metric]:
        metric = GaugeMetricFamily(name, help, labels=labels)
        for values, number in _cells(read()):
            metric.add_metric(values, number)
        yield metric

    _readers.put(name, family)


def counter_from(name: str, help: str, read: Callable[[], Reading], labels: Sequence[str] = ()) -> None:
    """As gauge_from, for a number that only grows. "_total" is added to the name where it is missing."""

    def family() -> Iterable[Metric]:
        metric = CounterMetricFamily(name, help, labels=labels)
        for values, number in _cells(read()):
            metric.add_metric(values, number)
        yield metric

    _readers.put(name, family)


def counters_from(prefix: str, help: Mapping[str, str], read: Callable[[], Mapping[str, int]]) -> None:
    """Export several counters that are kept in one map, such as {"messages": 12, "bytes": 3400}.

    help: the text for each key; a key becomes the counter <prefix>_<key>_total. A key that `read()` leaves out
    counts 0.
    """

    def families() -> Iterable[Metric]:
        counts = read()
        for key, text in help.items():
            yield CounterMetricFamily(f"{prefix}_{key}", text, value=counts.get(key, 0))

    _readers.put(prefix, families)


def _cells(reading: Reading) -> list[tuple[tuple[str, ...], float]]:
    return list(reading.items()) if isinstance(reading, Mapping) else [((), reading)]


def snapshot() -> list[MetricFamily]:
    """Every metric of this process as it is now."""
    return [_family(metric) for metric in REGISTRY.collect()]


def _family(metric: Metric) -> MetricFamily:
    if metric.type not in _ENDINGS:
        raise TypeError(f"BUG: metric {metric.name} is a {metric.type}, want one of {', '.join(_ENDINGS)}")
    name = metric.name + "_total" if metric.type == "counter" else metric.name
    samples = [
        (sample.name, dict(sample.labels), float(sample.value))
        for sample in metric.samples
        if not sample.name.endswith("_created")
    ]
    return MetricFamily(name, metric.type, metric.documentation, samples)


def render(processes: Mapping[str, Sequence[MetricFamily]]) -> bytes:
    """The Prometheus text exposition (0.0.4) of several processes, each sample labelled worker="...".

    A sample's own label "worker" becomes "exported_worker". What would make the text invalid (a name that
    Prometheus does not allow, one name with two types) is left out, and a comment at the end says so.
    """
    families: dict[str, tuple[MetricFamily, list[str]]] = {}
    left_out: list[str] = []
    for worker, offered in processes.items():
        for family in offered:
            first, lines = families.get(family.name, (family, []))
            fault = _fault(family) or _conflict(family, first)
            if fault:
                left_out.append(f"# left out {family.name!a} of {worker!a}: {fault}")
                continue
            families[family.name] = (first, lines)
            lines += [_line(sample, worker) for sample in family.samples]
    text = [line for first, lines in families.values() for line in [*_heading(first), *lines]]
    return "".join(line + "\n" for line in text + left_out).encode("utf-8", "replace")


def _fault(family: MetricFamily) -> str | None:
    """Why a family cannot be shown, or None."""
    if family.type not in _ENDINGS:
        return f"unknown type {family.type!a}"
    if not _METRIC_NAME.fullmatch(family.name):
        return "not a metric name"
    allowed = {family.name + ending for ending in _ENDINGS[family.type]}
    for name, labels, _ in family.samples:
        if name not in allowed:
            return f"sample {name!a} does not belong to it"
        for label in labels:
            if not _LABEL_NAME.fullmatch(label):
                return f"not a label name: {label!a}"
    return None


def _conflict(family: MetricFamily, first: MetricFamily) -> str | None:
    return None if family.type == first.type else f"{family.type} here, {first.type} in another process"


def _heading(family: MetricFamily) -> list[str]:
    help_text = family.help.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", " ")
    return [f"# HELP {family.name} {help_text}", f"# TYPE {family.name} {family.type}"]


def _line(sample: Sample, worker: str) -> str:
    name, labels, value = sample
    shown = {"worker": worker} | {
        ("exported_worker" if label == "worker" else label): text for label, text in labels.items()
    }
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in shown.items())
    return f"{name}{{{inside}}} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
