"""Findings of the benchmarks: ratios and verdicts."""

import pytest

from tools.bench.findings import Bar, Finding, number


@pytest.mark.parametrize(
    ("ours", "peers", "bar", "met"),
    [
        (0.5, {"A": 1.0}, Bar("ratio", 0.5), True),
        (0.6, {"A": 1.0, "B": 100.0}, Bar("ratio", 0.5), False),  # the first peer counts
        (0.5, {}, Bar("ratio", 0.5), None),
        (1.5, {"A": 1.0}, Bar("times", 1.5), True),
        (1.4, {"A": 1.0}, Bar("times", 1.5), False),
        (1.4, {}, Bar("times", 1.5), None),
        (3.0, {"A": 1.0}, Bar("most", 3), True),
        (3.1, {}, Bar("most", 3), False),
        (99.0, {}, Bar("least", 100), False),
        (100.0, {}, Bar("least", 100), True),
        (1.0, {"A": 1.0}, None, None),
    ],
)
def test_a_figure_is_held_against_its_bar(
    ours: float, peers: dict[str, float], bar: Bar | None, met: bool | None
) -> None:
    assert Finding("data", "figure", "s", ours, peers, bar).met is met


def test_a_line_has_ours_each_peer_the_ratio_and_the_verdict() -> None:
    line = Finding("walk", "bytes per point", "B", 0.6, {"Victoria": 0.5, "Influx": 12.5}, Bar("ratio", 1)).line()
    assert " ".join(line.split()) == (
        "walk bytes per point 0.6 B Victoria 0.5 Influx 12.5, ratio 1.20 [1 x at most: MISSED]"
    )


def test_a_record_is_made_of_what_json_knows() -> None:
    record = Finding("walk", "size", "B", 1.0, {"A": 2.0}, Bar("ratio", 1)).record()
    assert record["peers"] == {"A": 2.0}
    assert record["bar"] == {"rule": "ratio", "limit": 1}
    assert (record["ratio"], record["met"]) == (0.5, True)


@pytest.mark.parametrize(("figure", "text"), [(12345.6, "12,346"), (0.123456, "0.1235"), (0.0, "0"), (100, "100")])
def test_figures_have_the_digits_that_say_something(figure: float, text: str) -> None:
    assert number(figure) == text
