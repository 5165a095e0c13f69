"""Durable files: atomic replace, fsync of directories, CRC32C, locks. The only way minitrue replaces a file.

A name in a directory is durable only once the directory itself was fsynced, so every function here that
creates, renames or removes a name does that too. What changes files goes through a Disk: one method per system call.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from crc32c import crc32c as _crc32c

from common.errors import StorageError

TEMPORARY: Final = ".tmp"  # added to the name of a file that is not whole yet; a leftover is garbage


def crc32c(data: Any, value: int = 0) -> int:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of a bytes-like object, continued from `value`."""
    return int(_crc32c(data, value))


class Disk:
    """The system calls that change files, one method each, so that tests can make each of them fail or be the last.

    Any thread. All raise OSError.
    """

    def create(self, path: Path, mode: int = 0o644, exclusive: bool = False) -> int:
        """An empty file for writing; its descriptor. exclusive: whether the file must not be there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC), mode)

    def open(self, path: Path) -> int:
        """A file that is there, for writing; its descriptor."""
        return os.open(path, os.O_WRONLY)

    def write(self, descriptor: int, data: Any) -> None:
        """Write every byte of a bytes-like object."""
        write_all(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Make a file durable: bytes, length and attributes."""
        os.fsync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        """Make what was written durable, and the length that it needs."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file to its first `length` bytes."""
        os.ftruncate(descriptor, length)

    def close(self, descriptor: int) -> None:
        """Let a file go."""
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, in place of what bore that."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """Remove a name. A missing one is no error."""
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        """Make a directory in one that is there."""
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK: Final = Disk()


def fsync_directory(path: Path, disk: Disk = DISK) -> None:
    """Make the names in a directory durable."""
    disk.sync_directory(path)


def make_directory(path: Path, disk: Disk = DISK) -> None:
    """Create a directory and its missing parents, each made durable in the one above it."""
    if path.is_dir():
        return
    make_directory(path.parent, disk)
    disk.make_directory(path)
    disk.sync_directory(path.parent)


class NewFile:
    """A file that is there whole once `commit` returned, and not at all before: what bore its name stays till then.

    Written under the path with ".tmp" added; a leftover of that is garbage. As a context manager it aborts when
    the block ends without a commit. Belongs to one thread.
    """

    def __init__(self, path: Path, disk: Disk = DISK, mode: int = 0o644) -> None:
        """Raises OSError, as all methods do."""
        self.path = path
        self.length = 0  # bytes written
        self._disk = disk
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._descriptor = disk.create(self._temporary, mode)
        self._named = False  # whether the file bears its own name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def write(self, data: Any) -> None:
        """Add every byte of a bytes-like object."""
        self._disk.write(self._descriptor, data)
        self.length += memoryview(data).nbytes

    def commit(self) -> None:
        """Make the bytes durable, then the name. Should that fail, `abort` removes the temporary file."""
        self._disk.sync(self._descriptor)
        self._close()
        self._disk.rename(self._temporary, self.path)
        self._named = True
        self._disk.sync_directory(self.path.parent)

    def abort(self) -> None:
        """Remove what was written. Does nothing when that bears its own name, or is gone."""
        try:
            self._close()
        finally:
            if not self._named:
                self._disk.remove(self._temporary)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._disk.close(descriptor)


def replace_file(path: Path, chunks: Iterable[Any], mode: int = 0o644, disk: Disk = DISK) -> None:
    """Write a whole file so that after a crash either the old or the new content is there, never a mixture.

    chunks: bytes-like parts, written in order. The temporary name is the path with ".tmp" added; a leftover of
    it is garbage.
    """
    with NewFile(path, disk, mode) as file:
        for chunk in chunks:
            file.write(chunk)
        file.commit()


def write_all(descriptor: int, data: Any) -> None:
    """Write every byte; os.write may stop early on a full disk or a signal."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def remove_files(paths: Iterable[Path], disk: Disk = DISK) -> None:
    """Unlink files of one or several directories and make that durable. Missing ones are no error."""
    directories = {}
    for path in paths:
        disk.remove(path)
        directories[path.parent] = True
    for directory in directories:
        disk.sync_directory(directory)


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
        """Let the directory go; nothing when it was let go before: the descriptor may be another file's by now."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
