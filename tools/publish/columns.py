"""Columnar payloads, as the bridge's format msgpack-columns takes them: for high rates. Layout: docs/bridge.md.

Pure: no I/O, no clock.
"""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

_encode = msgspec.msgpack.Encoder().encode


def payload(
    device_id: str, metric_name: str, times_us: npt.NDArray[np.int64], values: npt.NDArray[np.float64]
) -> bytes:
    """The payload that holds points of one series. times_us, values: arrays of shape (points,)."""
    body: dict[str, Any] = {
        "device_id": device_id,
        "metric_name": metric_name,
        "timestamp_unit": "us",
        "timestamps": times_us.astype("<i8", copy=False).tobytes(),
        "values": values.astype("<f8", copy=False).tobytes(),
    }
    return _encode(body)
