"""Decimal blocks: values that are k / 10^e, or close to it, as whole numbers k. Pure.

What sensors send was decimal text with a few digits before it was a float64, and its bits look like noise only
until it is multiplied by the right power of ten. Values that are no decimals cost what they deviate, so that one of
them does not spoil a block; and values that are near one are common too: results of arithmetic, and text that was
read by a parser that does not round.

    head            bits 0 to 4: e, 0 to 22; bit 5: single; bit 6: sparse exceptions; bit 7: dense exceptions
    if bit 6        varint, the bytes of what follows; for each exception a varint, how many items lie between it and
                    the one before, and a signed varint, its distance
    if bit 7        varint, the bytes of what follows; a column of integers (integers.py), distances of all items
    the rest        a column of integers, the numbers k

A value is k / 10^e, rounded to float32 if the head says single, as float64; then its 64 bits plus its distances,
modulo 2^64. Division and rounding are IEEE 754's, to nearest even.

Encoder: e (0 to 17; 9 with single) is the one that makes a sample of the values cheapest, digits and distances taken
together; k = rint(v * 10^e), or the k before where |v * 10^e| is no number up to 2^53. Distances below 64 that
occur often (16 times at least, and more than once in 64 items) are dense exceptions, others sparse; unless the others
occur often too: then all are dense.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from common.codec import decimal_kernels as kernels
from common.codec import integers
from common.errors import CodecError
from common.points import Values

_DIGITS: Final = 0x1F
_EXPONENT: Final = 0x3F  # digits, and kernels.SINGLE
SPARSE: Final = 0x40
DENSE: Final = 0x80
_SAMPLES: Final = 96  # values that the exponent is chosen by, at first
_MORE_SAMPLES: Final = 512  # values that it is chosen by when that was not enough
_WHAT: Final = "decimal values"
_WIDEN: Final = {2: kernels.widen_16, 4: kernels.widen_32, 8: kernels.widen_64}
_MANY: Final = 16  # items for every exception, up to which the first sample is not believed

Integers = npt.NDArray[np.int64]


def attempt(values: Values) -> bytes | None:
    """The block of float64 values, shape (n,), n >= 1, or None when a sample of them shows that it does not pay."""
    exponent = int(kernels.choose(values, 1 + (len(values) - 1) // _SAMPLES))
    if exponent == kernels.HOPELESS:
        return None
    wholes = np.empty(len(values), np.int64)
    exceptions = kernels.scale(values, exponent, wholes)
    if exceptions * _MANY > len(values) > _SAMPLES:
        exponent = int(kernels.choose(values, 1 + (len(values) - 1) // _MORE_SAMPLES))
        if exponent == kernels.HOPELESS:
            return None
        exceptions = kernels.scale(values, exponent, wholes)
    return _encode(values, exponent, wholes, exceptions)


def encode_values(values: Values) -> bytes:
    """The block of float64 values, shape (n,), n >= 1. Every bit pattern is kept."""
    block = attempt(values)
    if block is None:
        wholes = np.empty(len(values), np.int64)
        block = _encode(values, 0, wholes, kernels.scale(values, 0, wholes))
    return block


def _encode(values: Values, exponent: int, wholes: Integers, exceptions: int) -> bytes:
    column = integers.encode(wholes)
    if not exceptions:
        return bytes((exponent,)) + column
    distances, counts = np.empty(len(values), np.int64), np.empty(2, np.int64)
    kernels.distances(values, wholes, exponent, distances, counts)
    near, far = counts.tolist()
    head, sections = exponent, b""
    dense = integers.often(far, len(values)) or integers.often(near, len(values))
    if not integers.often(far, len(values)) and (far or (near and not dense)):
        head |= SPARSE
        sections = integers.section(integers.take_out(distances, kernels.FAR if dense else 1, near + far))
    if dense:
        head, sections = head | DENSE, sections + integers.section(integers.encode(distances))
    return bytes((head,)) + sections + column


def decode_values(data: bytes | memoryview, out: Values) -> None:
    """Fill `out` with the values of a block. Raises CodecError when it does not hold them."""
    data = bytes(data)
    if not data or data[0] & _DIGITS > kernels.MOST_DIGITS:
        raise CodecError(f"{_WHAT}: got head {data[:1].hex() or 'missing'}, want digits up to {kernels.MOST_DIGITS}")
    head, at = data[0], 1
    if not head & (SPARSE | DENSE):
        _decode_wholes(data, at, head, out)
        return
    sparse, at = integers.take_section(data, at) if head & SPARSE else (b"", at)
    dense, at = integers.take_section(data, at) if head & DENSE else (b"", at)
    _decode_wholes(data, at, head & _EXPONENT, out)
    words = out.view(np.int64)
    if head & DENSE:
        distances = np.empty(len(out), np.int64)
        integers.decode(dense, 0, distances, _WHAT)
        kernels.add(distances, words)
    integers.put_back(sparse, words, _WHAT)


def _decode_wholes(data: bytes, at: int, exponent: int, out: Values) -> None:
    base, step, numbers = integers.read(data, at, out, _WHAT)
    if numbers is None:
        kernels.fill(base, step, exponent, out)
    else:
        _WIDEN[numbers.itemsize](numbers, base, step, exponent, out)
