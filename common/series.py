"""Series keys and partitions: the identity of a series and where the ring places it.

A series key is the canonical msgpack array [device_id, metric_name, k1, v1, ...] with the tags sorted by
their UTF-8 bytes. Ids may contain any separator, so keys are never built by joining.
Pure: no I/O, no state.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import msgpack
import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError

HASH_BYTES = 8


class Series(NamedTuple):
    """A series in words. tags: pairs sorted by the UTF-8 bytes of the tag's name."""

    device_id: str
    metric_name: str
    tags: tuple[tuple[str, str], ...] = ()


def series_key(device_id: str, metric_name: str, tags: Mapping[str, str] | None = None) -> bytes:
    """The canonical key of a series."""
    parts = [device_id, metric_name]
    if tags:
        for name in sorted(tags, key=lambda tag: tag.encode()):
            parts += (name, tags[name])
    return cast(bytes, msgpack.packb(parts))


def parse_key(key: bytes) -> Series:
    """The series that a canonical key names.

    Raises ProtocolError where the bytes are not a canonical key, so that one series has one key.
    """
    try:
        parts = msgpack.unpackb(key, use_list=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"series key {key[:64]!r} is not msgpack: {error}") from error
    if not isinstance(parts, list) or len(parts) < 2 or len(parts) % 2 or not all(
        isinstance(part, str) for part in parts
    ):
        raise ProtocolError(f"series key {key[:64]!r}: want an even array of at least two strings")
    tags = tuple(zip(parts[2::2], parts[3::2], strict=True))
    if series_key(parts[0], parts[1], dict(tags)) != key:
        raise ProtocolError(f"series key {key[:64]!r} is not canonical (tags unsorted, repeated or oddly packed)")
    return Series(parts[0], parts[1], tags)


def series_hash(key: bytes) -> int:
    """blake2b of the key, 8 bytes read big-endian: the series' place in the hash space, 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=HASH_BYTES).digest(), "big")


def series_hashes(keys: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """series_hash of each key, in their order."""
    digests = b"".join([hashlib.blake2b(key, digest_size=HASH_BYTES).digest() for key in keys])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a series: the top log2(partitions) bits of its hash. partitions: a power of two."""
    return series_hash(key) >> (64 - partitions.bit_length() + 1)
