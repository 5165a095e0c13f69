"""What the dead letter tells of itself: how many records lie in which file, by code, and the last ones. Owns these.

Bounded: a count by file and code, and SAMPLES short samples by code. What is told takes at most TOLD_CHARS characters
of text, the newest of each code first, because it goes to every node with every beat. Files may be removed by others at
any time; then what lay in them is forgotten. Belongs to the loop's thread.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from common.protocol import DeadLetterSample

SAMPLES: Final = 5  # by code
TOPIC_BYTES: Final = 200
PAYLOAD_BYTES: Final = 500
REASON_CHARS: Final = 300
TOLD_CHARS: Final = 16_000  # of all samples


class Sample(NamedTuple):
    """The beginning of a record. number: of its file, 0 while it is on its way there."""

    number: int
    time_ns: int
    topic: bytes
    payload: bytes
    payload_bytes: int
    reason: str
    device: str

    @property
    def chars(self) -> int:
        """How much text it is, at most."""
        return len(self.topic) + len(self.payload) + len(self.reason) + len(self.device)

    def shown(self) -> DeadLetterSample:
        """The sample for people."""
        return DeadLetterSample(
            self.time_ns, _text(self.topic), _text(self.payload), self.payload_bytes, self.reason, self.device
        )


def sample(time_ns: int, topic: bytes, payload: bytes, reason: str, device: str) -> Sample:
    """The sample of a record."""
    start = topic[:TOPIC_BYTES], payload[:PAYLOAD_BYTES]
    return Sample(0, time_ns, *start, len(payload), reason[:REASON_CHARS], device)


class Tally:
    """See the module's text."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}  # by number of the file
        self._uncounted: dict[int, int] = {}  # bytes of files that were not read, by number
        self._samples: dict[str, deque[Sample]] = {}  # by code, the newest last

    def add(self, number: int, code: str, sample: Sample) -> None:
        """A record lies in the file of this number."""
        self._counts.setdefault(number, Counter())[code] += 1
        self._samples.setdefault(code, deque(maxlen=SAMPLES)).append(sample._replace(number=number))

    def join(self, later: "Tally") -> None:
        """What another tally has of other files, whose records are younger."""
        self._counts |= later._counts
        for code, samples in later._samples.items():
            self._samples.setdefault(code, deque(maxlen=SAMPLES)).extend(samples)

    def leave_out(self, number: int, size: int) -> None:
        """A file was too much to read."""
        self._uncounted[number] = size

    def keep(self, numbers: Collection[int]) -> None:
        """Forget what lay in all files but those of these numbers."""
        gone = (self._counts.keys() | self._uncounted.keys()) - set(numbers)
        if not gone:
            return
        for number in gone:
            self._counts.pop(number, None)
            self._uncounted.pop(number, None)
        for code, samples in list(self._samples.items()):
            left = [each for each in samples if each.number not in gone]
            self._samples[code] = deque(left, maxlen=SAMPLES)
            if not left and not any(counts[code] for counts in self._counts.values()):
                del self._samples[code]

    @property
    def uncounted_bytes(self) -> int:
        """Bytes of the files that were not read."""
        return sum(self._uncounted.values())

    def counts(self) -> dict[str, int]:
        """Records by code."""
        total: Counter[str] = Counter()
        for counts in self._counts.values():
            total.update(counts)
        return dict(total)

    def samples(self) -> dict[str, list[DeadLetterSample]]:
        """The last ones by code, the newest first, as many as may be told."""
        told: dict[str, list[DeadLetterSample]] = {}
        room = TOLD_CHARS
        for code, each in _in_turns(self._samples):
            room -= each.chars
            if room < 0:
                break
            told.setdefault(code, []).append(each.shown())
        return told


def _in_turns(samples: Mapping[str, deque[Sample]]) -> Iterator[tuple[str, Sample]]:
    """The newest of each code, then those before, and so on."""
    for rank in range(1, SAMPLES + 1):
        for code in sorted(samples):
            if len(samples[code]) >= rank:
                yield code, samples[code][-rank]


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
