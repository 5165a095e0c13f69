"""Windows: they say of each slice of time what the points in it say, and are as wide as their page can afford."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from tests.workers.storage.segments import Rows, write
from workers.storage import layout, windows
from workers.storage.segment import BLOCK_ROWS
from workers.storage.windows import DAY_NS, HOUR_NS, MINUTE_NS, Windows

SECOND_NS = 10**9
YEAR_2024 = 1_704_067_200 * SECOND_NS
RNG = np.random.default_rng(4)


def every(step_ns: int, count: int = BLOCK_ROWS, begin: int = YEAR_2024 + 7) -> list[tuple[int, float]]:
    """Rows at a steady pace, with values of full mantissas."""
    return [(begin + at * step_ns, float(value)) for at, value in enumerate(RNG.normal(10, 4, count))]


def of(*blocks: Rows) -> Windows:
    """The windows of blocks."""
    times = np.array([time for block in blocks for time, _ in block], np.int64)
    values = np.array([value for block in blocks for _, value in block], np.float64)
    return windows.of_rows(times, values, np.cumsum([len(block) for block in blocks]))


def check(found: Windows, block: int, rows: Rows) -> None:
    """The windows of a block are those of its rows, by the oracle."""
    width = int(found.widths[block])
    oracle = naive.PointSet()
    for time, value in rows:
        oracle.add("s", time, value)
    part = found.part(block, block + 1)
    want = oracle.by_interval("s", width, 0) if width else {}
    assert part.first.tolist() == [0, len(want)]
    assert part.numbers.tolist() == sorted(want)
    for at, number in enumerate(part.numbers.tolist()):
        answer = want[number]
        assert part.counts[at] == answer.count
        assert naive.bits(part.least[at]) == naive.bits(answer.min)
        assert naive.bits(part.most[at]) == naive.bits(answer.max)
        inside = [abs(value) for time, value in rows if time // width == number]
        error = abs(Fraction(float(part.sum_hi[at])) + Fraction(float(part.sum_lo[at])) - answer.sum)
        assert error <= 4 * len(inside) * Fraction(sum(inside)) * Fraction(2) ** -106 + Fraction(2) ** -1074
        assert part.sum_hi[at] + part.sum_lo[at] == part.sum_hi[at]


@pytest.mark.parametrize(
    ("step_ns", "width"),
    [
        (SECOND_NS // 10, MINUTE_NS),
        (MINUTE_NS // 128, MINUTE_NS),
        (MINUTE_NS // 127, HOUR_NS),
        (SECOND_NS, HOUR_NS),
        (10 * SECOND_NS, HOUR_NS),
        (MINUTE_NS, DAY_NS),
        (11 * MINUTE_NS, DAY_NS),
        (12 * MINUTE_NS, 0),
        (DAY_NS, 0),
    ],
)
def test_width_is_the_narrowest_that_holds_enough_points(step_ns: int, width: int) -> None:
    rows = every(step_ns, begin=YEAR_2024)
    found = of(rows)
    assert found.widths.tolist() == [width]
    check(found, 0, rows)


def test_gaps_do_not_count_as_windows() -> None:
    bursts = [row for hour in range(20) for row in every(SECOND_NS // 5, 290, YEAR_2024 + hour * HOUR_NS)]
    found = of(bursts)
    assert found.widths.tolist() == [MINUTE_NS]
    assert len(found.numbers) == 20
    check(found, 0, bursts)


def test_block_within_one_window_has_none() -> None:
    assert of(every(SECOND_NS, 3000, YEAR_2024)).widths.tolist() == [0]
    assert of(every(SECOND_NS, 5000, YEAR_2024)).widths.tolist() == [HOUR_NS]


def test_small_blocks_have_none() -> None:
    found = of(every(SECOND_NS, 255), every(SECOND_NS, 1), every(HOUR_NS, 200))
    assert found.widths.tolist() == [0, 0, 0]
    assert found.first.tolist() == [0, 0, 0, 0]


def test_blocks_beside_one_another_have_windows_of_their_own() -> None:
    blocks = [every(SECOND_NS), every(DAY_NS, 50), every(SECOND_NS // 10), every(SECOND_NS, 4000, -5 * HOUR_NS)]
    found = of(*blocks)
    assert found.widths.tolist() == [HOUR_NS, 0, MINUTE_NS, HOUR_NS]
    for at, rows in enumerate(blocks):
        check(found, at, rows)


@settings(max_examples=200)
@given(
    begin=st.one_of(
        st.sampled_from([-(2**63), 2**63 - 1 - 600 * 10**11, -3 * 10**13, 0]), st.integers(-(10**18), 10**18)
    ),
    steps=st.lists(st.integers(1, 10**11), min_size=1, max_size=600),
    special=st.lists(st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, 0.1]), min_size=1, max_size=5),
)
def test_windows_are_those_of_their_rows(begin: int, steps: list[int], special: list[float]) -> None:
    times = [begin + sum(steps[:at]) // (1 + steps[0] % 50) for at in range(len(steps))]
    times = sorted(set(times))
    rows = [(time, special[at % len(special)] * 0.001) for at, time in enumerate(times)]
    check(of(rows), 0, rows)


def test_windows_survive_packing_by_bits() -> None:
    blocks = [every(SECOND_NS), every(DAY_NS, 50), every(SECOND_NS // 10), every(SECOND_NS, 4000, -5 * HOUR_NS)]
    found = of(*blocks)
    t_min, t_max = np.array([block[0][0] for block in blocks]), np.array([block[-1][0] for block in blocks])
    counts = np.array([len(block) for block in blocks])
    packed = windows.pack(found, t_min, 1 << 20)
    again = windows.unpack(packed, t_min, t_max, counts, "here")
    for got, want in zip(again, found, strict=True):
        assert got.tobytes() == want.tobytes()


def test_windows_that_cost_too_much_become_wider_and_then_none() -> None:
    rows = every(SECOND_NS // 4)
    found = of(rows)
    t_min, t_max, counts = np.array([rows[0][0]]), np.array([rows[-1][0]]), np.array([len(rows)])
    narrow = len(windows.pack(found, t_min, 1 << 30))
    sizes = {}
    for block_bytes in range(1 << 15, 0, -64):
        packed = windows.pack(found, t_min, block_bytes)
        assert len(packed) <= 0.05 * block_bytes
        width = int(windows.unpack(packed, t_min, t_max, counts, "here").widths[0])
        sizes.setdefault(width, len(packed))
    assert found.widths.tolist() == [MINUTE_NS]
    assert list(sizes) == [MINUTE_NS, 0]  # within the hour there is but one window
    assert sizes[MINUTE_NS] == narrow


def test_wider_windows_are_those_of_the_rows_too() -> None:
    blocks = [every(SECOND_NS // 4), every(SECOND_NS // 4, begin=YEAR_2024 - 10 * MINUTE_NS), every(3 * SECOND_NS)]
    late = every(HOUR_NS // 130, 8000, -3 * DAY_NS + 5)
    blocks.append(late)
    found = of(*blocks)
    assert found.widths.tolist() == [MINUTE_NS, MINUTE_NS, HOUR_NS, HOUR_NS]
    t_min, t_max = np.array([block[0][0] for block in blocks]), np.array([block[-1][0] for block in blocks])
    counts = np.array([len(block) for block in blocks])
    limit = int((len(windows.pack(found, t_min, 1 << 30)) - 1) / windows.SHARE)
    wider = windows.unpack(windows.pack(found, t_min, limit), t_min, t_max, counts, "here")
    assert wider.widths.tolist() == [0, HOUR_NS, 0, DAY_NS]
    for at, rows in enumerate(blocks):
        check(wider, at, rows)


def test_windows_of_a_segment_stay_within_their_share(tmp_path: Path) -> None:
    dense = {f"{number}".encode(): every(SECOND_NS // 10, 20_000) for number in range(3)}
    same = {b"same": [(time, 1.0) for time, _ in every(SECOND_NS // 10, 8192)]}
    found = write(tmp_path / "s", dense | same)
    block_bytes = int(sum(found.index(0, found.blocks)[at].sum() for at in (5, 6)))
    got = found.windows(0, found.blocks)
    assert len(got.numbers)
    for ordinal, each in enumerate(found.keys()):
        rows = (dense | same)[each]
        for at, block in enumerate(range(*found.block_range(ordinal))):
            check(got, block, rows[at * BLOCK_ROWS : (at + 1) * BLOCK_ROWS])
    alone = write(tmp_path / "alone", same)
    assert len(alone.windows(0, 1).numbers) == 0, "a block of a few bytes cannot afford windows"
    assert found.bytes < 1.05 * block_bytes + 1200


def test_windows_of_many_pages_are_found_by_block(tmp_path: Path) -> None:
    rows = every(SECOND_NS // 5, 600 * 1100)
    found = write(tmp_path / "s", {b"a": rows}, block_rows=600, policy="gorilla")
    assert found.blocks == 1100
    for block in (0, 1023, 1024, 1099):
        check(found.windows(block, block + 1), 0, rows[block * 600 : block * 600 + 600])
    both = found.windows(1000, 1100)
    assert both.first[-1] == len(both.numbers) > 0
    check(both, 24, rows[1024 * 600 : 1025 * 600])


def test_windows_that_lie_outside_of_their_block_are_damage() -> None:
    rows = every(SECOND_NS)
    packed = windows.pack(of(rows), np.array([rows[0][0]]), 1 << 20)
    t_min, counts = np.array([rows[0][0]]), np.array([len(rows)])
    for beyond in (-HOUR_NS, HOUR_NS, 1 << 60):
        with pytest.raises(layout.DamagedError, match="windows outside of their blocks"):
            windows.unpack(packed, t_min, np.array([rows[-1][0] + beyond]), counts, "here")


def test_bytes_that_are_no_windows_are_damage() -> None:
    rows = every(SECOND_NS)
    found = of(rows)
    t_min, t_max, counts = np.array([rows[0][0]]), np.array([rows[-1][0]]), np.array([len(rows)])
    packed = windows.pack(found, t_min, 1 << 20)
    cases = [(packed[:-1], counts), (packed + b"\0", counts), (packed, counts + 1), (packed, counts - 9000)]
    for data, block_counts in cases:
        with pytest.raises(layout.DamagedError, match=r"^here: "):
            windows.unpack(data, t_min, t_max, block_counts, "here")
    for at in range(len(packed)):
        flipped = bytearray(packed)
        flipped[at] ^= 1 << at % 8
        try:
            windows.unpack(bytes(flipped), t_min, t_max, counts, "here")
        except layout.DamagedError:
            continue
