"""The numbers by which a block names its codecs. Pure."""

from enum import IntEnum


class CodecId(IntEnum):
    """What a block says of its timestamps, and of its values, in a byte each. A number is never used again."""

    RAW = 0
    GORILLA = 1
    CONSTANT = 2
    DECIMAL = 3
    PCO = 4
    GRID = 5
