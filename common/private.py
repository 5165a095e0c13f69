"""Files that hold secrets: the key of the bus, tokens, the key of TLS. Read only where nobody else may read them.

Any thread.
"""

import os
import stat
from pathlib import Path
from typing import Final

from common import files
from common.errors import ConfigError

MODE: Final = 0o600  # what such files are written with


def read(path: Path, what: str, closed_to: int = 0o077) -> str:
    """The text of a secret file. what: the setting that names it, for texts; closed_to: bits its mode must not have.

    Raises ConfigError when it cannot be read, is not UTF-8, or is open to others than its owner.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & closed_to:
                raise ConfigError(f"{what}: {path} has mode {mode:04o}, want 0600: chmod 600 {path}")
            return file.read().decode()
    except OSError as error:
        raise ConfigError(f"{what}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: {path} is not UTF-8 text") from error


def write(path: Path, text: str, what: str) -> None:
    """Replace a secret file, or make it, readable by its owner alone. Raises ConfigError when it cannot be written."""
    try:
        files.DISK.remove(path.with_name(path.name + files.TEMPORARY))  # a leftover would keep the mode that it has
        files.replace_file(path, [text.encode()], mode=MODE)
    except OSError as error:
        raise ConfigError(f"{what}: cannot write {path}: {error.strerror}") from error
