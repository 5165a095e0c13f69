"""The exception tree. Every error that minitrue raises on purpose is a MinitrueError.

Texts say what was got, what was wanted, and where (path, offset, series, key).
A broken invariant of our own code starts with "BUG:".
"""

from typing import Final

import msgspec

# What msgspec raises for received bytes: also for text that is no UTF-8, and for nesting without end.
MSGSPEC_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class MinitrueError(Exception):
    """Root of the tree; command lines print it in one line and exit with 1."""


class ConfigError(MinitrueError):
    """A setting, configuration file or environment override that cannot be used."""


class ProtocolError(MinitrueError):
    """Bytes received from elsewhere that are not a message of this cluster and version."""


class PayloadError(MinitrueError):
    """A sensor's payload, or one element of it, that cannot become a point."""


class RingError(MinitrueError):
    """A ring document that breaks an invariant, or a change that would."""


class RingStoreError(MinitrueError):
    """The ring store cannot be read or written. After a save it may have the ring or not."""


class RingConflictError(RingStoreError):
    """Another writer was first: nothing was saved, look at the store again."""


class CodecError(MinitrueError):
    """Encoded bytes that cannot be decoded."""


class StorageError(MinitrueError):
    """A data directory, WAL or segment that cannot be used, or a disk that fails."""


class QueryError(MinitrueError):
    """A question that cannot be answered as asked.

    field: the request's field at fault, or None.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
