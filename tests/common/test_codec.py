"""What holds for every codec, through the functions that callers use."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common import codec
from common.codec import CodecId
from common.errors import CodecError

int64s = st.integers(-(2**63), 2**63 - 1)
words = st.integers(0, 2**64 - 1)
# Those that hold any column: constant blocks hold constants only, and a grid must be there.
ANY_TIMES = [CodecId.RAW, CodecId.GORILLA, CodecId.PCO]
ANY_VALUES = [CodecId.RAW, CodecId.GORILLA, CodecId.DECIMAL, CodecId.PCO]
times_codecs = pytest.mark.parametrize("codec_id", ANY_TIMES, ids=lambda codec_id: codec_id.name)
values_codecs = pytest.mark.parametrize("codec_id", ANY_VALUES, ids=lambda codec_id: codec_id.name)
policies = pytest.mark.parametrize("policy", ["auto", "gorilla"])


def values_of(bit_patterns: list[int]) -> np.ndarray:
    return np.array(bit_patterns, np.uint64).view(np.float64)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def check_values(data: bytes, values: np.ndarray, codec_id: CodecId) -> None:
    assert same_bits(codec.decode_values(data, len(values), int(codec_id)), values)
    room = np.full(len(values) + 2, 7.25)
    codec.decode_values_into(data, len(values), codec_id, room[1:-1])
    assert same_bits(room[1:-1], values)
    assert room[0] == room[-1] == 7.25


def check_times(data: bytes, times: np.ndarray, codec_id: CodecId) -> None:
    assert same_bits(codec.decode_times(data, len(times), int(codec_id)), times)
    room = np.full(len(times) + 2, 7)
    codec.decode_times_into(data, len(times), codec_id, room[1:-1])
    assert same_bits(room[1:-1], times)
    assert room[0] == room[-1] == 7


def test_codec_ids_never_change() -> None:
    assert {codec_id.name: int(codec_id) for codec_id in CodecId} == {
        "RAW": 0,
        "GORILLA": 1,
        "CONSTANT": 2,
        "DECIMAL": 3,
        "PCO": 4,
        "GRID": 5,
    }


@values_codecs
@given(bit_patterns=st.lists(words, min_size=1, max_size=60))
def test_values_of_any_bits_come_back(codec_id: CodecId, bit_patterns: list[int]) -> None:
    values = values_of(bit_patterns)
    check_values(codec.encode_values(values, codec_id), values, codec_id)


@values_codecs
@given(numbers=st.lists(st.floats(), min_size=1, max_size=60))
def test_floats_come_back(codec_id: CodecId, numbers: list[float]) -> None:
    values = np.array(numbers)
    check_values(codec.encode_values(values, codec_id), values, codec_id)


@times_codecs
@given(times=st.lists(int64s, min_size=1, max_size=60))
def test_times_of_all_of_int64_come_back(codec_id: CodecId, times: list[int]) -> None:
    column = np.array(times, np.int64)
    check_times(codec.encode_times(column, codec_id), column, codec_id)


@values_codecs
@pytest.mark.parametrize(
    "numbers",
    [[-0.0], [0.0, -0.0, 0.0], [5e-324, -5e-324], [np.inf, -np.inf, np.nan], [2.5] * 10_000, [1.7976931348623157e308]],
)
def test_odd_values_come_back(codec_id: CodecId, numbers: list[float]) -> None:
    values = np.array(numbers)
    check_values(codec.encode_values(values, codec_id), values, codec_id)


@values_codecs
def test_columns_of_values_with_strides_and_read_only_ones_are_taken(codec_id: CodecId) -> None:
    table = np.arange(60.0).reshape(20, 3)
    table.setflags(write=False)
    check_values(codec.encode_values(table[:, 1], codec_id), np.ascontiguousarray(table[:, 1]), codec_id)


@times_codecs
def test_columns_of_times_with_strides_are_taken(codec_id: CodecId) -> None:
    times = np.arange(0, 40, dtype=np.int64)[::-2]
    check_times(codec.encode_times(times, codec_id), np.ascontiguousarray(times), codec_id)


@values_codecs
def test_blocks_are_read_from_any_buffer_and_the_answer_is_a_writable_copy(codec_id: CodecId) -> None:
    values = np.array([1.0, 2.0, 2.0])
    data = codec.encode_values(values, codec_id)
    around = memoryview(b"xx" + data + b"yy")[2:-2]
    decoded = codec.decode_values(around, 3, codec_id)
    decoded[0] = 7.0
    assert bytes(around) == data


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 66, 2048, 2049, 8191, 8192])
def test_block_lengths_around_the_steps_of_coders(length: int) -> None:
    random = np.random.default_rng(length)
    values = np.where(random.random(length) < 0.5, 20.0, random.normal(20, 1, length).round(1))
    times = np.cumsum(random.integers(0, 3, length)).astype(np.int64) * 1_000_000
    for codec_id in ANY_VALUES:
        check_values(codec.encode_values(values, codec_id), values, codec_id)
    for codec_id in ANY_TIMES:
        check_times(codec.encode_times(times, codec_id), times, codec_id)


# Policies


@policies
@given(bit_patterns=st.lists(words | st.sampled_from([0, 1 << 63, 0x7FF8000000000001]), min_size=1, max_size=100))
def test_values_of_any_bits_are_packed(policy: codec.Policy, bit_patterns: list[int]) -> None:
    values = values_of(bit_patterns)
    codec_id, data = codec.pack_values(values, policy)
    check_values(data, values, codec_id)


@policies
@given(times=st.lists(int64s | st.integers(-5, 5), min_size=1, max_size=100))
def test_any_times_are_packed(policy: codec.Policy, times: list[int]) -> None:
    column = np.array(times, np.int64)
    codec_id, data = codec.pack_times(column, policy)
    check_times(data, column, codec_id)


@given(
    numbers=st.lists(st.sampled_from([0.1, 0.25, 1 / 3, np.pi, 1e300, np.nan]) | st.floats(), min_size=1, max_size=80),
    repeats=st.integers(1, 40),
)
def test_packed_values_are_never_larger_than_gorilla_or_raw(numbers: list[float], repeats: int) -> None:
    values = np.repeat(np.array(numbers), repeats)
    packed = len(codec.pack_values(values, "auto")[1])
    assert packed <= 8 * len(values)
    assert packed <= len(codec.encode_values(values, CodecId.GORILLA))


@given(
    deltas=st.lists(st.sampled_from([0, 1, 60, 2**40]) | st.integers(-(2**50), 2**50), min_size=1, max_size=80),
    repeats=st.integers(1, 40),
    unit=st.sampled_from([1, 1000, 1_000_000, 1_000_000_000]),
)
@example([2**33], 2, 1_000_000_000)
@example([2**57 + 1], 1, 1)  # one timestamp, whose varint is as long as Gorilla's stream
def test_packed_times_are_never_larger_than_gorilla_or_raw(deltas: list[int], repeats: int, unit: int) -> None:
    times = np.cumsum(np.repeat(np.array(deltas), repeats)) * unit
    packed = len(codec.pack_times(times, "auto")[1])
    assert packed <= 8 * len(times)
    assert packed <= len(codec.encode_times(times, CodecId.GORILLA))


def test_the_policy_gorilla_packs_gorilla() -> None:
    assert codec.pack_times(np.arange(9), "gorilla")[0] == CodecId.GORILLA
    assert codec.pack_values(np.arange(9.0), "gorilla")[0] == CodecId.GORILLA


RANDOM = np.random.default_rng(4)
WALK = np.round(20 + np.cumsum(RANDOM.normal(0, 0.3, 4000)), 2)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (np.full(50, np.pi), CodecId.CONSTANT),
        (np.full(50, 21.5), CodecId.DECIMAL),  # 5 bytes instead of 8
        (WALK, CodecId.DECIMAL),
        (WALK.astype(np.float32).astype(np.float64), CodecId.DECIMAL),
        (RANDOM.normal(0, 1, 4000), CodecId.PCO),
        (RANDOM.normal(0, 1, 4000).astype(np.float32).astype(np.float64), CodecId.PCO),
        (np.repeat([np.pi, np.e], [20, 10]), CodecId.GORILLA),
        (RANDOM.integers(0, 2**64, 4000, np.uint64).view(np.float64), CodecId.RAW),
    ],
)
def test_values_are_packed_by_what_suits_them(values: np.ndarray, want: CodecId) -> None:
    codec_id, data = codec.pack_values(values, "auto")
    assert codec_id == want
    check_values(data, values, codec_id)


S = 1_000_000_000
EVERY_10_S = 1_700_000_000 * S + np.arange(4000) * 10 * S
JITTER = RANDOM.integers(-50, 51, 4000) * 1_000_000


@pytest.mark.parametrize(
    ("times", "want"),
    [
        (EVERY_10_S, CodecId.CONSTANT),
        (EVERY_10_S + JITTER, CodecId.GRID),
        (np.delete(EVERY_10_S, [7, 70, 700]), CodecId.GRID),
        (EVERY_10_S + np.cumsum(JITTER), CodecId.PCO),
        (RANDOM.integers(0, 2**32, 4000), CodecId.PCO),
        (EVERY_10_S[:50] + np.repeat([0, 5, 18], [20, 15, 15]) * S, CodecId.GORILLA),
        (RANDOM.integers(-(2**63), 2**63, 4000), CodecId.RAW),
    ],
)
def test_times_are_packed_by_what_suits_them(times: np.ndarray, want: CodecId) -> None:
    codec_id, data = codec.pack_times(times, "auto")
    assert codec_id == want
    check_times(data, times, codec_id)


# What is refused


@pytest.mark.parametrize("codec_id", list(CodecId), ids=lambda codec_id: codec_id.name)
def test_columns_of_another_kind_are_refused(codec_id: CodecId) -> None:
    with pytest.raises(CodecError, match=r"timestamps of dtype float64 and shape \(2,\), want int64 and 1 to 1048576"):
        codec.encode_times(np.array([1.0, 2.0]), codec_id)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"values of dtype float64 and shape \(0,\), want float64 and 1 to 1048576"):
        codec.encode_values(np.array([]), codec_id)
    with pytest.raises(CodecError, match=r"values of dtype float64 and shape \(1, 2\)"):
        codec.encode_values(np.array([[1.0, 2.0]]), codec_id)


@policies
def test_columns_of_another_kind_are_not_packed(policy: codec.Policy) -> None:
    with pytest.raises(CodecError, match=r"timestamps of dtype int32 and shape \(2,\), want int64 and 1 to 1048576"):
        codec.pack_times(np.array([1, 2], np.int32), policy)  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"values of dtype int64 and shape \(2,\), want float64 and 1 to 1048576"):
        codec.pack_values(np.array([1, 2]), policy)  # type: ignore[arg-type]


def test_an_unknown_codec_id_is_refused_with_the_known_ones() -> None:
    known = r"0 \(raw\), 1 \(gorilla\), 2 \(constant\), 3 \(decimal\), 4 \(pco\)$"
    with pytest.raises(CodecError, match=rf"codec id 250 of values, want one of {known}"):
        codec.decode_values(b"", 1, 250)
    with pytest.raises(CodecError, match="codec id 5 of values"):
        codec.decode_values(b"", 1, CodecId.GRID)
    with pytest.raises(CodecError, match="codec id 3 of timestamps"):
        codec.encode_times(np.arange(3), CodecId.DECIMAL)


@times_codecs
@pytest.mark.parametrize("count", [0, -1, 2**20 + 1, 10**12])
def test_a_count_of_no_block_is_refused_before_there_is_room_for_it(codec_id: CodecId, count: int) -> None:
    with pytest.raises(CodecError, match=f"block of {count} items, want 1 to 1048576"):
        codec.decode_times(bytes(9), count, codec_id)
    with pytest.raises(CodecError, match=f"block of {count} items, want 1 to 1048576"):
        codec.decode_values_into(bytes(9), count, codec_id, np.empty(3))


@pytest.mark.parametrize("room", [np.empty(4), np.empty(3, np.float32), np.empty((3, 1)), np.empty(6)[::2]])
def test_room_of_another_kind_is_refused(room: np.ndarray) -> None:
    with pytest.raises(CodecError, match=r"block of 3 items into .*, want float64, contiguous"):
        codec.decode_values_into(bytes(24), 3, CodecId.RAW, room)


def test_raw_is_little_endian_items() -> None:
    assert codec.encode_times(np.array([1, -2], np.int64), CodecId.RAW).hex() == "0100000000000000feffffffffffffff"
    assert codec.encode_values(np.array([1.5]), CodecId.RAW).hex() == "000000000000f83f"


@pytest.mark.parametrize("size", [0, 15, 17, 24])
def test_raw_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(CodecError, match=f"raw values: got {size} bytes, want 16 for 2 items"):
        codec.decode_values(bytes(size), 2, CodecId.RAW)
