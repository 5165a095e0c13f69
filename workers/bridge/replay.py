"""Dead letters once more: what a person chose to be tried again. Owns <bridge>/replay/.

A run of tools/deadletter replay is a *job*, a folder named by a number that grows:

    replay/<job>/00000007.dead   copies of the chosen records of deadletter/00000007.dead, under the same number
    replay/done.json             of the latest jobs, for each file: how many records, points, and refusals by code

The folder appears whole (made under another name, fsynced, renamed). The bridge takes job by job and file by file, and
removes a file when every point of it is durable and everything refused of it lies in the dead letter. Killed before,
it takes the file again: points have an identity, and dead letters are known. done.json is for people, nothing
depends on it.

`Replay` belongs to the loop's thread; `post` to the tool's process.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from common import clock, log
from common.errors import StorageError
from common.files import NewFile, fsync_directory, make_directory, remove_files, replace_file
from workers.bridge import records
from workers.bridge.batch import Message
from workers.bridge.deadletter import KIND, Record, encode, files, read
from workers.bridge.records import Found

FOLDER: Final = "replay"  # in the bridge's directory
LOOK_S: Final = 1.0  # between looks for jobs
RECORDS_PER_TURN: Final = 500  # live messages have their turn in between
BYTES_PER_TURN: Final = 1 << 20
WINDOW: Final = 20_000  # records fed and not durable yet; each costs a Message
JOBS_NOTED: Final = 20
DONE: Final = "done.json"
DUP: Final = 0x08  # in the flags of a PUBLISH: it may have come before
_MAKING: Final = ".making"  # suffix of a job's folder that is not whole yet

logger = log.get("bridge.replay")


class Outcome(NamedTuple):
    """What became of a record. refused: a code for each refusal."""

    points: int
    refused: list[str]


# (record, message that stands for it): decode it, deliver its points, keep what is refused of it.
Feed = Callable[[Record, Message], Outcome]

# (record, number): it lies in the dead letter's file of that number.
Know = Callable[[Record, int], None]


class _Open:
    """A file of which records are fed. counts: records, points; refused: by code; pending: fed, not durable yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = records.number_of(path)
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.pending: deque[Message] = deque()
        self.exhausted = False
        self._records: Iterator[Found[Record]] = read(path)

    def next(self) -> Record | None:
        """The next record, None at the end. Raises StorageError, OSError."""
        found = next(self._records, None)
        self.exhausted = found is None
        return None if found is None else found.record

    @property
    def is_done(self) -> bool:
        """Whether every record was fed and nothing of them waits."""
        while self.pending and not self.pending[0].waiting:
            self.pending.popleft()
        return self.exhausted and not self.pending


class Replay:
    """Feeds the records of jobs to the bridge. counts: records and points fed, by this process. error: why a file
    cannot be replayed, "" if all can.
    """

    def __init__(self, directory: Path, feed: Feed, know: Know) -> None:
        """directory: there once somebody has posted a job."""
        self.counts: Counter[str] = Counter()
        self.error = ""
        self._directory = directory
        self._feed = feed
        self._know = know
        self._file: _Open | None = None
        self._left: set[Path] = set()  # files that cannot be read, folders that cannot be removed
        self._look_s = 0.0
        self._retry_s = 0.0

    @property
    def is_eager(self) -> bool:
        """Whether there are records to be fed that nothing will announce."""
        return self._file is not None and not self._file.exhausted and len(self._file.pending) < WINDOW

    def tick(self, has_room: bool) -> None:
        """Feed some records, if there is room in memory; let go of files that are done; look for others."""
        now = clock.monotonic_s()
        if now < self._retry_s:
            return
        try:
            if self._file is None and now >= self._look_s:
                self._look_s = now + LOOK_S
                self._look()
            if self._file is not None and has_room:
                self._feed_some(self._file)
            if self._file is not None and self._file.is_done:
                self._finish(self._file)
        except (OSError, StorageError) as error:
            self._failed(error, now)

    def status(self) -> dict[str, Any]:
        """For people."""
        file = self._file
        at = None if file is None else f"{file.path.parent.name}/{file.path.name}"
        return {"file": at, "records": self.counts["records"], "points": self.counts["points"], "error": self.error}

    def _look(self) -> None:
        for job in jobs(self._directory):
            paths = files(job)
            readable = [path for path in paths if path not in self._left]
            if readable:
                self._file = _Open(readable[0])
                return
            if not paths and job not in self._left:
                self._left.add(job)
                job.rmdir()

    def _feed_some(self, file: _Open) -> None:
        size = 0
        for _ in range(RECORDS_PER_TURN):
            if size >= BYTES_PER_TURN or len(file.pending) >= WINDOW:
                return
            record = file.next()
            if record is None:
                return
            size += len(record.payload)
            self._feed_one(file, record)

    def _feed_one(self, file: _Open, record: Record) -> None:
        self._know(record, file.number)
        message = Message(record.flags | DUP, b"", record.topic)
        outcome = self._feed(record, message)
        if message.waiting:
            file.pending.append(message)
        for counts in (file.counts, self.counts):
            counts["records"] += 1
            counts["points"] += outcome.points
        for code in outcome.refused:
            file.refused[code] += 1

    def _finish(self, file: _Open) -> None:
        """Note what became of the file and remove it. Raises OSError: then it is tried again."""
        try:
            self._note(file)
        except OSError as error:
            logger.warning("what became of dead letters is not noted", file=file.path, detail=str(error))
        remove_files([file.path])
        if not files(file.path.parent):
            file.path.parent.rmdir()
        logger.info("dead letters replayed", file=file.path, **file.counts, refused=dict(file.refused))
        self._file = None
        self._look_s = 0.0
        if not self._left:
            self.error = ""

    def _note(self, file: _Open) -> None:
        noted = done(self._directory)
        job = noted.setdefault(file.path.parent.name, {})
        job[file.path.name] = {**file.counts, "refused": dict(file.refused)}
        kept = sorted(noted, key=int)[-JOBS_NOTED:]
        replace_file(self._directory / DONE, [json.dumps({name: noted[name] for name in kept}).encode()])

    def _failed(self, error: OSError | StorageError, now: float) -> None:
        self.error = str(error)
        self._retry_s = now + LOOK_S
        if logger.limited("failed", 30.0):
            logger.error("dead letters cannot be replayed", detail=str(error))
        if self._file is not None and not self._file.exhausted:
            self._left.add(self._file.path)  # till the next start; what was fed of it is on its way
            self._file = None


def jobs(directory: Path) -> list[Path]:
    """The folders of jobs that are not done, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def done(directory: Path) -> dict[str, dict[str, Any]]:
    """What became of the latest jobs: job -> file -> records, points, refused by code. Empty where nobody noted it."""
    try:
        noted = json.loads((directory / DONE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {job: each for job, each in noted.items() if job.isdecimal()} if isinstance(noted, dict) else {}


def post(directory: Path, chosen: Iterable[tuple[int, Record]]) -> Path | None:
    """Hand records to the bridge, each with the number of the file that it lies in, in order of that; the job's
    folder, None where there were no records. The caller holds the lock of the directory. Raises OSError.
    """
    _sweep(directory)
    number = max((int(name) for name in [path.name for path in jobs(directory)] + list(done(directory))), default=0)
    making = directory / f"{number + 1}{_MAKING}"
    job = directory / str(number + 1)
    try:
        for file, group in groupby(chosen, key=lambda each: each[0]):
            make_directory(making)
            _write(KIND.path(making, file), file, (record for _, record in group))
    except BaseException:
        _sweep(directory)
        raise
    if not making.exists():
        return None
    making.rename(job)
    fsync_directory(directory)
    return job


def _write(path: Path, number: int, chosen: Iterable[Record]) -> None:
    with NewFile(path) as file:
        for record in chosen:
            file.write(KIND.pack(encode(record), number))
        file.commit()


def _sweep(directory: Path) -> None:
    """Remove what a run that was killed had begun."""
    for folder in directory.glob("*" + _MAKING):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
