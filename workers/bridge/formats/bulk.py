"""Many readings of one payload at once: what objects.bare_point makes of each, as columns. Pure but for the places.

A Python step for each reading costs about as much as decoding it; so there are few, and numpy does the rest.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from workers.bridge import timecolumn
from workers.bridge.columns import Columns
from workers.bridge.context import Context

FEW: Final = 12  # readings for which this is not worth its calls of numpy


def columns(readings: Sequence[Any], context: Context) -> Columns | None:
    """The points of readings, objects.Reading, where the topic gives nothing. Raises Refused if one is no point.

    None: there are tags, times of arrival or units among them, to be looked at one by one.
    """
    for one in readings:
        if one.tags or one.timestamp_unit:
            return None
    given = [one.timestamp for one in readings]
    if None in given:
        return None
    places = context.places
    find = places.get
    found = [
        find((one.device_id, one.metric_name)) or places.add((one.device_id, one.metric_name)) for one in readings
    ]
    times, refused = timecolumn.to_ns(given, context.unit, context.latest_ns, context.max_future_s)
    for why in refused.values():
        raise why
    return Columns(found, None, times, np.array([one.value for one in readings], np.float64))
