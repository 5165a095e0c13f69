"""What holds for every codec, through the functions that callers use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec
from common.codec import CodecId
from common.errors import CodecError

int64s = st.integers(-(2**63), 2**63 - 1)
words = st.integers(0, 2**64 - 1)
GENERAL = [CodecId.RAW, CodecId.GORILLA, CodecId.PCO]  # those that hold any column
every_codec = pytest.mark.parametrize("codec_id", GENERAL, ids=lambda codec_id: codec_id.name)


def values_of(bit_patterns: list[int]) -> np.ndarray:
    return np.array(bit_patterns, np.uint64).view(np.float64)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def test_codec_ids_never_change() -> None:
    assert {codec_id.name: int(codec_id) for codec_id in CodecId} == {
        "RAW": 0,
        "GORILLA": 1,
        "CONSTANT": 2,
        "DECIMAL": 3,
        "PCO": 4,
        "GRID": 5,
    }


@every_codec
@given(bit_patterns=st.lists(words, min_size=1, max_size=60))
def test_values_of_any_bits_come_back(codec_id: CodecId, bit_patterns: list[int]) -> None:
    values = values_of(bit_patterns)
    data = codec.encode_values(values, codec_id)
    assert same_bits(codec.decode_values(data, len(values), int(codec_id)), values)


@every_codec
@given(numbers=st.lists(st.floats(), min_size=1, max_size=60))
def test_floats_come_back(codec_id: CodecId, numbers: list[float]) -> None:
    values = np.array(numbers)
    assert same_bits(codec.decode_values(codec.encode_values(values, codec_id), len(values), codec_id), values)


@every_codec
@given(times=st.lists(int64s, min_size=1, max_size=60))
def test_times_of_all_of_int64_come_back(codec_id: CodecId, times: list[int]) -> None:
    column = np.array(times, np.int64)
    data = codec.encode_times(column, codec_id)
    assert same_bits(codec.decode_times(data, len(column), int(codec_id)), column)


@every_codec
@pytest.mark.parametrize(
    "numbers",
    [[-0.0], [0.0, -0.0, 0.0], [5e-324, -5e-324], [np.inf, -np.inf, np.nan], [2.5] * 10_000, [1.7976931348623157e308]],
)
def test_odd_values_come_back(codec_id: CodecId, numbers: list[float]) -> None:
    values = np.array(numbers)
    assert same_bits(codec.decode_values(codec.encode_values(values, codec_id), len(values), codec_id), values)


@every_codec
def test_columns_with_strides_and_read_only_ones_are_taken(codec_id: CodecId) -> None:
    table = np.arange(60.0).reshape(20, 3)
    table.setflags(write=False)
    data = codec.encode_values(table[:, 1], codec_id)
    assert same_bits(codec.decode_values(data, 20, codec_id), np.ascontiguousarray(table[:, 1]))
    times = np.arange(0, 40, dtype=np.int64)[::-2]
    data = codec.encode_times(times, codec_id)
    assert same_bits(codec.decode_times(data, 20, codec_id), np.ascontiguousarray(times))


@every_codec
def test_blocks_are_read_from_any_buffer_and_the_answer_is_a_writable_copy(codec_id: CodecId) -> None:
    values = np.array([1.0, 2.0, 2.0])
    data = codec.encode_values(values, codec_id)
    around = memoryview(b"xx" + data + b"yy")[2:-2]
    decoded = codec.decode_values(around, 3, codec_id)
    decoded[0] = 7.0
    assert bytes(around) == data


@every_codec
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 66, 8191, 8192])
def test_block_lengths_around_the_decoders_steps(codec_id: CodecId, length: int) -> None:
    random = np.random.default_rng(length)
    values = np.where(random.random(length) < 0.5, 20.0, random.normal(20, 1, length).round(1))
    times = np.cumsum(random.integers(0, 3, length)).astype(np.int64) * 1_000_000
    assert same_bits(codec.decode_values(codec.encode_values(values, codec_id), length, codec_id), values)
    assert same_bits(codec.decode_times(codec.encode_times(times, codec_id), length, codec_id), times)


@every_codec
def test_columns_of_another_kind_are_refused(codec_id: CodecId) -> None:
    with pytest.raises(CodecError, match=r"timestamps of dtype float64 and shape \(2,\), want int64 and 1 to 1048576"):
        codec.encode_times(np.array([1.0, 2.0]), codec_id)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"values of dtype float64 and shape \(0,\), want float64 and 1 to 1048576"):
        codec.encode_values(np.array([]), codec_id)
    with pytest.raises(CodecError, match=r"values of dtype float64 and shape \(1, 2\)"):
        codec.encode_values(np.array([[1.0, 2.0]]), codec_id)


def test_an_unknown_codec_id_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CodecError, match=r"codec id 250 of values, want one of 0 \(raw\), 1 \(gorilla\)"):
        codec.decode_values(b"", 1, 250)


@every_codec
@pytest.mark.parametrize("count", [0, -1, 2**20 + 1, 10**12])
def test_a_block_of_no_items_is_refused(codec_id: CodecId, count: int) -> None:
    with pytest.raises(CodecError, match=f"block of {count} items, want 1 to 1048576"):
        codec.decode_times(bytes(9), count, codec_id)


def test_raw_is_little_endian_items() -> None:
    assert codec.encode_times(np.array([1, -2], np.int64), CodecId.RAW).hex() == "0100000000000000feffffffffffffff"
    assert codec.encode_values(np.array([1.5]), CodecId.RAW).hex() == "000000000000f83f"


@pytest.mark.parametrize("size", [0, 15, 17, 24])
def test_raw_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(CodecError, match=f"raw values: got {size} bytes, want 16 for 2 items"):
        codec.decode_values(bytes(size), 2, CodecId.RAW)
