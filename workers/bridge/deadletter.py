"""The dead letter: what was refused, kept with the reason until someone looks. Owns <bridge>/deadletter/.

Record files (workers/bridge/records.py) 00000001.dead, 00000002.dead, ..., magic "MTDL". The body of a record is a
msgpack array

    [version = 1, time_ns, topic, payload, code, reason, flags, device]

time_ns: arrival. topic, payload: bytes as received (payload may be one element of an array). code: what the
refusal is counted by; reason: in words. flags: the PUBLISH frame's first byte (bit 0 retain, bits 1-2 QoS, bit 3
dup). device: id of the device as far as it was known, else ""; records of before have no such element.

Durable in groups: `append` only gathers; `flush` writes, fsyncs once and then releases what waited. While the
disk fails or the files have reached their limit, records stay in memory and wait (no PUBACK goes out for them), and
flush tries again.

Once, as far as a repetition can be told: a record that may be one is not written again while the first lies in a
file. Known are the last KNOWN / 2 records at least.

Files may be removed by others at any time but for the newest, to which records go: a file named "roll" beside them
asks for a new one. Numbers never restart, so a number names one file for ever. Belongs to the loop's thread.
"""

import hashlib
import heapq
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from common import clock, log
from common.errors import MSGSPEC_ERRORS, StorageError
from common.files import DISK, Disk, make_directory, replace_file
from common.protocol import DeadLetters
from workers.bridge import records
from workers.bridge.records import Found, Kind, Window, Writer
from workers.bridge.tally import Sample, Tally, sample

VERSION: Final = 1
KIND: Final = Kind(b"MTDL", ".dead")
FOLDER: Final = "deadletter"  # in the bridge's directory
ROLL: Final = "roll"
RETRY_S: Final = 1.0  # after a failed write, or while full; a disk does not empty faster
LOOK_S: Final = 1.0  # between looks for ROLL
LIST_S: Final = 5.0  # between looks at which files are left
KNOWN: Final = 200_000  # records in memory, some 100 bytes each; more than mqtt.receive_maximum lets come twice
KNOWN_BYTES: Final = 256 << 20  # of files, read at start to know their records; seconds even on an SD card
DEVICES: Final = 1000  # counted by name; a name is invented by whoever publishes
DEVICES_IN_STATUS: Final = 10
DEVICE_CHARS: Final = 64  # kept of a device's id
UNKNOWN_DEVICE: Final = "(unknown)"
OTHER_DEVICES: Final = "(other)"

logger = log.get("bridge.deadletter")


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One dead letter; see the module's text."""

    version: int
    time_ns: int
    topic: bytes
    payload: bytes
    code: str
    reason: str
    flags: int
    device: str = ""


class Holdable(Protocol):
    """What waits for a record to become durable: a Message or a Release."""

    def hold(self) -> None: ...

    def release(self) -> None: ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class _Gathered(NamedTuple):
    """A record on its way to the disk. body: encoded."""

    body: bytes
    code: str
    device: str
    identity: int
    sample: Sample
    waiters: list[Holdable]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return records.HEAD.size + len(self.body)


class _Lying(NamedTuple):
    """What lies in a file. identities: of its records, oldest first. end: the offset behind the last one. whole:
    whether the disk gave every byte.
    """

    number: int
    identities: list[int]
    tally: Tally
    end: int
    whole: bool


class _Known:
    """In which file a record lies, by identity, for the latest ones: KNOWN / 2 to KNOWN of them."""

    def __init__(self) -> None:
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def add(self, identity: int, number: int) -> None:
        if len(self._young) >= KNOWN // 2:
            self._old, self._young = self._young, {}
        self._young[identity] = number

    def file_of(self, identity: int) -> int | None:
        return self._young.get(identity, self._old.get(identity))


class DeadLetter:
    """Appends records.

    counts: records made durable, by code; devices: by device, DEVICES of them by name. repeats: records that were
    not written again. error: why records wait, "" if none does. gathered_bytes: in memory, not durable yet. bytes:
    of all files, as last looked. limit_bytes: when they have reached it nothing is written.
    """

    def __init__(self, directory: Path, file_bytes: int, limit_bytes: int, disk: Disk = DISK) -> None:
        """directory: made if missing; this process must hold the lock above it. file_bytes: a file that has
        reached them is followed by another. Raises StorageError.
        """
        self.counts: Counter[str] = Counter()
        self.devices: Counter[str] = Counter()
        self.repeats = 0
        self.error = ""
        self.gathered_bytes = 0
        self.bytes = 0
        self.limit_bytes = limit_bytes
        self._directory = directory
        self._gathered: deque[_Gathered] = deque()
        self._waiting: dict[int, _Gathered] = {}  # the gathered ones, by identity
        self._known = _Known()
        self._retry_s = 0.0
        self._look_s = 0.0
        self._list_s = 0.0
        self._tally = Tally()
        try:
            make_directory(directory, disk)
            self._writer = self._resume(file_bytes, disk)
            self.bytes = size_of(directory)
        except OSError as error:
            raise StorageError(f"dead letter {directory}: {error.strerror}") from error

    def append(self, record: Record, waiter: Holdable, repeat: bool = False) -> None:
        """Gather a record; the waiter is held until it is durable.

        repeat: it may have been appended before, by an earlier process perhaps. Where an identical one lies, in all
        but time and reason, nothing is written; where that is not durable yet the waiter waits for it.
        """
        identity = _identity(record)
        if repeat and self._has(identity, waiter):
            self.repeats += 1
            return
        waiter.hold()
        gathered = _Gathered(encode(record), record.code, record.device, identity, _sample(record), [waiter])
        self._gathered.append(gathered)
        self._waiting[identity] = gathered
        self.gathered_bytes += gathered.size

    def know(self, record: Record, number: int) -> None:
        """Learn that a record lies in the file of this number."""
        self._known.add(_identity(record), number)

    def flush(self) -> None:
        """Make what was gathered durable and release its waiters, or keep it and note why not."""
        now = clock.monotonic_s()
        if now >= self._look_s:
            self._look(now)
        if not self._gathered or now < self._retry_s:
            return
        try:
            while self._gathered and self._has_room():
                self._write_some()
        except OSError as error:
            self._wait(error.strerror or str(error), now)
            return
        if self._gathered:
            limit = f"limit {self.limit_bytes} (bridge.dead_letter_bytes)"
            self._wait(f"full: {self.bytes} bytes, {limit}; make room with tools/deadletter purge", now)
        else:
            self.error = ""

    def top_devices(self, most: int) -> dict[str, int]:
        """The devices with most records made durable by this process; the rest together as OTHER_DEVICES."""
        top = dict(heapq.nlargest(most, self.devices.items(), key=lambda item: item[1]))
        rest = self.devices.total() - sum(top.values())
        return top | ({OTHER_DEVICES: top.get(OTHER_DEVICES, 0) + rest} if rest else {})

    def status(self) -> dict[str, Any]:
        """For people."""
        return {
            "stored": dict(self.counts),
            "devices": self.top_devices(DEVICES_IN_STATUS),
            "bytes": self.bytes,
            "limit_bytes": self.limit_bytes,
            "waiting": len(self._gathered),
            "error": self.error,
        }

    def told(self) -> DeadLetters:
        """For the page: what lies here, by code."""
        self._look_at_files(clock.monotonic_s())
        return DeadLetters(
            self._tally.counts(), self._tally.samples(), self._tally.uncounted_bytes, self.bytes, self.limit_bytes,
            len(self._gathered), self.error,
        )  # fmt: skip

    def close(self) -> None:
        """Close the file. What was not flushed is lost here, and not acknowledged either."""
        try:
            self._writer.close()
        except OSError as error:
            logger.warning("dead letter not closed well", directory=self._directory, detail=error.strerror)

    def _has(self, identity: int, waiter: Holdable) -> bool:
        """Whether such a record lies in a file, or is about to: then the waiter waits with it."""
        gathered = self._waiting.get(identity)
        if gathered is not None:
            waiter.hold()
            gathered.waiters.append(waiter)
            return True
        number = self._known.file_of(identity)
        return number is not None and KIND.path(self._directory, number).exists()

    def _has_room(self) -> bool:
        """Whether another record may begin. Who made room does not tell, so it is looked for."""
        if self.bytes >= self.limit_bytes:
            self.bytes = size_of(self._directory)
        return self.bytes < self.limit_bytes

    def _write_some(self) -> None:
        """Write the records that still begin in the newest file, or in a new one."""
        if not KIND.path(self._directory, self._writer.number).exists():
            self._writer.close()  # removed, against the rules: what is written to it would be gone with it
        room = self.limit_bytes - self.bytes
        for span in self._writer.append(_bodies(self._gathered, room)):
            self.bytes += span.end - span.begin
            self._release(self._gathered.popleft(), span.number)

    def _release(self, gathered: _Gathered, number: int) -> None:
        if self._waiting.get(gathered.identity) is gathered:
            del self._waiting[gathered.identity]
        self._known.add(gathered.identity, number)
        self._tally.add(number, gathered.code, gathered.sample)
        self.gathered_bytes -= gathered.size
        self.counts[gathered.code] += 1
        device = gathered.device or UNKNOWN_DEVICE
        self.devices[device if device in self.devices or len(self.devices) < DEVICES else OTHER_DEVICES] += 1
        for waiter in gathered.waiters:
            waiter.release()

    def _wait(self, reason: str, now: float) -> None:
        self.error = reason
        self._retry_s = now + RETRY_S
        if logger.limited("waiting", 10.0):
            logger.error(
                "dead letter cannot be written, PUBACKs are withheld",
                directory=self._directory, detail=reason, records=len(self._gathered),
            )  # fmt: skip

    def _look(self, now: float) -> None:
        """Begin a new file if somebody asks for that."""
        self._look_s = now + LOOK_S
        marker = self._directory / ROLL
        try:
            if not marker.exists():
                return
            if self._writer.size or not KIND.path(self._directory, self._writer.number).exists():
                self._writer.roll()
            marker.unlink()
            self.bytes = size_of(self._directory)
        except OSError as error:
            if logger.limited("roll", 10.0):
                logger.error("dead letter cannot begin a new file", directory=self._directory, detail=error.strerror)

    def _look_at_files(self, now: float) -> None:
        """Forget what lay in files that were removed."""
        if now < self._list_s:
            return
        self._list_s = now + LIST_S
        try:
            left = files(self._directory)
            self.bytes = size_of(self._directory)
        except OSError as error:
            if logger.limited("list", 10.0):
                logger.error("dead letter cannot be listed", directory=self._directory, detail=error.strerror)
        else:
            self._tally.keep([records.number_of(path) for path in left])

    def _resume(self, file_bytes: int, disk: Disk) -> Writer:
        """Go on in the newest file, its torn tail cut off; know what lies in the newest ones."""
        paths = files(self._directory)
        if not paths:
            return Writer(self._directory, KIND, 0, file_bytes, disk)
        newest = _lying(paths[-1])
        seen = [newest]
        count, size = len(newest.identities), paths[-1].stat().st_size
        for path in reversed(paths[:-1]):
            bytes_here = path.stat().st_size
            size += bytes_here
            if count >= KNOWN or size > KNOWN_BYTES:
                self._tally.leave_out(records.number_of(path), bytes_here)
                continue
            seen.append(_lying(path))
            count += len(seen[-1].identities)
        for lying in reversed(seen):
            for identity in lying.identities:
                self._known.add(identity, lying.number)
            self._tally.join(lying.tally)
        if not newest.whole:
            logger.error("dead letter cannot be read everywhere, going on in another file", file=paths[-1])
            return Writer(self._directory, KIND, records.number_of(paths[-1]), file_bytes, disk)
        return self._open(paths[-1], newest.end, file_bytes, disk)

    def _open(self, path: Path, end: int, file_bytes: int, disk: Disk) -> Writer:
        writer = Writer(self._directory, KIND, records.number_of(path), file_bytes, disk)
        torn = path.stat().st_size - end
        if torn:
            logger.warning("torn tail of the dead letter cut off", file=path, bytes=torn)
        writer.resume(end)
        return writer


def shown_device(device: str) -> str:
    """A device's id as a record keeps it: it comes from outside, so of any length and perhaps not even text."""
    return device[:DEVICE_CHARS].encode(errors="replace").decode()


def files(directory: Path) -> list[Path]:
    """The dead letter's files, oldest first."""
    return KIND.files(directory)


def size_of(directory: Path) -> int:
    """Bytes of all files."""
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(KIND.suffix):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue  # removed meanwhile
    return total


def read(path: Path) -> Iterator[Found[Record]]:
    """The records of a file, oldest first; damage is passed over. Raises StorageError for a newer version, OSError.

    path: under the name that the bridge gave it, whose number is part of the checksums.
    """
    return records.read(path, KIND, _decode)


def ask_for_new_file(directory: Path) -> Path:
    """Ask the bridge that runs to begin a new file; the marker that is gone when it has. Raises OSError."""
    marker = directory / ROLL
    replace_file(marker, [])
    return marker


def begin_new_file(directory: Path) -> None:
    """Begin a new file while no bridge runs: the caller holds the lock above. Raises OSError."""
    paths = files(directory)
    if paths and paths[-1].stat().st_size:
        writer = Writer(directory, KIND, records.number_of(paths[-1]), 1)
        writer.roll()
        writer.close()


def encode(record: Record) -> bytes:
    """The body of a record."""
    return _encoder.encode(record)


def _decode(body: bytes) -> Record:
    try:
        record = _decoder.decode(body)
    except MSGSPEC_ERRORS as error:
        raise StorageError(str(error)) from error
    if record.version != VERSION:
        raise StorageError(f"the dead letter has version {record.version}, want {VERSION}")
    return record


def _identity(record: Record) -> int:
    """Of all records that say the same: topic, payload and code. Times and texts differ from one try to the next."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (record.topic, record.code.encode(), record.payload):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def _sample(record: Record) -> Sample:
    return sample(record.time_ns, record.topic, record.payload, record.reason, record.device)


def _lying(path: Path) -> _Lying:
    """What lies in a file."""
    identities, end, tally = [], 0, Tally()
    number = records.number_of(path)
    with path.open("rb", buffering=0) as file:
        window = Window(file.fileno(), os.fstat(file.fileno()).st_size)
        while (each := records.first(window, KIND, path, end, _decode)) is not None:
            identities.append(_identity(each.record))
            tally.add(number, each.record.code, _sample(each.record))
            end = each.end
    return _Lying(number, identities, tally, end, not window.unreadable)


def _bodies(gathered: deque[_Gathered], room: int) -> Iterator[bytes]:
    """The bodies of the records that begin within so many bytes."""
    for record in gathered:
        yield record.body
        room -= record.size
        if room <= 0:
            return
