"""Gorilla, slow and obvious: strings of "0" and "1". The oracle for the codec; imports nothing of minitrue.

Written from Pelkonen et al., VLDB 2015, section 4.1, and the differences that docs/file-formats.md names.
`paper=True` gives the paper's rule for windows (one that fits is always reused), otherwise a window is renewed where
that is cheaper.
"""

import struct
from itertools import pairwise

WORD = 2**64
UNITS_NS = (1, 1_000, 1_000_000, 1_000_000_000)
# prefix, bits of the number, lowest and highest delta of delta
TIME_CODES = [
    ("0", 0, 0, 0),
    ("10", 7, -63, 64),
    ("110", 9, -255, 256),
    ("1110", 12, -2047, 2048),
    ("11110", 32, -(2**31), 2**31 - 1),
    ("11111", 64, -(2**63), 2**63 - 1),
]


def binary(number, width):
    """The low `width` bits of a number, as text."""
    return format(number % 2**width, f"0{width}b") if width else ""


def signed(word):
    return word - WORD if word >= WORD // 2 else word


def to_bytes(bits):
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def from_bytes(data):
    return "".join(format(byte, "08b") for byte in data)


def word_of(value):
    return int.from_bytes(struct.pack(">d", value), "big")


def value_bits(words, paper=False):
    """The bit stream, as text, of float64 values given by their 64 bits as integers."""
    bits = binary(words[0], 64)
    window = None
    for before, word in pairwise(words):
        xor = binary(before ^ word, 64)
        if "1" not in xor:
            bits += "0"
            continue
        lead = min(len(xor) - len(xor.lstrip("0")), 31)
        trail = len(xor) - len(xor.rstrip("0"))
        fits = window is not None and lead >= window[0] and trail >= window[1]
        new_cost = 2 + 5 + 6 + 64 - lead - trail
        if fits and (paper or 2 + 64 - window[0] - window[1] <= new_cost):
            bits += "10" + xor[window[0] : 64 - window[1]]
        else:
            window = (lead, trail)
            length = 64 - lead - trail
            bits += "11" + binary(lead, 5) + binary(length, 6) + xor[lead : 64 - trail]
    return bits


def encode_values(words, paper=False):
    return to_bytes(value_bits(words, paper))


def decode_values(data, count):
    bits = from_bytes(data)
    words, at = [int(bits[:64], 2)], 64
    lead = length = None
    while len(words) < count:
        if bits[at] == "0":
            words.append(words[-1])
            at += 1
            continue
        if bits[at : at + 2] == "11":
            lead = int(bits[at + 2 : at + 7], 2)
            length = int(bits[at + 7 : at + 13], 2) or 64
            at += 13
        else:
            at += 2
        xor = int(bits[at : at + length], 2) << (64 - lead - length)
        at += length
        words.append(words[-1] ^ xor)
    return words


def unit_of(times):
    return max(unit for unit, ns in enumerate(UNITS_NS) if all(time % ns == 0 for time in times))


def time_bits(times):
    bits = binary(times[0], 64)
    before, delta = times[0], 0
    for time in times[1:]:
        second = signed((time - before - delta) % WORD)
        for prefix, width, low, high in TIME_CODES:
            if low <= second <= high:
                bits += prefix + binary(second, width)
                break
        delta = (time - before) % WORD
        before = time
    return bits


def encode_times(times):
    unit = unit_of(times)
    return bytes([unit]) + to_bytes(time_bits([time // UNITS_NS[unit] for time in times]))


def decode_times(data, count):
    unit, bits = UNITS_NS[data[0]], from_bytes(data[1:])
    times, at, delta = [signed(int(bits[:64], 2))], 64, 0
    while len(times) < count:
        for prefix, width, low, high in TIME_CODES:
            if bits.startswith(prefix, at):
                at += len(prefix)
                number = int(bits[at : at + width] or "0", 2)
                at += width
                second = number if number <= high else number - 2**width
                assert low <= second <= high
                break
        delta = (delta + second) % WORD
        times.append(signed((times[-1] + delta) % WORD))
    return [time * unit for time in times]
