"""Packed columns, and small blocks that are written and read many at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import codec
from common.codec import CodecId, integers, small
from common.errors import CodecError
from tests import naive_blocks as naive

S = 1_000_000_000
int64s = st.integers(-(2**63), 2**63 - 1)
near = st.integers(-1000, 1000)
columns = st.lists(int64s, min_size=3, max_size=140) | st.lists(near, min_size=3, max_size=140)
words = st.integers(0, 2**64 - 1)
bits = st.lists(words, min_size=1, max_size=140).map(lambda some: np.array(some, np.uint64).view(np.float64))
decimals = st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=140).map(lambda some: np.array(some) / 100.0)
NAIVE_TIMES = {CodecId.CONSTANT: naive.constant_times, CodecId.PCO: naive.pco_times}
NAIVE_VALUES = {CodecId.CONSTANT: naive.constant_values, CodecId.DECIMAL: naive.decimal_values}


def packed_column(numbers: np.ndarray) -> bytes:
    out = np.empty(8 * len(numbers) + 64, np.uint8)
    return out[: integers.small_kernels.encode_column(numbers.copy(), out)].tobytes()


def check_column(numbers: np.ndarray) -> bytes:
    data = packed_column(numbers)
    out = np.empty(len(numbers), np.int64)
    integers.decode(data, 0, out, "column")
    assert out.tolist() == numbers.tolist()
    assert naive.integers(naive.Reader(data), len(numbers)) == numbers.tolist()
    return data


def places_of(packed: codec.Packed, ends: np.ndarray) -> codec.Places:
    counts = np.diff(ends, prepend=0)
    sizes = packed.times_bytes + packed.values_bytes
    return codec.Places(
        np.cumsum(sizes) - sizes, packed.times_bytes, packed.values_bytes, packed.times_codec, packed.values_codec,
        ends - counts, counts,
    )  # fmt: skip


def check_blocks(times: np.ndarray, values: np.ndarray, ends: np.ndarray) -> codec.Packed:
    """Blocks come back by bits, from the kernel, one by one and as the page says; those left out are left alone."""
    packed = codec.pack_small(times, values, ends, "auto")
    places = places_of(packed, ends)
    times_out, values_out = np.full(len(times), 7), np.full(len(values), 7.25)
    done = codec.decode_small(packed.data, places, times_out, values_out)
    for block, at in enumerate(places.offsets.tolist()):
        rows = slice(int(places.rows[block]), int(ends[block]))
        if packed.times_codec[block] == codec.FOREIGN:
            assert packed.values_codec[block] == codec.FOREIGN
            assert (packed.times_bytes[block], packed.values_bytes[block], bool(done[block])) == (0, 0, False)
            assert (times_out[rows] == 7).all() and (values_out[rows] == 7.25).all()
            continue
        if done[block]:
            assert times_out[rows].tobytes() == times[rows].tobytes()
            assert values_out[rows].tobytes() == values[rows].tobytes()
        middle, end = at + int(packed.times_bytes[block]), at + int(packed.times_bytes[block])
        end += int(packed.values_bytes[block])
        check_block(packed, block, packed.data[at:middle], packed.data[middle:end], times[rows], values[rows])
    return packed


def check_block(
    packed: codec.Packed, block: int, first: bytes, second: bytes, times: np.ndarray, values: np.ndarray
) -> None:
    times_codec, values_codec = CodecId(packed.times_codec[block]), CodecId(packed.values_codec[block])
    assert codec.decode_times(first, len(times), times_codec).tobytes() == times.tobytes()
    assert codec.decode_values(second, len(times), values_codec).tobytes() == values.tobytes()
    assert NAIVE_TIMES[times_codec](first, len(times)) == times.tolist()
    assert NAIVE_VALUES[values_codec](second, len(times)) == values.view(np.uint64).tolist()


@given(columns)
def test_packed_columns_of_any_numbers_come_back(numbers: list[int]) -> None:
    column = np.array(numbers, np.int64)
    if (np.diff(column, 2) != 0).any():
        check_column(column)


@pytest.mark.parametrize("width", range(1, 65))
def test_numbers_of_every_width_and_count_come_back(width: int) -> None:
    random = np.random.default_rng(width)
    for count in (3, 4, 7, 8, 9, 63, 64, 65, 128):
        numbers = random.integers(0, 2**width, count, np.uint64, endpoint=False) if width < 64 else None
        if numbers is None:
            numbers = random.integers(0, 2**64 - 1, count, np.uint64, endpoint=True)
        numbers[0], numbers[1], numbers[2] = 0, 2**width - 1, 0
        data = check_column(numbers.view(np.int64))
        assert len(data) <= 42 + (width * count + 7) // 8


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        (0, [5, 0, 7, 1, 6, 2, 5, 0]),
        (1, [1000, 1007, 1011, 1026, 1030, 1044]),
        (2, [0, 1, 4, 9, 17, 26, 38, 51, 67, 84]),
    ],
)
def test_the_narrowest_order_is_taken(order: int, numbers: list[int]) -> None:
    assert check_column(np.array(numbers))[0] == 8 + order
    assert check_column(np.array(numbers) * 500)[0] == 8 + 4 + order  # and what all have in common is a step


def test_a_packed_column_that_is_none_is_refused() -> None:
    good = packed_column(np.array([1000, 1007, 1011, 1026, 1030, 1044]))
    out = np.empty(6, np.int64)
    bad = [good[:end] for end in range(1, len(good))] + [good + b"\0"]
    bad += [bytes((head,)) + good[1:] for head in (0x0B, 0x19, 0x29, 0x49, 0x89)]
    bad += [b"\x08\x00\x41" + bytes(60), b"\x08" + b"\xff" * 10 + b"\x00\x00", b"\x0c\x00" + b"\xff" * 9 + b"\x02\x00"]
    for data in bad:
        with pytest.raises(CodecError, match="column"):
            integers.decode(data, 0, out, "column")
    for count in (1, 2, 5, 12, 200):  # but not 7, which would end in the same byte as 10
        with pytest.raises(CodecError, match="packed column"):
            integers.decode(packed_column(np.array([0, 1, 4, 9, 17, 26, 38, 51, 67, 84])), 0, np.empty(count, int), "x")


@given(st.lists(st.tuples(bits | decimals, int64s, st.integers(0, 2**40), st.booleans()), min_size=1, max_size=6))
def test_blocks_of_any_rows_come_back_or_are_left_out(blocks: list[tuple[np.ndarray, int, int, bool]]) -> None:
    times = []
    for values, first, step, regular in blocks:
        distances = (
            np.full(len(values), step) if regular else np.random.default_rng(step).integers(0, step + 1, len(values))
        )
        times.append((np.cumsum(distances).view(np.uint64) + np.uint64(first % 2**64)).view(np.int64))
    check_blocks(
        np.concatenate(times), np.concatenate([values for values, *_ in blocks]), np.cumsum([len(t) for t in times])
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 64, 127, 128, 129])
def test_what_sensors_send_goes_this_way_up_to_the_limit(rows: int) -> None:
    random = np.random.default_rng(rows)
    blocks = 40
    times = np.tile(1_700_000_000 * S + np.arange(rows) * 10 * S, blocks)
    values = np.round(20 + np.cumsum(random.normal(0, 0.05, (blocks, rows)), 1), 2).reshape(-1)
    packed = check_blocks(times, values, np.arange(1, blocks + 1) * rows)
    went = packed.times_codec != codec.FOREIGN
    assert went.all() == (rows <= codec.SMALL_ROWS) and went.any() == (rows <= codec.SMALL_ROWS)
    for block in np.flatnonzero(went).tolist():
        inside = slice(block * rows, (block + 1) * rows)
        alone = [codec.pack_times(times[inside], "auto")[1], codec.pack_values(values[inside], "auto")[1]]
        assert packed.times_bytes[block] + packed.values_bytes[block] <= len(alone[0]) + len(alone[1]) + 12


@pytest.mark.parametrize(
    ("values", "codec_id"),
    [
        ([21.5] * 5, CodecId.DECIMAL),
        ([np.pi] * 5, CodecId.CONSTANT),
        ([np.nan] * 5, CodecId.CONSTANT),
        ([-0.0] * 5, CodecId.CONSTANT),
        ([1.0, 2.0, 3.0, 4.0, 5.0], CodecId.DECIMAL),
        ([1.0, 2.0, -0.0, 4.0, 5.0], codec.FOREIGN),
        ([1.0, 2.0, np.nan, 4.0, 5.0], codec.FOREIGN),
        ([0.1, 0.2, 0.1 + 0.2, 0.4, 0.7], codec.FOREIGN),
        ([2.0**60, 1.0, 5.0, 2.0, 7.0], codec.FOREIGN),
    ],
)
def test_values_choose_their_codec(values: list[float], codec_id: int) -> None:
    packed = check_blocks(np.arange(5) * 10 * S, np.array(values), np.array([5]))
    assert packed.values_codec.tolist() == [codec_id]


def test_the_policy_gorilla_leaves_all_blocks_out() -> None:
    packed = codec.pack_small(np.arange(10), np.arange(10.0), np.array([5, 10]), "gorilla")
    assert (packed.data, packed.times_codec.tolist()) == (b"", [codec.FOREIGN] * 2)


@given(
    st.binary(max_size=60),
    st.integers(0, 60),
    st.sampled_from([0, 2, 4]),
    st.sampled_from([0, 2, 3]),
    st.integers(1, 140),
)
def test_any_bytes_are_read_as_by_the_functions_for_single_blocks_or_left(
    data: bytes, middle: int, times_codec: int, values_codec: int, count: int
) -> None:
    middle = min(middle, len(data))
    numbers = (0, middle, len(data) - middle, times_codec, values_codec, 0, count)
    times, values = np.empty(count, np.int64), np.empty(count)
    places = codec.Places(*(np.array([number]) for number in numbers))
    if codec.decode_small(data, places, times, values)[0]:
        assert codec.decode_times(data[:middle], count, times_codec).tobytes() == times.tobytes()
        assert codec.decode_values(data[middle:], count, values_codec).tobytes() == values.tobytes()


@given(st.data())
def test_a_changed_byte_is_read_as_by_the_functions_for_single_blocks_or_left(data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 500), min_size=3, max_size=20))) / 10
    times = np.cumsum(np.arange(len(values)) % 3 + 1) * S
    packed = codec.pack_small(times, values, np.array([len(values)]), "auto")
    if packed.times_codec[0] == codec.FOREIGN:
        return
    changed = bytearray(packed.data)
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    places = places_of(packed, np.array([len(values)]))
    out = np.empty(len(values), np.int64), np.empty(len(values))
    middle = int(packed.times_bytes[0])
    parts = bytes(changed[:middle]), bytes(changed[middle:])
    if codec.decode_small(bytes(changed), places, *out)[0]:
        alone = codec.decode_times(parts[0], len(values), int(packed.times_codec[0]))
        assert alone.tobytes() == out[0].tobytes()
        alone = codec.decode_values(parts[1], len(values), int(packed.values_codec[0]))
        assert alone.tobytes() == out[1].tobytes()


def test_blocks_and_rows_that_lie_elsewhere_are_refused() -> None:
    times, values = np.arange(5) * S, np.arange(5.0)
    packed = codec.pack_small(times, values, np.array([5]), "auto")
    good = places_of(packed, np.array([5]))
    for field, number in [("offsets", 1), ("offsets", -1), ("times_bytes", -1), ("rows", 1), ("counts", 6)]:
        with pytest.raises(CodecError):
            codec.decode_small(packed.data, good._replace(**{field: np.array([number])}), times.copy(), values.copy())
    for ends in ([4], [6], [3, 3, 5], []):
        with pytest.raises(CodecError):
            small.encode(times, values, np.array(ends, np.int64))
