"""The session that the broker keeps for us: which filters it holds by our doing, and what to undo.

Owns <bridge>/subscriptions.json. A filter is noted before it is subscribed, so that one which the configuration has
lost is unsubscribed however the bridge ended: a session outlives the bridge, and would go on collecting messages for
a filter that nobody wants. Notes are kept by broker and client id, because those name a session.

No socket. Belongs to the loop's thread.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from common import config, log
from common.files import replace_file
from common.topics import covers

FILE_NAME: Final = "subscriptions.json"
MAX_SESSIONS: Final = 16  # in the file; client ids are seldom changed

logger = log.get("bridge.mqtt")


class Asked(NamedTuple):
    """One filter of a SUBSCRIBE. filter: as the broker is told; serves: the configuration's filters that it brings."""

    filter: str
    qos: int
    serves: tuple[str, ...]


def to_ask(mqtt: config.Mqtt) -> list[Asked]:
    """What to subscribe to, in the order of the configuration: no filter that lies within another.

    Brokers may send a message once for each filter that matches it (mosquitto 2.0.11 does), and a point without a time
    would be stored as often. The wider filter has the highest QoS of those that it serves.
    """
    filters = [each.filter for each in mqtt.subscriptions]
    asked = []
    for wide in filters:
        if any(covers(other, wide) for other in filters if other != wide):
            continue
        served = [each for each in mqtt.subscriptions if covers(wide, each.filter)]
        sent = f"$share/{mqtt.share_group}/{wide}" if mqtt.share_group else wide
        asked.append(Asked(sent, max(each.qos for each in served), tuple(each.filter for each in served)))
    return asked


class Session:
    """What we know of our session. lost: how often the broker began a new one though we had one."""

    def __init__(self, path: Path, name: str, wanted: Sequence[str]) -> None:
        """path: of the notes. name: broker and client id. wanted: the filters of the configuration, as sent."""
        self.lost = 0
        self._path = path
        self._name = name
        self._wanted = list(dict.fromkeys(wanted))
        self._notes = _read(path)

    def begin(self, is_resumed: bool) -> list[str]:
        """To be called before SUBSCRIBE. The filters to unsubscribe, because an earlier configuration left them."""
        known = self._notes.get(self._name, [])
        if known and not is_resumed:
            self.lost += 1
            logger.warning("the broker has lost our session, by expiry or restart, and what it had queued for us")
        stale = [each for each in known if each not in self._wanted] if is_resumed else []
        self._note(self._wanted + stale)
        return stale

    def settled(self) -> None:
        """The broker has none of our filters but those of the configuration."""
        self._note(self._wanted)

    def _note(self, filters: list[str]) -> None:
        if self._notes.get(self._name) == filters:
            return
        others = {name: noted for name, noted in self._notes.items() if name != self._name}
        self._notes = dict(list(others.items())[1 - MAX_SESSIONS :]) | {self._name: filters}
        try:
            replace_file(self._path, [json.dumps(self._notes, indent=1).encode()])
        except OSError as error:
            logger.error(
                "subscriptions cannot be noted; if they change, unsubscribe the old ones by hand",
                file=str(self._path),
                reason=str(error),
            )


def _read(path: Path) -> dict[str, list[str]]:
    """The notes: session name -> filters. Without a file, or with one that is none of ours, there are none."""
    try:
        notes = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("subscriptions of earlier runs are not known", file=str(path), reason=str(error))
        return {}
    if not isinstance(notes, dict) or not all(_is_filters(each) for each in notes.values()):
        logger.warning("subscriptions of earlier runs are not known", file=str(path), reason="not a table of lists")
        return {}
    return notes


def _is_filters(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)
