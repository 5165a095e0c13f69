"""Gorilla against literal bytes, against the naive oracle, and against bytes that no encoder wrote."""

import csv
import gzip
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import codec
from common.codec import CodecId, gorilla
from common.errors import CodecError
from tests import naive_gorilla as naive

SHARED = Path(os.environ.get("MINITRUE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
S = 1_000_000_000


def decode_values(data: bytes, count: int) -> np.ndarray:
    return codec.decode_values(data, count, CodecId.GORILLA)


def decode_times(data: bytes, count: int) -> np.ndarray:
    return codec.decode_times(data, count, CodecId.GORILLA)


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def times(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@st.composite
def bit_walks(draw: st.DrawFn) -> list[int]:
    """Float bit patterns that differ from their predecessor in a stretch of bits, or not at all."""
    word = draw(st.integers(0, 2**64 - 1))
    words = [word]
    for width, place, repeats in draw(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 63), st.integers(1, 90)))):
        word ^= (draw(st.integers(0, 2**width - 1)) << place) % 2**64
        words += [word] * repeats
    return words


edges = st.sampled_from(
    [limit + step for _, _, low, high in naive.TIME_CODES for limit in (low, high) for step in (-1, 0, 1)]
)


@st.composite
def time_walks(draw: st.DrawFn) -> list[int]:
    """Times in some unit whose deltas of deltas lie at the edges of the codes and between."""
    unit = draw(st.sampled_from(naive.UNITS_NS))
    time, delta, column = draw(st.integers(-(2**63), 2**63 - 1)), 0, []
    for second, repeats in draw(st.lists(st.tuples(edges | st.integers(-3000, 3000), st.integers(1, 90)), min_size=1)):
        delta += second
        for _ in range(repeats):
            time = naive.signed((time + delta * unit) % 2**64)
            column.append(time)
    return [time - time % unit if time - time % unit >= -(2**63) else time for time in column]


# Values


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        ([0.0], "0000000000000000"),
        ([1.5], "3ff8000000000000"),
        ([1.5, 1.5, 1.75], "3ff8000000000000 6d06"),
        ([21.5, 21.5, 21.5, 21.5, 21.5, 21.5, 21.5, 21.5, 21.5], "4035800000000000 00"),
        # the xor is the first and the last bit: 11 00000 000000, a window of all 64
        ([1.0, -np.nextafter(1.0, 2.0)], "3ff0000000000000 c0040000000000000008"),
    ],
)
def test_values_have_these_bytes(numbers: list[float], want: str) -> None:
    data = gorilla.encode_values(values(*numbers))
    assert data.hex() == want.replace(" ", "")
    assert decode_values(data, len(numbers)).tobytes() == values(*numbers).tobytes()


@given(bit_walks())
@example([0, 2**64 - 1])  # window of 64 bits
@example([0, 1, 0])  # 63 leading zeros, capped at 31
@settings(max_examples=300)
def test_value_blocks_equal_the_oracles(words: list[int]) -> None:
    column = np.array(words, np.uint64).view(np.float64)
    data = gorilla.encode_values(column)
    assert data == naive.encode_values(words)
    assert naive.decode_values(data, len(words)) == words
    assert decode_values(data, len(words)).tobytes() == column.tobytes()


@given(bit_walks())
def test_value_blocks_by_the_papers_window_rule_are_read_too(words: list[int]) -> None:
    data = naive.encode_values(words, paper=True)
    assert decode_values(data, len(words)).view(np.uint64).tolist() == words


def test_a_window_that_wastes_more_than_it_saves_is_renewed() -> None:
    wide, narrow = 2**40, 2**20
    words = [0, wide + narrow - 1, wide, wide ^ narrow, wide, wide ^ narrow]
    data, paper = gorilla.encode_values(np.array(words, np.uint64).view(np.float64)), naive.encode_values(words, True)
    assert len(data) < len(paper)


# Timestamps


@pytest.mark.parametrize(
    ("column", "want"),
    [
        ([0], "03 0000000000000000"),
        ([1], "00 0000000000000001"),
        ([-1000], "01 ffffffffffffffff"),
        ([1000 * S, 1060 * S, 1120 * S, 1181 * S], "03 00000000000003e8 9e2020"),
        ([0, 1_000_000], "02 0000000000000000 8080"),
        ([0, 64 * S], "03 0000000000000000 a000"),  # 10 1000000
        ([0, -63 * S], "03 0000000000000000 a080"),  # 10 1000001
        ([0, 65 * S], "03 0000000000000000 c410"),  # 110 001000001
        ([0, 256 * S], "03 0000000000000000 d000"),
        ([0, 257 * S], "03 0000000000000000 e101"),  # 1110 000100000001
        ([0, 2049 * S], "03 0000000000000000 f000004008"),  # 11110 and 32 bits
        ([0, -(2**31) * S], "03 0000000000000000 f400000000"),
        ([0, 2**31 * S], "03 0000000000000000 f80000000400000000"),  # 11111 and 64 bits
        ([-(2**63), 2**63 - 1], "00 8000000000000000 bf80"),  # the difference is -1 modulo 2^64: 10 1111111
    ],
)
def test_times_have_these_bytes(column: list[int], want: str) -> None:
    want_data = bytes.fromhex(want)
    data = gorilla.encode_times(times(*column))
    assert naive.encode_times(column).hex() == data.hex()
    assert data.hex() == want_data.hex()
    assert decode_times(data, len(column)).tolist() == column


@given(time_walks())
@settings(max_examples=300)
def test_time_blocks_equal_the_oracles(column: list[int]) -> None:
    data = gorilla.encode_times(times(*column))
    assert data == naive.encode_times(column)
    assert naive.decode_times(data, len(column)) == column
    assert decode_times(data, len(column)).tolist() == column


@pytest.mark.parametrize(("odd", "unit"), [(S, 3), (S + 1_000_000, 2), (S + 1_000, 1), (S + 1, 0)])
@pytest.mark.parametrize("place", [0, 50, 99])
def test_the_unit_divides_every_time_of_the_block(odd: int, unit: int, place: int) -> None:
    column = np.arange(100, dtype=np.int64) * 60 * S
    column[place] = odd
    data = gorilla.encode_times(column)
    assert data[0] == unit
    assert np.array_equal(decode_times(data, 100), column)


def test_a_regular_series_takes_a_bit_per_time() -> None:
    data = gorilla.encode_times(1_700_000_000 * S + np.arange(8192, dtype=np.int64) * 10 * S)
    assert len(data) == 1 + (64 + 9 + 8190 + 7) // 8


# Bytes that no encoder wrote


def blocks() -> dict[str, tuple[bytes, int]]:
    random = np.random.default_rng(5)
    walk = np.round(20 + np.cumsum(random.normal(0, 0.3, 300)), 2)
    walk[100:200] = walk[100]
    jitter = np.cumsum(random.integers(1, 5000, 300)).astype(np.int64)
    return {"values": (gorilla.encode_values(walk), 300), "times": (gorilla.encode_times(jitter), 300)}


DECODERS = {"values": decode_values, "times": decode_times}
both_kinds = pytest.mark.parametrize("kind", list(DECODERS))


@both_kinds
def test_a_block_cut_short_at_any_byte_is_refused(kind: str) -> None:
    data, count = blocks()[kind]
    for size in range(len(data)):
        with pytest.raises(CodecError):
            DECODERS[kind](data[:size], count)


@both_kinds
def test_a_block_with_bytes_behind_it_is_refused(kind: str) -> None:
    data, count = blocks()[kind]
    with pytest.raises(CodecError, match=r"300 items end at bit .*, want zeros to the end of that byte"):
        DECODERS[kind](data + b"\0", count)


@pytest.mark.parametrize("count", [300, 303])
def test_ones_in_the_padding_are_refused(count: int) -> None:
    data = bytearray(gorilla.encode_values(np.full(count, 1.5)))
    data[-1] |= 1
    with pytest.raises(CodecError, match="want zeros"):
        decode_values(bytes(data), count)


@both_kinds
@given(data=st.binary(max_size=200), count=st.integers(1, 400))
@settings(max_examples=500)
def test_any_bytes_are_decoded_or_refused(kind: str, data: bytes, count: int) -> None:
    try:
        decoded = DECODERS[kind](data, count)
    except CodecError:
        return
    assert len(decoded) == count


@both_kinds
@given(places=st.lists(st.integers(0, 10**9), min_size=1, max_size=3), bit=st.integers(0, 7))
@settings(max_examples=500)
def test_flipped_bits_give_an_error_or_what_the_oracle_reads(kind: str, places: list[int], bit: int) -> None:
    data, count = blocks()[kind]
    damaged = bytearray(data)
    for place in places:
        damaged[place % len(data)] ^= 1 << bit
    try:
        decoded = DECODERS[kind](bytes(damaged), count)
    except CodecError as error:
        assert str(error).startswith("gorilla ")
        return
    read = getattr(naive, f"decode_{kind}")(bytes(damaged), count)
    assert decoded.view(np.uint64 if kind == "values" else np.int64).tolist() == read


def stream(bits: str) -> bytes:
    return bytes(8) + naive.to_bytes(bits)


@pytest.mark.parametrize(
    "bits",
    [
        "10" + "1" * 14,  # reuses a window that never opened
        "0" * 3 + "10" + "1" * 11,
        "11" + "11111" + "100010" + "1" * 35,  # 31 zeros and 34 bits
        "11" + "00001" + "000000" + "1" * 67,  # one zero and 64 bits
    ],
)
def test_an_impossible_window_is_refused(bits: str) -> None:
    with pytest.raises(CodecError, match=r"gorilla values: bit stream of .* bytes holds an impossible code"):
        decode_values(stream(bits), bits.index("1") + 2)


def test_a_time_that_leaves_int64_is_refused() -> None:
    most = (2**63 - 1) // S
    assert decode_times(b"\3" + most.to_bytes(8, "big"), 1)[0] == most * S
    assert decode_times(b"\3" + (-most % 2**64).to_bytes(8, "big"), 1)[0] == -most * S
    for time in (most + 1, -most - 1):
        with pytest.raises(CodecError, match=r"gorilla timestamps: .* impossible code"):
            decode_times(b"\3" + (time % 2**64).to_bytes(8, "big"), 1)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(CodecError, match="gorilla timestamps: got unit 4, want 0 to 3"):
        decode_times(b"\4" + bytes(8), 1)


@both_kinds
def test_a_damaged_count_asks_for_no_memory(kind: str) -> None:
    with pytest.raises(CodecError, match="cannot hold 1000000 items"):
        DECODERS[kind](bytes(100), 10**6)


# Real measurements


def shared_columns(name: str) -> dict[str, tuple[list[int], list[float]]]:
    if not (SHARED / name).exists():
        pytest.skip(f"the data set {name} is not here (MINITRUE_SHARED_DATA names its folder)")
    columns: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    with gzip.open(SHARED / name, "rt") as file:
        for row in csv.DictReader(file):
            column = columns[f"{row['device_id']}/{row['metric_name']}"]
            column[0].append(int(row["timestamp"]) * S)
            column[1].append(float(row["value"]))
    return columns


@pytest.mark.parametrize("name", ["transformer.csv.gz", "sensors.csv.gz"])
def test_real_measurements_take_exactly_the_oracles_bits(name: str) -> None:
    taken = by_paper = 0
    for column_times, column_values in shared_columns(name).values():
        for begin in range(0, len(column_times), 8192):
            block_values = np.array(column_values[begin : begin + 8192])
            block_times = column_times[begin : begin + 8192]
            words = block_values.view(np.uint64).tolist()
            data = codec.encode_values(block_values, CodecId.GORILLA)
            assert data == naive.encode_values(words)
            assert codec.encode_times(np.array(block_times, np.int64), CodecId.GORILLA) == naive.encode_times(
                block_times
            )
            taken += len(data)
            by_paper += len(naive.encode_values(words, paper=True))
    assert taken < by_paper
