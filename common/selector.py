"""Selector: which series a delete or a question names.

One device; one metric of it or all; any tags or exactly given ones. Pure: no I/O, no state.
"""

import msgspec

from common.series import Series


class Selector(msgspec.Struct, frozen=True):
    """metric_name: None for every metric. tags: None for any, a map (also an empty one) for exactly those."""

    device_id: str
    metric_name: str | None = None
    tags: dict[str, str] | None = None

    def matches(self, series: Series) -> bool:
        """Whether a series is meant."""
        return (
            series.device_id == self.device_id
            and self.metric_name in (None, series.metric_name)
            and (self.tags is None or self.tags == dict(series.tags))
        )
