"""Constant, decimal, pco and grid blocks: literal bytes, the naive oracle, sizes, and bytes that no encoder wrote."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import codec
from common.codec import CodecId
from common.errors import CodecError
from tests import naive_blocks as naive

S = 1_000_000_000
MS = 1_000_000
START = 1_700_000_000 * S
RANDOM = np.random.default_rng(6)
WALK = np.round(20 + np.cumsum(RANDOM.normal(0, 0.05, 8192)), 2)
EVERY_10_S = START + np.arange(8192) * 10 * S
JITTER = RANDOM.integers(-50, 51, 8192) * MS

READERS: dict[tuple[str, CodecId], Callable[[bytes, int], list[int]]] = {
    ("times", CodecId.CONSTANT): naive.constant_times,
    ("times", CodecId.PCO): naive.pco_times,
    ("times", CodecId.GRID): naive.grid_times,
    ("values", CodecId.CONSTANT): naive.constant_values,
    ("values", CodecId.DECIMAL): naive.decimal_values,
    ("values", CodecId.PCO): naive.pco_values,
}


def times(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def check(column: np.ndarray, codec_id: CodecId) -> bytes:
    """The block of a column, after reading it back with the program and with the oracle."""
    if column.dtype == np.int64:
        data = codec.encode_times(column, codec_id)
        assert np.array_equal(codec.decode_times(data, len(column), codec_id), column)
        assert READERS["times", codec_id](data, len(column)) == column.tolist()
        return data
    data = codec.encode_values(column, codec_id)
    assert codec.decode_values(data, len(column), codec_id).tobytes() == column.tobytes()
    assert READERS["values", codec_id](data, len(column)) == column.view(np.uint64).tolist()
    return data


# Literal bytes


@pytest.mark.parametrize(
    ("column", "want"),
    [
        ([0], "03 00"),
        ([1], "00 02"),
        ([-1000], "01 01"),
        ([2 * S, 2 * S], "03 04 00"),
        ([1000 * S, 1010 * S, 1020 * S], "03 d00f 14"),
        ([0, -MS, -2 * MS], "02 00 01"),
        ([START, START + 1500 * MS], "02 80a0abfef962 b817"),
        ([2**63 - 1], "00 feffffffffffffffff01"),
        ([-(2**63)], "00 ffffffffffffffffff01"),
    ],
)
def test_constant_times_have_these_bytes(column: list[int], want: str) -> None:
    assert check(times(*column), CodecId.CONSTANT).hex() == want.replace(" ", "")


def test_constant_values_have_these_bytes() -> None:
    assert check(np.array([1.5, 1.5]), CodecId.CONSTANT).hex() == "000000000000f83f"


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        ([21.53], "02 00 d221"),
        ([21.5, 21.5, 21.5], "01 00 ae03 00"),
        ([0.0, 1.0, 2.0], "00 00 00 02"),
        ([-0.5], "01 00 09"),
        ([2.5, -0.0], "41 0b 01 ffffffffffffffffff01 00 32 31"),  # 0 and the distance -2^63 between 0.0 and -0.0
        ([float(np.float32(0.1))], "21 00 02"),
        ([5.0900001525878915], "62 02 0002 00 fa07"),  # one unit in the last place above float32 5.09
    ],
)
def test_decimals_have_these_bytes(numbers: list[float], want: str) -> None:
    assert check(np.array(numbers), CodecId.DECIMAL).hex() == want.replace(" ", "")


@pytest.mark.parametrize(
    ("column_s", "want"),
    [
        # ten seconds, one time missing: first 0, step 10, section of 2 bytes: 4 items lie before skip 1
        ([0, 10, 20, 30, 50, 60, 70, 80], "0b 00 0a 02 0402 00 00 00"),
    ],
)
def test_grids_have_these_bytes(column_s: list[int], want: str) -> None:
    assert check(times(*column_s) * S, CodecId.GRID).hex() == want.replace(" ", "")


def test_a_packed_column_of_integers_has_these_bytes() -> None:
    data = check(times(3, 1, 4, 1, 5, 9, 2, 6), CodecId.PCO)
    assert data.hex() == "00 08 02 04 20304815".replace(" ", "")


@pytest.mark.parametrize("codec_id", [CodecId.DECIMAL, CodecId.PCO])
def test_a_chunk_may_name_the_version_it_is_written_in(codec_id: CodecId) -> None:
    data = codec.encode_values(WALK[:300], codec_id)
    head = {CodecId.DECIMAL: 1, CodecId.PCO: 0}[codec_id]  # which byte is the head of the chunk's column or block
    begin = {CodecId.DECIMAL: 4, CodecId.PCO: 1}[codec_id]  # behind head and base
    versioned = data[:head] + bytes((data[head] | 0x80,)) + data[head + 1 : begin] + b"\x04\x01" + data[begin:]
    assert codec.decode_values(versioned, 300, codec_id).tobytes() == WALK[:300].tobytes()
    assert READERS["values", codec_id](versioned, 300) == WALK[:300].view(np.uint64).tolist()


# Against the oracle


@st.composite
def decimals(draw: st.DrawFn) -> np.ndarray:
    """Numbers of some digits, some of them a little beside, some of them anything."""
    digits, span = draw(st.integers(0, 12)), draw(st.sampled_from([9, 10**4, 10**9, 2**53]))
    values = np.array(draw(st.lists(st.integers(-span, span), min_size=1, max_size=150))) / 10.0**digits
    if draw(st.booleans()):
        values = values.astype(np.float32).astype(np.float64)
    words = values.view(np.int64)
    steps = st.sampled_from([1, -1, 63, -63, 64, -64, 2**40])
    for place, step in draw(st.lists(st.tuples(st.integers(0, 149), steps), max_size=draw(st.integers(0, 60)))):
        words[place % len(words)] += step
    for place, value in draw(st.lists(st.tuples(st.integers(0, 149), st.floats()), max_size=5)):
        values[place % len(values)] = value
    return values


@given(decimals())
@settings(max_examples=400)
def test_decimal_blocks_read_as_the_oracle_reads_them(values: np.ndarray) -> None:
    check(values, CodecId.DECIMAL)


@given(decimals(), st.sampled_from([np.nan, -np.inf, 1e300]), st.integers(1, 30))
def test_leading_values_that_are_no_decimals_come_back(values: np.ndarray, odd: float, count: int) -> None:
    check(np.append(np.full(count, odd), values), CodecId.DECIMAL)


@st.composite
def ticks(draw: st.DrawFn) -> np.ndarray:
    """Times near a grid, in some unit, with gaps."""
    count, unit = draw(st.integers(8, 150)), draw(st.sampled_from([1, 1000, MS, S]))
    step, jitter = draw(st.integers(1, 10**5)), draw(st.integers(0, 10**4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    index = np.cumsum(1 + np.where(random.random(count) < draw(st.floats(0, 0.3)), random.integers(0, 99, count), 0))
    exact = index * (step + draw(st.sampled_from([0.0, 0.25, 1 / 3])))
    return (draw(st.integers(-(10**9), 10**9)) + exact.astype(np.int64) + random.integers(0, jitter + 1, count)) * unit


@given(ticks())
@settings(max_examples=300)
def test_grid_blocks_read_as_the_oracle_reads_them(column: np.ndarray) -> None:
    check(column, CodecId.PCO)
    try:
        check(column, CodecId.GRID)
    except CodecError as error:
        assert "without a regular grid" in str(error)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9), min_size=1, max_size=40), st.integers(1, 50))
@example([-(2**63), 2**63 - 1], 1)
@example([0, 2**63 - 1, -2], 1)  # equal differences modulo 2^64
@example([2**63 - 1, -(2**63)] * 9, 1)
def test_columns_of_any_integers_read_as_the_oracle_reads_them(numbers: list[int], repeats: int) -> None:
    check(np.repeat(times(*numbers), repeats), CodecId.PCO)


@given(st.integers(-(2**62), 2**62), st.integers(-(2**50), 2**50), st.integers(1, 99), st.sampled_from([1, 1000, MS]))
def test_constant_times_read_as_the_oracle_reads_them(first: int, delta: int, count: int, unit: int) -> None:
    check((first // unit + np.arange(count) * (delta // unit)) * unit, CodecId.CONSTANT)


@given(st.lists(st.floats(), min_size=1, max_size=60), st.booleans())
def test_pco_values_read_as_the_oracle_reads_them(numbers: list[float], single: bool) -> None:
    values = np.array(numbers)
    with np.errstate(over="ignore"):
        check(values.astype(np.float32).astype(np.float64) if single else values, CodecId.PCO)


def test_a_float32_takes_the_room_of_one() -> None:
    values = RANDOM.normal(20, 5, 8192).astype(np.float32).astype(np.float64)
    assert len(check(values, CodecId.PCO)) * 8 / 8192 < 24


# What a codec cannot hold


@pytest.mark.parametrize("column", [[0, 1, 3], [0, 2**63 - 1, -2], [-(2**63), 2**63 - 1]])
def test_times_at_different_distances_are_no_constant_block(column: list[int]) -> None:
    with pytest.raises(CodecError, match=f"{len(column)} timestamps at different distances, want a constant one"):
        codec.encode_times(times(*column), CodecId.CONSTANT)


@pytest.mark.parametrize("numbers", [[0.0, -0.0], [1.0, 2.0, 1.0]])
def test_values_that_differ_are_no_constant_block(numbers: list[float]) -> None:
    with pytest.raises(CodecError, match=f"{len(numbers)} values that differ, want a constant"):
        codec.encode_values(np.array(numbers), CodecId.CONSTANT)


@pytest.mark.parametrize("column", [range(7), [5] * 20, [0, 9, 1, 7, 3, 8, 2, 9, 4, 0], [-(2**63), 2**63 - 1] * 8])
def test_times_without_a_grid_are_no_grid_block(column: list[int]) -> None:
    with pytest.raises(CodecError, match=f"{len(column)} timestamps without a regular grid, want 8 or more on one"):
        codec.encode_times(times(*column), CodecId.GRID)


# Sizes


def bits(packed: tuple[CodecId, bytes], column: np.ndarray) -> float:
    return len(packed[1]) * 8 / len(column)


def test_a_walk_of_two_decimals_takes_little_more_than_its_entropy() -> None:
    steps = np.diff(np.rint(WALK * 100).astype(np.int64), prepend=2000)
    share = np.unique(steps, return_counts=True)[1] / len(steps)
    assert bits(codec.pack_values(WALK, "auto"), WALK) < 1.04 * -(share * np.log2(share)).sum()


def test_one_odd_value_does_not_spoil_a_block() -> None:
    odd = WALK.copy()
    odd[[17, 4000]] = np.nan, 1e300
    assert len(codec.pack_values(odd, "auto")[1]) < len(codec.pack_values(WALK, "auto")[1]) + 50


def test_a_common_step_costs_nothing() -> None:
    fives = np.rint(WALK * 100) * 5
    assert len(codec.pack_values(fives, "auto")[1]) <= len(codec.pack_values(WALK, "auto")[1]) + 4


def test_decimals_that_went_through_float32_or_a_careless_parser_stay_small() -> None:
    single = WALK.astype(np.float32).astype(np.float64)
    assert len(codec.pack_values(single, "auto")[1]) == len(codec.pack_values(WALK, "auto")[1])
    careless = (single.view(np.int64) + RANDOM.integers(-1, 2, 8192)).view(np.float64)
    assert bits(codec.pack_values(careless, "auto"), WALK) < bits(codec.pack_values(WALK, "auto"), WALK) + 1.7


def test_small_blocks_are_small() -> None:
    walk, regular = WALK[:100], EVERY_10_S[:100]
    assert len(codec.pack_values(walk, "auto")[1]) + len(codec.pack_times(regular, "auto")[1]) < 90
    assert len(codec.pack_values(walk[:1], "auto")[1]) + len(codec.pack_times(regular[:1], "auto")[1]) <= 10


@pytest.mark.parametrize("drift_ms", [0.0, 0.3])
def test_jitter_about_a_regular_clock_costs_its_own_entropy(drift_ms: float) -> None:
    column = EVERY_10_S + (np.arange(8192) * drift_ms).astype(np.int64) * MS + JITTER
    assert bits(codec.pack_times(column, "auto"), column) < np.log2(101) + 0.1


def test_a_gap_costs_a_few_bytes() -> None:
    whole = EVERY_10_S + JITTER
    gap = np.append(whole[:3000], whole[3000:] + 3600 * S)
    assert len(codec.pack_times(gap, "auto")[1]) < len(codec.pack_times(whole, "auto")[1]) + 20


def test_regular_times_with_losses_take_less_than_a_bit() -> None:
    assert bits(codec.pack_times(np.delete(EVERY_10_S, RANDOM.integers(0, 8192, 160)), "auto"), EVERY_10_S) < 0.25


# Bytes that no encoder wrote


def samples() -> dict[str, tuple[str, CodecId, bytes, int]]:
    walk, jitter = WALK[:300], (EVERY_10_S + JITTER)[:300]
    odd = walk.copy()
    odd[[3, 70]] = np.nan, 1 / 3
    careless = (walk.view(np.int64) + RANDOM.integers(-1, 2, 300)).view(np.float64)
    columns = {
        "constant times": (EVERY_10_S[:300], CodecId.CONSTANT),
        "constant values": (np.full(300, 1.5), CodecId.CONSTANT),
        "decimal": (walk, CodecId.DECIMAL),
        "decimal, sparse": (odd, CodecId.DECIMAL),
        "decimal, dense": (careless, CodecId.DECIMAL),
        "decimal, linear": (np.arange(300.0), CodecId.DECIMAL),
        "pco times": (np.cumsum(RANDOM.integers(1, 5000, 300)), CodecId.PCO),
        "pco values": (RANDOM.normal(0, 1, 300), CodecId.PCO),
        "pco values, single": (RANDOM.normal(0, 1, 300).astype(np.float32).astype(np.float64), CodecId.PCO),
        "grid": (jitter, CodecId.GRID),
        "grid, sparse": (np.delete(jitter, [9, 99]), CodecId.GRID),
        "grid, dense": (np.delete(EVERY_10_S[:360], np.arange(5, 365, 6)), CodecId.GRID),
        "grid, drift": (EVERY_10_S[:300] + np.arange(300) // 3 * MS, CodecId.GRID),
    }
    return {
        name: ("times" if column.dtype == np.int64 else "values", codec_id, check(column, codec_id), len(column))
        for name, (column, codec_id) in columns.items()
    }


SAMPLES = samples()
every_sample = pytest.mark.parametrize("name", list(SAMPLES))
DECODERS = {"times": codec.decode_times, "values": codec.decode_values}


def test_the_samples_are_what_their_names_say() -> None:
    heads = {name: sample[2][0] for name, sample in SAMPLES.items()}
    assert [heads["decimal, sparse"] >> 6, heads["decimal, dense"] >> 6, heads["decimal, linear"]] == [1, 2, 0]
    assert heads["pco values, single"] & 1 and not heads["pco values"] & 1
    assert [heads["grid, sparse"] >> 2, heads["grid, dense"] >> 2, heads["grid, drift"] >> 2] == [2, 4, 1]


@every_sample
def test_a_block_cut_short_at_any_byte_is_refused(name: str) -> None:
    kind, codec_id, data, count = SAMPLES[name]
    for size in range(len(data)):
        with pytest.raises(CodecError):
            DECODERS[kind](data[:size], count, codec_id)


@every_sample
def test_a_block_with_bytes_behind_it_is_refused(name: str) -> None:
    kind, codec_id, data, count = SAMPLES[name]
    with pytest.raises(CodecError):
        DECODERS[kind](data + b"\0", count, codec_id)


@every_sample
def test_flipped_bits_give_an_error_or_what_the_oracle_reads(name: str) -> None:
    kind, codec_id, data, count = SAMPLES[name]
    chance = random.Random(name)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(min(len(data), chance.choice([6, 30, 10_000])))] ^= 1 << chance.randrange(8)
        try:
            decoded = DECODERS[kind](bytes(damaged), count, codec_id)
        except CodecError:
            continue
        read = READERS[kind, codec_id](bytes(damaged), count)
        assert decoded.view(np.int64 if kind == "times" else np.uint64).tolist() == read


@every_sample
@given(data=st.binary(max_size=60), count=st.integers(1, 400))
def test_any_bytes_are_decoded_or_refused(name: str, data: bytes, count: int) -> None:
    kind, codec_id, block, _ = SAMPLES[name]
    for attempt in (data, block[:1] + data, block[:6] + data):
        try:
            decoded = DECODERS[kind](attempt, count, codec_id)
        except CodecError:
            continue
        assert len(decoded) == count


@pytest.mark.parametrize(
    ("kind", "codec_id", "data", "count", "want"),
    [
        ("times", CodecId.CONSTANT, "04 00", 1, "constant timestamps: got unit 4, want 0 to 3"),
        ("times", CodecId.CONSTANT, "", 1, "constant timestamps: got unit missing, want 0 to 3"),
        ("times", CodecId.CONSTANT, "03 00", 2, "varint that ends at byte 2 of 2: want a number of at most 64 bits"),
        ("times", CodecId.CONSTANT, "03 00 0202", 2, "constant timestamps: got 4 bytes, want 3"),
        ("times", CodecId.CONSTANT, "03 00 feffffffffffffffff01", 2, "want them inside int64"),
        ("times", CodecId.CONSTANT, "00 ffffffffffffffffffff01", 1, "want a number of at most 64 bits"),
        ("values", CodecId.CONSTANT, "00 00", 1, "constant values: got 2 bytes, want 8"),
        ("values", CodecId.DECIMAL, "17 00 00", 1, "decimal values: got head 17, want digits up to 22"),
        ("values", CodecId.DECIMAL, "00 10 00", 1, "decimal values: got head 10 of a column, want a form and flags"),
        ("values", CodecId.DECIMAL, "00 08 00", 1, "decimal values: 2 bytes, want a packed column of 1 items"),
        ("values", CodecId.DECIMAL, "41 02 0502 00 00", 1, "places in 2 bytes end behind them, or behind item 1"),
        (
            "values",
            CodecId.DECIMAL,
            "00 00 00 00 00",
            2,
            "decimal values: 2 items end at byte 4 of 5, want all of them",
        ),
        ("values", CodecId.PCO, "02 00", 1, "pco values: got head 02, want flags 81"),
        ("values", CodecId.PCO, "00 ff", 1, "pco values: pco error: .*, in 1 bytes for 1 numbers"),
        ("values", CodecId.PCO, "80 6300", 1, "pco values: pco error: "),  # pcodec's format 99
        ("times", CodecId.PCO, "03 00 feffffffffffffffff01", 1, "pco timestamps: got 1 in units of 1000000000 ns"),
        ("times", CodecId.GRID, "20 00 00", 1, "grid timestamps: got head 20, want flags 1f"),
    ],
)
def test_malformed_blocks_are_refused_with_what_was_found(
    kind: str, codec_id: CodecId, data: str, count: int, want: str
) -> None:
    with pytest.raises(CodecError, match=want):
        DECODERS[kind](bytes.fromhex(data), count, codec_id)
