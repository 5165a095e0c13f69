"""What the embedded broker keeps over a clean stop: persistent sessions, what they are owed, retained messages.

Owns <data>/broker/sessions.msgpack: one msgpack array [version, sessions, retained], replaced whole at a stop and
removed at the next start, so that a broker that is killed later does not bring old messages back.
"""

from pathlib import Path
from typing import Final

import msgspec

from common import files, log
from common.errors import StorageError
from workers.embedded.outbox import Message

VERSION: Final = 1

logger = log.get("broker")


class SavedSession(msgspec.Struct, array_like=True):
    """A session without its connection. subscriptions: filter and QoS."""

    client_id: str
    subscriptions: list[tuple[str, int]]
    messages: list[Message]


class Saved(msgspec.Struct, array_like=True):
    """The content of the file. retained: topic, payload, QoS."""

    version: int
    sessions: list[SavedSession]
    retained: list[tuple[str, bytes, int]]


def load(path: Path) -> Saved:
    """The sessions kept at the last clean stop. What cannot be decoded is set aside and said.

    Raises StorageError for a file of another version.
    """
    if not path.exists():
        return Saved(VERSION, [], [])
    try:
        saved = msgspec.msgpack.decode(path.read_bytes(), type=Saved)
    except msgspec.MsgspecError as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        logger.error("sessions kept at the last stop are lost", file=str(aside), error=str(error))
        return Saved(VERSION, [], [])
    if saved.version != VERSION:
        raise StorageError(f"{path}: version {saved.version}, this program reads {VERSION}")
    return saved


def save(path: Path, saved: Saved) -> None:
    """Keep the sessions for the next start. Raises StorageError."""
    try:
        files.replace_file(path, [msgspec.msgpack.encode(saved)], mode=0o600)
    except OSError as error:
        raise StorageError(f"{path}: sessions and queued messages cannot be kept: {error}") from error
    messages = sum(len(each.messages) for each in saved.sessions)
    logger.info("sessions kept", sessions=len(saved.sessions), messages=messages)
