"""Durable files: atomic replace, fsync of directories, CRC32C, locks. The only way minitrue replaces a file.

A name in a directory is durable only once the directory itself was fsynced, so every function here that
creates, renames or removes a name does that too.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crc32c import crc32c as _crc32c

from common.errors import StorageError


def crc32c(data: Any, value: int = 0) -> int:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of a bytes-like object, continued from `value`."""
    return int(_crc32c(data, value))


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, each made durable in the one above it."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    fsync_directory(path.parent)


def replace_file(path: Path, chunks: Iterable[Any], mode: int = 0o644) -> None:
    """Write a whole file so that after a crash either the old or the new content is there, never a mixture.

    chunks: bytes-like parts, written in order. The temporary name is the path with ".tmp" added; a leftover of
    it is garbage.
    """
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        for chunk in chunks:
            write_all(descriptor, chunk)
        os.fsync(descriptor)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    temporary.rename(path)
    fsync_directory(path.parent)


def write_all(descriptor: int, data: Any) -> None:
    """Write every byte; os.write may stop early on a full disk or a signal."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def remove_files(paths: Iterable[Path]) -> None:
    """Unlink files of one or several directories and make that durable. Missing ones are no error."""
    directories = set()
    for path in paths:
        path.unlink(missing_ok=True)
        directories.add(path.parent)
    for directory in directories:
        fsync_directory(directory)


class DirectoryLock:
    """Holds a directory for one process: an exclusive flock on its LOCK file, gone when the process dies."""

    def __init__(self, directory: Path) -> None:
        """Raises StorageError when another process holds the directory, or LOCK cannot be opened."""
        try:
            self._descriptor = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{directory / 'LOCK'}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise StorageError(f"{directory} is in use by another process") from error

    def release(self) -> None:
        """Let the directory go."""
        os.close(self._descriptor)
