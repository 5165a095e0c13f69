"""Getting every row that a peer holds: which question comes next, and what its answers mean.

Owns the order of questions and the tally of what was found. Pure: no I/O, no clock, no store, no socket: a Converge is
a generator of steps, and whoever drives it carries them out (repair.py; in tests two lists of rows). Belongs to one
thread, but for the tally, which any may read.

Count and digest of a stretch are compared between the peer and this node: of partitions, then of the series of those
that differ, then of quarters of the time of these, down to LEAF_ROWS points. What still differs is fetched; of that,
the driver takes in what this node lacks, and says how much it was. A partition of which this node holds little is
fetched as a whole; one that is the same up to recent_ns is looked at from there on alone. Then everything that
lacked something is compared again.

Why the end is proof. Rows are added while this goes on, and between deletes (all questions name one delete number)
none is taken away. Each stretch of each partition is, at one moment after the pass began, either equal by digest here
and there, or fetched: so after one pass this node holds every row that the peer held when the pass began. A pass that
found nothing lacking shows it again from what is stored now: the partition is *equal*, or *proven*, when the other
digest comes from rows that this node has besides. Where points keep coming, each pass finds the newest ones lacking,
which are on their way here, too: after PASSES such a partition is *moving*. Nothing is lacking behind a fence, or in
what lies so far back that nothing comes any more.

Rows on their way. A row of long ago, or of a clock that is ahead, that is being written now reaches two nodes at two
moments, however its time compares with what has settled. So a comparison that nobody hurries looks at stretches that
it would fetch once more after a moment, doubt_s: what reached the peer and not yet this node,

    here   |  digests: differ        row arrives     | digests: equal, nothing is fetched
    peer   |  row arrives, digests: differ           | digests: equal

is here by then. What is fetched nevertheless does no harm. The second look is later in the same pass, so the proof
holds as it is.

Rows with the same time and another value: the larger value counts on both sides, so a smaller one of the peer's is
not lacking here.
"""

import itertools
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from common import protocol, series
from common.errors import MinitrueError
from common.protocol import Range
from common.timestamps import MAX_NS, MIN_NS

LEAF_ROWS: Final = 8192  # of the peer: a block, which would have to be read as a whole to compare parts of it
PASSES: Final = 5  # over what lacked something in the pass before
PARTITIONS: Final = (
    256  # compared by one question: seconds for very large stores, so that a peer is not kept for longer
)
SERIES: Final = 4096  # in a page of digests, half a MiB
RANGES: Final = 2048  # of one question
PARTS: Final = 4  # into which a stretch is cut: each cut reads a block on either side, each round takes a round trip
SPARSE: Final = 4  # where the peer has so many times the points that are here, looking for those that are saves little

T = TypeVar("T")
Place = tuple[int, bytes]  # of a series in the order of pages: hash and key


class ConvergeError(MinitrueError):
    """A peer that answers something else than what it was asked."""


class Ask(NamedTuple):
    """A question to the peer and to this node. The step's result: both replies, the peer's first."""

    kind: bytes
    body: Any


class Fetch(NamedTuple):
    """A question to the peer, whose rows this node takes in as far as it lacks them, now or later. Result: Fetched."""

    kind: bytes
    body: Any


class Flush(NamedTuple):
    """Take in whatever was fetched and is not taken in yet. The step's result: Taken."""


class Pause(NamedTuple):
    """Wait for so long, in seconds. The step's result: None."""

    seconds: float


class Taken(NamedTuple):
    """What was lacking of replies: rows, also those in blocks; blocks taken as they are; in which partitions."""

    rows: int = 0
    blocks: int = 0
    partitions: frozenset[int] = frozenset()


class Fetched(NamedTuple):
    """A reply, its bytes, and what was taken in meanwhile, of this one or of those before."""

    reply: protocol.FetchReply
    bytes: int
    taken: Taken


Digested = protocol.DigestsReply | protocol.SeriesDigestsReply | protocol.RangeDigestsReply
Step = Ask | Fetch | Flush | Pause
Steps = Generator[Step, Any, T]


@dataclass
class Tally:
    """What became of partitions, and what was pulled. Sets grow only; written by the thread of the job."""

    equal: set[int] = field(default_factory=set)
    proven: set[int] = field(default_factory=set)
    moving: set[int] = field(default_factory=set)
    points: int = 0
    blocks: int = 0
    bytes: int = 0

    @property
    def done(self) -> int:
        """How many partitions have been compared to the end."""
        return len(self.equal) + len(self.proven) + len(self.moving)

    def has(self, partition: int) -> bool:
        """Whether a partition has been compared to the end."""
        return partition in self.equal or partition in self.proven or partition in self.moving


class Digests(NamedTuple):
    """Counts and digests, by partition or range."""

    counts: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, reply: Digested, rows: int) -> "Digests":
        """Those of a reply. Raises ConvergeError where it has not as many rows as it should."""
        if not len(reply.counts) == len(reply.digests) == 8 * rows:
            raise ConvergeError(f"{len(reply.counts)} and {len(reply.digests)} bytes of digests, want {8 * rows}")
        return cls(np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8"))

    def differ(self, other: "Digests") -> npt.NDArray[np.bool_]:
        """Where points are that the other one does not have, or has others."""
        found: npt.NDArray[np.bool_] = (self.counts != other.counts) | (self.digests != other.digests)
        return found & (self.counts > 0)


class Known(NamedTuple):
    """Series of a page. high: no point lies behind it; low: none before it."""

    keys: Sequence[bytes]
    digests: Digests
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    more: bool

    @classmethod
    def of(cls, reply: protocol.SeriesDigestsReply) -> "Known":
        rows = len(reply.keys)
        if not len(reply.low) == len(reply.high) == 8 * rows:
            raise ConvergeError(f"{len(reply.low)} and {len(reply.high)} bytes of times, want {8 * rows}")
        digests = Digests.of(reply, rows)
        return cls(reply.keys, digests, np.frombuffer(reply.low, "<i8"), np.frombuffer(reply.high, "<i8"), reply.more)


class Found(NamedTuple):
    """A stretch that differs, and how many points of it are there and here."""

    range: Range
    theirs: int
    ours: int

    @property
    def is_leaf(self) -> bool:
        """Whether to fetch it rather than to look more closely."""
        single = self.range.start_ns == self.range.end_ns
        return single or self.theirs <= LEAF_ROWS or self.ours * SPARSE <= self.theirs


class Converge:
    """One job with one peer. `run` gives the steps; what they found is in `tally`.

    partitions: those that the tally has already are left out. count: of the ring. start_ns, end_ns: of what is
    compared, None is open. settled_ns: from the second pass on nothing behind it is looked at, None: all is.
    keys: only these series, which are of the partitions named; None: all. fetch_bytes: of one reply, about.
    doubt_s: before stretches that differ are looked at again, 0: they are fetched at once. recent_ns: from when on
    most of what differs is expected, None: it may be of any time.
    """

    def __init__(
        self,
        partitions: Iterable[int],
        count: int,
        delete_number: int,
        tally: Tally,
        end_ns: int | None = None,
        settled_ns: int | None = None,
        keys: Sequence[bytes] | None = None,
        fetch_bytes: int = 4 << 20,
        doubt_s: float = 0.0,
        recent_ns: int | None = None,
    ) -> None:
        self.tally = tally
        self._recent_ns = recent_ns
        self._doubt_s = doubt_s
        self._partitions = [each for each in partitions if not tally.has(each)]
        self._count = count
        self._delete_number = delete_number
        self._ends = end_ns, end_ns if settled_ns is None else settled_ns
        self._keys = keys
        self._fetch_bytes = fetch_bytes
        self._start_ns: int | None = None  # of what both keep
        self._end_ns: int | None = end_ns
        self._lacking: set[int] = set()  # partitions of which something was lacking in this pass

    def run(self) -> Steps[None]:
        """Compare and fetch until nothing lacks, or for PASSES times."""
        for begin in range(0, len(self._partitions), PARTITIONS):
            left = self._partitions[begin : begin + PARTITIONS]
            for number in range(PASSES):
                self._end_ns = self._ends[number > 0]
                left = yield from self._pass(left)
                if not left:
                    break
            self.tally.moving.update(left)

    # Partitions

    def _pass(self, partitions: Sequence[int]) -> Steps[list[int]]:
        """Compare partitions and fetch what differs: those of which something was lacking."""
        self._lacking = set()
        if self._keys is None:
            same, differ = yield from self._compare_partitions(partitions)
        else:
            same, differ = yield from self._compare_keys(partitions, self._keys)
        self._note((yield Flush()))
        self.tally.equal.update(same)
        lacking = sorted(self._lacking & differ)
        self.tally.proven.update(set(partitions) - same - set(lacking))
        return lacking

    def _compare_partitions(self, partitions: Sequence[int]) -> Steps[tuple[set[int], set[int]]]:
        """Which partitions are the same, and in which the peer has something else; that is fetched."""
        theirs, ours = yield from self._digests(partitions)
        differ = theirs.differ(ours)
        sparse = differ & (ours.counts * SPARSE <= theirs.counts)
        yield from self._whole([partitions[at] for at in np.flatnonzero(sparse).tolist()])
        others = [partitions[at] for at in np.flatnonzero(differ & ~sparse).tolist()]
        late = yield from self._late(others)
        yield from self._series([each for each in others if each not in late])
        yield from self._series(sorted(late), self._recent_ns)
        same = {partitions[at] for at in np.flatnonzero(~differ & (theirs.counts == ours.counts)).tolist()}
        return same, {partitions[at] for at in np.flatnonzero(differ).tolist()}

    def _late(self, partitions: Sequence[int]) -> Steps[set[int]]:
        """Those of which the peer has nothing else before recent_ns: all that differs is of later.

        Behind a fence that is nearly all of them, and their series need not be compared from their beginning.
        """
        recent_ns, end_ns = self._recent_ns, self._end_ns
        if not partitions or recent_ns is None or (end_ns is not None and recent_ns > end_ns):
            return set()
        theirs, ours = yield from self._digests(partitions, recent_ns - 1)
        return {partitions[at] for at in np.flatnonzero(~theirs.differ(ours)).tolist()}

    def _digests(self, partitions: Sequence[int], end_ns: int | None = None) -> Steps[tuple[Digests, Digests]]:
        """Of partitions, from the later of both cutoffs on. end_ns: None is that of the pass."""
        asked, end_ns = protocol.bitmap(partitions, self._count), self._end_ns if end_ns is None else end_ns
        while True:
            body = protocol.DigestsRequest(self._delete_number, asked, self._start_ns, end_ns)
            theirs, ours = yield Ask(protocol.DIGESTS, body)
            if theirs.partitions != asked or ours.partitions != asked:
                covered = set(protocol.members(theirs.partitions)) & set(protocol.members(ours.partitions))
                missing = sorted(set(partitions) - covered)
                raise ConvergeError(
                    f"no answer for {len(missing)} partitions, such as {missing[0]}: ask by another ring"
                )
            cutoff = max(theirs.cutoff_ns, ours.cutoff_ns)
            if theirs.cutoff_ns == ours.cutoff_ns or cutoff <= (MIN_NS if self._start_ns is None else self._start_ns):
                return Digests.of(theirs, len(partitions)), Digests.of(ours, len(partitions))
            self._start_ns = cutoff

    def _series(self, partitions: Sequence[int], from_ns: int | None = None) -> Steps[None]:
        """Fetch the series of partitions that differ; where there are many, some before the next ones are looked for.
        from_ns: they are the same before, None: from the beginning.

        Partitions are asked for together, in one order of series: behind a fence most of them differ by a few points,
        and a question for each would take longer than all else.
        """
        found: list[Found] = []
        after = b""
        start_ns = max((each for each in (from_ns, self._start_ns) if each is not None), default=None)
        while partitions:
            body = protocol.SeriesDigestsRequest(
                self._delete_number, partitions[0], after, SERIES, start_ns, self._end_ns,
                protocol.bitmap(partitions, self._count),
            )  # fmt: skip
            theirs, ours = yield Ask(protocol.SERIES_DIGESTS, body)
            differing, end = _page(Known.of(theirs), Known.of(ours))
            found += [self._within(each, start_ns) for each in differing]
            if end is None:
                break
            after = end
            partitions = [each for each in partitions if each >= self._partition_of(end)]
            if len(found) >= RANGES:
                yield from self._get(found)
                found = []
        yield from self._get(found)

    def _whole(self, partitions: Sequence[int]) -> Steps[None]:
        """Fetch partitions from their begin to their end."""
        key, from_ns = b"", None
        while partitions:
            body = protocol.FetchPartitionRequest(
                self._delete_number, partitions[0], self._fetch_bytes, key, from_ns, self._start_ns, self._end_ns,
                protocol.bitmap(partitions, self._count),
            )  # fmt: skip
            reply = yield from self._fetch(Fetch(protocol.FETCH_PARTITION, body))
            if not reply.more:
                return
            key, from_ns = reply.next_key, reply.next_ns
            partitions = [each for each in partitions if each >= self._partition_of(key)]

    # Stretches of series

    def _compare_keys(self, partitions: Sequence[int], keys: Sequence[bytes]) -> Steps[tuple[set[int], set[int]]]:
        """As _compare_partitions, of some series alone."""
        wanted, other = set(partitions), set[int]()
        ranges = [Range(key, *self._bounds(MIN_NS, MAX_NS)) for key in keys if self._partition_of(key) in wanted]
        differ: set[int] = set()
        for begin in range(0, len(ranges), RANGES):
            part = ranges[begin : begin + RANGES]
            found, same = yield from self._compare(part)
            differ.update(self._partition_of(each.range.key) for each in found)
            other.update(self._partition_of(part[at].key) for at in np.flatnonzero(~same).tolist())
            yield from self._get(found)
        return wanted - other, differ

    def _partition_of(self, key: bytes) -> int:
        return series.partition_of(key, self._count)

    def _get(self, found: Sequence[Found]) -> Steps[None]:
        """Look more closely at stretches that differ, and fetch what they come down to.

        The last ones first, so that few wait at any time.
        """
        open_ = [each for each in found if not each.is_leaf]
        leaves = [each.range for each in found if each.is_leaf]
        while open_ or leaves:
            while len(leaves) >= RANGES or (leaves and not open_):
                yield from self._take(_joined((yield from self._still(leaves[:RANGES]))))
                del leaves[:RANGES]
            parts = [part for each in open_[-RANGES // PARTS :] for part in _cut(each.range)]
            del open_[-RANGES // PARTS :]
            if parts:
                differing, _ = yield from self._compare(parts)
                leaves += [each.range for each in differing if each.is_leaf]
                open_ += [each for each in differing if not each.is_leaf]

    def _still(self, ranges: Sequence[Range]) -> Steps[Sequence[Range]]:
        """Those of some stretches that go on to differ for a moment."""
        if not self._doubt_s:
            return ranges
        yield Pause(self._doubt_s)
        found, _ = yield from self._compare(ranges)
        return [each.range for each in found]

    def _compare(self, ranges: Sequence[Range]) -> Steps[tuple[list[Found], npt.NDArray[np.bool_]]]:
        """The stretches in which the peer has points and this node not the same; by stretch, whether it is the same."""
        replies = yield Ask(protocol.RANGE_DIGESTS, protocol.RangeDigestsRequest(self._delete_number, list(ranges)))
        theirs, ours = (Digests.of(reply, len(ranges)) for reply in replies)
        differ = theirs.differ(ours)
        found = [
            Found(ranges[at], int(theirs.counts[at]), int(ours.counts[at])) for at in np.flatnonzero(differ).tolist()
        ]
        return found, ~differ & (theirs.counts == ours.counts)

    def _take(self, ranges: Sequence[Range]) -> Steps[None]:
        """Fetch stretches."""
        item, from_ns = 0, None
        while ranges:
            body = protocol.FetchRequest(self._delete_number, list(ranges), self._fetch_bytes, item, from_ns)
            reply = yield from self._fetch(Fetch(protocol.FETCH, body))
            if not reply.more:
                return
            item, from_ns = reply.next_item, reply.next_ns

    def _fetch(self, step: Fetch) -> Steps[protocol.FetchReply]:
        fetched: Fetched = yield step
        self.tally.bytes += fetched.bytes
        self._note(fetched.taken)
        return fetched.reply

    def _note(self, taken: Taken) -> None:
        self.tally.points += taken.rows
        self.tally.blocks += taken.blocks
        self._lacking.update(taken.partitions)

    def _within(self, found: Found, start_ns: int | None) -> Found:
        low = found.range.start_ns if start_ns is None else max(start_ns, found.range.start_ns)
        start, end = self._bounds(low, found.range.end_ns)
        return found._replace(range=Range(found.range.key, start, end))

    def _bounds(self, low: int, high: int) -> tuple[int, int]:
        """A stretch of time as far as it is compared. It has at least one moment, which may lie beyond."""
        start = low if self._start_ns is None else max(low, self._start_ns)
        end = high if self._end_ns is None else min(high, self._end_ns)
        return start, max(start, end)


def _page(theirs: Known, ours: Known) -> tuple[list[Found], bytes | None]:
    """The series of two pages that differ, with counts there and here, and the key up to which both pages go.

    The key is None when the peer has none behind it. Both begin behind the same key; series that only this node has
    do not count.
    """
    last = _end_of(theirs, ours)
    mine = {key: at for at, key in enumerate(ours.keys)}
    found = []
    for at, key in enumerate(theirs.keys):
        if last is not None and _place(key) > last:
            break
        here = mine.get(key)
        count, digest = int(theirs.digests.counts[at]), theirs.digests.digests[at]
        held = 0 if here is None else int(ours.digests.counts[here])
        if count and (held != count or ours.digests.digests[here] != digest):
            found.append(Found(Range(key, int(theirs.low[at]), int(theirs.high[at])), count, held))
    return found, None if last is None else last[1]


def _end_of(theirs: Known, ours: Known) -> Place | None:
    """How far two pages can be compared; None: to the end of what the peer has."""
    ends = [_place(page.keys[-1]) for page in (theirs, ours) if page.more and page.keys]
    if not ends:
        return None
    if not theirs.more and (not theirs.keys or _place(theirs.keys[-1]) <= min(ends)):
        return None
    return min(ends)


def _place(key: bytes) -> Place:
    return series.series_hash(key), key


def _cut(whole: Range) -> list[Range]:
    """A stretch in PARTS parts of about the same length, fewer where it is shorter than that."""
    length = whole.end_ns - whole.start_ns + 1
    edges = sorted({whole.start_ns + length * part // PARTS for part in range(PARTS + 1)})
    return [Range(whole.key, start, end - 1) for start, end in itertools.pairwise(edges)]


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Stretches in order, neighbours as one: a block over the seam of two would come as rows."""
    found: list[Range] = []
    for each in sorted(ranges, key=lambda each: (each.key, each.start_ns)):
        if found and found[-1].key == each.key and found[-1].end_ns + 1 == each.start_ns:
            found[-1] = Range(each.key, found[-1].start_ns, each.end_ns)
        else:
            found.append(each)
    return found
