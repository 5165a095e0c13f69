"""The examples of the section "Codecs" of docs/file-formats.md: read as the page says, and written byte for byte."""

import re

import numpy as np
import pytest

from common import codec
from common.codec import CodecId, integers
from tests import naive_blocks as naive
from tests.support import ROOT

DOC = (ROOT / "docs" / "file-formats.md").read_text()
S, MS = 1_000_000_000, 1_000_000


def example(name: str) -> bytes:
    """The bytes of an example, after checking that each line's offset is where its bytes lie."""
    found = re.search(rf"```{name}\n(.*?)```", DOC, re.DOTALL)
    assert found, f"no example {name}"
    data = b""
    for line in found[1].splitlines():
        assert int(line[:4], 16) == len(data), line
        data += bytes.fromhex(line[6:53])
    return data


@pytest.mark.parametrize(
    ("name", "codec_id", "times"),
    [
        ("example-constant", CodecId.CONSTANT, np.array([1000, 1060, 1120]) * S),
        ("example-pco-timestamps", CodecId.PCO, np.array([1000, 1007, 1011, 1026, 1030, 1044]) * S),
        (
            "example-grid",
            CodecId.GRID,
            np.array([1000000, 1010003, 1019998, 1030001, 1050000, 1060002, 1069999, 1080000]) * MS,
        ),
    ],
)
def test_timestamps_of_the_page_are_written_and_read(name: str, codec_id: CodecId, times: np.ndarray) -> None:
    data = example(name)
    assert codec.encode_times(times, codec_id).hex() == data.hex()
    assert np.array_equal(codec.decode_times(data, len(times), codec_id), times)
    read = {CodecId.CONSTANT: naive.constant_times, CodecId.PCO: naive.pco_times, CodecId.GRID: naive.grid_times}
    assert read[codec_id](data, len(times)) == times.tolist()


@pytest.mark.parametrize(
    ("name", "codec_id", "values"),
    [
        ("example-decimal", CodecId.DECIMAL, np.array([20.31, 20.33, 20.3, 20.37, np.nan, 20.4])),
        ("example-pco-values", CodecId.PCO, np.array([0.1, 0.2, 0.3, 0.4], np.float32).astype(np.float64)),
    ],
)
def test_values_of_the_page_are_written_and_read(name: str, codec_id: CodecId, values: np.ndarray) -> None:
    data = example(name)
    assert codec.encode_values(values, codec_id).hex() == data.hex()
    assert codec.decode_values(data, len(values), codec_id).tobytes() == values.tobytes()
    read = {CodecId.DECIMAL: naive.decimal_values, CodecId.PCO: naive.pco_values}
    assert read[codec_id](data, len(values)) == values.view(np.uint64).tolist()


def test_the_column_of_the_page_is_read() -> None:
    data, items = example("example-column"), [1000, 1007, 1011, 1026, 1030, 1044]
    out = np.empty(6, np.int64)
    integers.decode(data, 0, out, "column")
    assert out.tolist() == naive.integers(naive.Reader(data), 6) == items
    assert naive.chunk(naive.Reader(data[3:]), 0, 6, "u2").tolist() == [0, 7, 11, 26, 30, 44]


def test_the_page_lists_every_codec() -> None:
    section = DOC[DOC.index("### Codecs") :].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| (\d) \| (\w+) \|", section, re.MULTILINE))
    assert {int(number): name.lower() for number, name in listed.items()} == {
        codec_id.value: codec_id.name.lower() for codec_id in CodecId
    }
