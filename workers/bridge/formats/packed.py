"""Formats `msgpack` and `msgpack-metrics`: maps, or arrays of them, as the objects of `json` and `json-metrics`.

What JSON cannot say (binary, extensions, keys that are no strings) is a field like any other of the wrong type:
refused where it matters, passed over where it does not.
Pure but for the context's places and its route's counts.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import msgspec
import numpy as np

from common.config import Ingest, Subscription
from workers.bridge.columns import Columns
from workers.bridge.context import Context
from workers.bridge.formats import fields, metrics, objects
from workers.bridge.payload import EMPTY, NO_REFUSALS, SHAPE, SYNTAX, Decoded, Point, Refusals, Refused, kind, want_few

BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ARRAYS: Final = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])  # first bytes

_read: Final = msgspec.msgpack.Decoder().decode
_split: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Packed(objects.Objects):
    """As Objects; read: msgpack."""

    __slots__ = ()

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(subscription)
        self.read = cast(Any, msgspec.msgpack.Decoder(objects.one_or_many(self.type)).decode)


def decode(payload: bytes, context: Context) -> Decoded:
    """Format `msgpack`: the points of a payload, and what of it is refused."""
    packed: Packed = context.compiled
    try:
        points = objects.points_of(packed.read(payload), context)
    except objects.FAST_PATH_FAILED:
        return _decode_slowly(payload, context)
    values = points.values if isinstance(points, Columns) else [value for _, _, value in points]
    return (points, NO_REFUSALS) if np.isfinite(values).all() else _decode_slowly(payload, context)


def decode_metrics(payload: bytes, context: Context) -> Decoded:
    """Format `msgpack-metrics`: the points of a payload, and what of it is refused."""
    try:
        return metrics.of_elements(elements(payload, context.ingest), _join, context)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]


def _decode_slowly(payload: bytes, context: Context) -> Decoded:
    points: list[Point] = []
    refusals = Refusals(_join)
    try:
        found = elements(payload, context.ingest)
    except Refused as refused:
        return [], [refused.refusal(payload, context.device_id)]
    for packed, element in found:
        try:
            points.append(objects.element_point(element, context))
        except Refused as refused:
            device = fields.device_of(element, context.compiled.device, context)
            refusals.add(refused, packed, device)
    return points, refusals.all()


def elements(payload: bytes, ingest: Ingest) -> Iterable[tuple[bytes, Any]]:
    """The elements of an array, or the one map, each with its bytes. Raises Refused for the payload whole."""
    found = unpack(payload)
    if payload[0] in _ARRAYS:
        want_few(len(found), ingest)
        return ((bytes(packed), element) for packed, element in zip(_split(payload), found, strict=True))
    if not isinstance(found, dict):
        raise Refused(SHAPE, f"payload is {kind(found)}, want a map or an array of maps")
    return [(payload, found)]


def _join(parts: Sequence[bytes]) -> bytes:
    """An array of elements."""
    return b"\xdd" + len(parts).to_bytes(4, "big") + b"".join(parts)


def unpack(payload: bytes) -> Any:
    """What a payload says. Raises Refused."""
    if not payload:
        raise Refused(EMPTY, "empty payload")
    try:
        return _read(payload)
    except BROKEN as error:
        raise Refused(SYNTAX, f"not msgpack: {error}") from error
