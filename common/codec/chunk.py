"""Numbers through pcodec: the only module that imports it. Pure.

A chunk is what pcodec calls wrapped: the metadata of one chunk and its one page, one behind the other, with neither
count nor length, which the block around it knows. It is written in the format that pcodec 1 writes (4.1), or begins
with the two bytes of another version; the byte at the head of the block has the bit VERSIONED set if it does.
What is inside: https://github.com/pcodec/pcodec/blob/main/docs/format.md
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec
from pcodec.wrapped import FileCompressor, FileDecompressor

from common.errors import CodecError

VERSIONED: Final = 0x80
_USUAL: Final = b"\x04\x01"
_VERSION_BYTES: Final = 2
_TYPES: Final = {
    np.dtype(np.uint16): "u16",
    np.dtype(np.uint32): "u32",
    np.dtype(np.uint64): "u64",
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
}

_compressor: Final = FileCompressor()
_written: Final[bytes] = _compressor.write_header()
_usual_decompressor: Final = FileDecompressor.new(_USUAL)[0]
_prefix: Final = b"" if _written == _USUAL else _written
HEAD: Final = VERSIONED if _prefix else 0  # to be set in the head of every block that packs a chunk


def _classic(order: int) -> Any:
    delta = DeltaSpec.try_consecutive(order) if order else DeltaSpec.no_op()
    return ChunkConfig(mode_spec=ModeSpec.classic(), delta_spec=delta)


CLASSIC: Final = tuple(_classic(order) for order in range(3))  # by how often differences are taken first
AUTO: Final = ChunkConfig(mode_spec=ModeSpec.auto(), delta_spec=DeltaSpec.auto())  # tries out what pcodec can do


def pack(numbers: npt.NDArray[Any], config: Any) -> bytes:
    """The chunk of an array of uint16, uint32, uint64, float32 or float64."""
    chunk = _compressor.chunk_compressor(numbers, config)
    packed: bytes = _prefix + chunk.write_meta() + chunk.write_page(0)
    return packed


def unpack(data: bytes, at: int, head: int, out: npt.NDArray[Any], what: str) -> None:
    """Fill `out`, of the type that was packed, from the chunk that reaches from an offset to the end.

    head: the first byte of the block. Raises CodecError when that is not a chunk of so many numbers.
    """
    try:
        decompressor = _usual_decompressor
        if head & VERSIONED:
            decompressor = FileDecompressor.new(data[at : at + _VERSION_BYTES])[0]
            at += _VERSION_BYTES
        rest = data[at:]
        chunk, meta_bytes = decompressor.chunk_decompressor(rest, _TYPES[out.dtype])
        progress, page_bytes = chunk.read_page_into(rest[meta_bytes:], len(out), out)
    except RuntimeError as error:  # the only thing that pcodec raises on bytes
        raise CodecError(f"{what}: {error}, in {len(data) - at} bytes for {len(out)} numbers") from error
    if not progress.finished or meta_bytes + page_bytes != len(rest):
        raise CodecError(
            f"{what}: {len(out)} numbers end at byte {meta_bytes + page_bytes} of {len(rest)}, want all of them"
        )
