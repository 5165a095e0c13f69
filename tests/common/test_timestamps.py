"""Times in numbers and text: exact where they can be, the nearest microsecond where they cannot."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import timestamps


@pytest.mark.parametrize(
    ("value", "unit", "want"),
    [
        (0, "s", 0),
        (1_700_000_000, "s", 1_700_000_000_000_000_000),
        (1_700_000_000_123, "ms", 1_700_000_000_123_000_000),
        (1_700_000_000_123_456, "us", 1_700_000_000_123_456_000),
        (1_700_000_000_123_456_789, "ns", 1_700_000_000_123_456_789),
        (1_700_000_000.123, "s", 1_700_000_000_123_000_000),
        (1_700_000_000.123457, "s", 1_700_000_000_123_457_000),
        (1.5, "ms", 1_500_000),
        (1.5, "us", 2_000),
        (1234.0, "ns", 1_000),
        (0.1, "s", 100_000_000),
        (-1.25, "s", -1_250_000_000),
        (9_223_372_036, "s", 9_223_372_036_000_000_000),
    ],
)
def test_a_number_in_a_unit_gives_its_nanoseconds(value: float, unit: str, want: int) -> None:
    assert timestamps.from_number(value, unit) == want


@pytest.mark.parametrize(
    ("value", "unit"),
    [(9_223_372_037, "s"), (2**63, "ns"), (float("nan"), "s"), (float("inf"), "s"), (1e300, "s"), (2**20_000, "s")],
    ids=["above", "2**63", "nan", "inf", "1e300", "2**20000"],
)
def test_a_number_outside_int64_is_refused_in_a_short_text(value: float, unit: str) -> None:
    with pytest.raises(ValueError, match="want a time within int64 nanoseconds") as caught:
        timestamps.from_number(value, unit)
    assert len(str(caught.value)) < 200


@given(st.integers(0, 4_000_000_000_000_000))
def test_decimal_text_of_microseconds_read_as_a_float_comes_back_exact(microseconds: int) -> None:
    text = str(Decimal(microseconds).scaleb(-6))
    assert timestamps.from_number(float(text)) == microseconds * 1000


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14t22:13:20.5z", 1_700_000_000_500_000_000),
        ("2023-11-14 23:13:20+01:00", 1_700_000_000_000_000_000),
        ("2023-11-14T16:43:20.123456789-05:30", 1_700_000_000_123_456_789),
        ("2023-11-14T22:13:20.1234567899Z", 1_700_000_000_123_456_789),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
        ("1969-12-31T23:59:59.75Z", -250_000_000),
    ],
)
def test_rfc_3339_text_gives_its_nanoseconds(text: str, want: int) -> None:
    assert timestamps.from_text(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "1700000000", "2023-11-14", "2023-11-14T22:13:20", "2023-11-14T22:13Z", "2023-13-01T00:00:00Z",
        "2023-02-29T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:13:61Z", "2023-11-14T22:13:20.Z",
        "2023-11-14T22:13:20+24:00", "2023-11-14T22:13:20+01:60", "9999-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
        "\uff12\uff10\uff12\uff13-11-14T22:13:20Z", "2023-11-14T22:13:20Z\n", "x" * 10_000,
    ],
)  # fmt: skip
def test_other_text_is_refused_with_the_text_in_short(text: str) -> None:
    with pytest.raises(ValueError, match="time ") as caught:
        timestamps.from_text(text)
    assert len(str(caught.value)) < 200


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), st.integers(-1439, 1439))
def test_text_of_any_moment_in_any_zone_comes_back_exact(moment: datetime, offset_minutes: int) -> None:
    utc = moment.replace(tzinfo=UTC)
    sign, minutes = ("-" if offset_minutes < 0 else "+"), abs(offset_minutes)
    local = moment + timedelta(minutes=offset_minutes)
    text = f"{local.isoformat(timespec='microseconds')}{sign}{minutes // 60:02}:{minutes % 60:02}"
    want = (utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    assert timestamps.from_text(text) == want
