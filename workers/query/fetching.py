"""Points of single owners, for series in which owners differ: whole series, or the stretches that differ.

Owns nothing that lasts. A node's points are asked for as samples, so it answers for partitions that it owns alone, and
at the delete number at which owners were compared; anything else ends the comparison. Belongs to the HTTP thread that
asks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from common import clock, match, protocol
from common.match import Match
from common.points import PointBatch
from common.protocol import SamplesReply
from common.series import parse_key, partition_of
from common.timestamps import MAX_NS, MIN_NS
from workers.query.comparing import Direct, Figure, UnverifiedError
from workers.query.gather import Question
from workers.query.joining import NO_ROWS, Rows, join
from workers.query.plan import Partitions, Plan, from_bitmap

PAGE_ROWS: Final = 65_536  # fetched at a time
WHOLE_ROWS: Final = 8192  # of a stretch that is fetched as it is
MANY_STRETCHES: Final = 1000  # of a series: then it is fetched whole
FEW_SERIES: Final = 64  # fetched one by one; more together, with all that matches in their partitions

Told = Mapping[bytes, Mapping[str, Figure]]  # of each series what each owner has told


class Fetcher:
    """Fetches what matches in a range from owners by one plan. most: points, of all together."""

    def __init__(
        self,
        ask: Callable[[Question], None],
        matched: Match,
        start_ns: int | None,
        end_ns: int | None,
        plan: Plan,
        most: int,
        deadline_s: float,
    ) -> None:
        """deadline_s: monotonic."""
        self._ask = ask
        self._match = matched
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._plan = plan
        self._most = most
        self._left = most
        self._deadline_s = deadline_s

    def joined(self, told: Told) -> dict[bytes, Rows]:
        """All rows of some series, of all owners. Raises UnverifiedError, before it fetches what is too much."""
        points = sum(max(count for count, _ in figures.values()) for figures in told.values())
        if points > self._most:
            raise self._too_many(len(told), points)
        if len(told) <= FEW_SERIES:
            return {key: self._series(key, figures) for key, figures in told.items()}
        parts: dict[bytes, list[Rows]] = {key: [] for key in told}
        for node in sorted({node for figures in told.values() for node in figures}):
            wanted = [key for key, figures in told.items() if node in figures]
            for key, rows in self.rows(node, wanted, self._start_ns, self._end_ns).items():
                parts[key].append(rows)
        return {key: join(found) if found else NO_ROWS for key, found in parts.items()}

    def rows(self, node: str, keys: Iterable[bytes], start_ns: int | None, end_ns: int | None) -> dict[bytes, Rows]:
        """What one owner has of some series in a range, of those with points there. Many series at once."""
        wanted = set(keys)
        found = self._fetch(node, partitions_of(wanted, self._plan), self._match, start_ns, end_ns)
        return {key: rows for key, rows in found.items() if key in wanted}

    def _series(self, key: bytes, told: Mapping[str, Figure]) -> Rows:
        """All that one owner has of a series, and of the others the stretches in which they differ."""
        base, *others = sorted(told, key=lambda node: (-told[node][0], node))
        parts = [self._one(base, key, self._start_ns, self._end_ns)]
        start = MIN_NS if self._start_ns is None else self._start_ns
        end = MAX_NS if self._end_ns is None else self._end_ns
        stretches = [(start, end)] if told[base][0] <= WHOLE_ROWS else self._narrowed(key, told, parts[0], start, end)
        for node in others:
            parts += [self._one(node, key, *stretch) for stretch in stretches]
        return join(parts)

    def _narrowed(self, key: bytes, nodes: Iterable[str], base: Rows, start: int, end: int) -> list[tuple[int, int]]:
        """The stretches in which owners differ, halved until each has few points of one of them. base: its rows."""
        found: list[tuple[int, int]] = []
        pending = [(start, end)]
        while pending:
            if len(pending) + len(found) > MANY_STRETCHES:
                return [(start, end)]
            ranges = [protocol.Range(key, *each) for each in pending]
            told = [self._range_figures(node, ranges) for node in nodes]
            agreed = [len(set(figures)) == 1 for figures in zip(*told, strict=True)]
            differ = [each for each, agrees in zip(pending, agreed, strict=True) if not agrees]
            pending = []
            for low, high in differ:
                begin, stop = int(base[0].searchsorted(low)), int(base[0].searchsorted(high, "right"))
                middle = int(base[0][(begin + stop) // 2]) if stop - begin > WHOLE_ROWS else low
                if middle > low:
                    pending += [(low, middle - 1), (middle, high)]
                else:
                    found.append((low, high))
        return found

    def _range_figures(self, node: str, ranges: list[protocol.Range]) -> list[Figure]:
        asked = protocol.RangeDigestsRequest(self._plan.ring.delete_number, ranges)
        reply = self._direct(protocol.RANGE_DIGESTS, protocol.RangeDigestsReply, node, asked)
        counts, digests = np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")
        if not len(counts) == len(digests) == len(ranges):
            raise UnverifiedError(f"{node}: digests of {len(counts)} ranges, want {len(ranges)}")
        return list(zip(counts.tolist(), digests.tolist(), strict=True))

    def _one(self, node: str, key: bytes, start_ns: int | None, end_ns: int | None) -> Rows:
        series = parse_key(key)
        only = match.one(series.device_id, series.metric_name, dict(series.tags))
        found = self._fetch(node, partitions_of([key], self._plan), only, start_ns, end_ns)
        return found.get(key, NO_ROWS)

    def _fetch(
        self, node: str, partitions: Partitions, matched: Match, start_ns: int | None, end_ns: int | None
    ) -> dict[bytes, Rows]:
        """The points of a node, page by page."""
        pieces: dict[bytes, list[Rows]] = {}
        after, more, bitmap = (b"", 0), True, self._plan.bitmap(partitions)
        while more:
            asked = protocol.SamplesRequest(bitmap, matched, start_ns, end_ns, *after, PAGE_ROWS)
            reply = self._direct(protocol.SAMPLES, SamplesReply, node, asked)
            batch, more = PointBatch.decode(reply.batch), reply.more
            self._check(node, reply, partitions, batch)
            for number, key in enumerate(batch.keys):
                begin, end = batch.index.searchsorted(number), batch.index.searchsorted(number, "right")
                pieces.setdefault(key, []).append((batch.times[begin:end], batch.values[begin:end]))
                after = key, int(batch.times[end - 1])
        return {key: join(found) for key, found in pieces.items()}

    def _check(self, node: str, reply: SamplesReply, partitions: Partitions, batch: PointBatch) -> None:
        if from_bitmap(reply.partitions) != partitions or reply.delete_number != self._plan.ring.delete_number:
            raise UnverifiedError(f"{node}: the ring changed while points that differ were fetched")
        if reply.more and not len(batch):
            raise UnverifiedError(f"{node}: a page of samples that says more, and has none")
        self._left -= len(batch)
        if self._left < 0:
            raise self._too_many(0, self._most - self._left)

    def _too_many(self, series: int, points: int) -> UnverifiedError:
        of = f"in {series} series" if series else "in series"
        return UnverifiedError(
            f"owners differ {of} with at least {points} points, and at most {self._most} are fetched and joined: end "
            "the range some seconds ago, take a shorter one, or wait for repair"
        )

    def _direct(self, kind: bytes, reply_type: Any, node: str, request: Any) -> Any:
        left_s = max(0.001, self._deadline_s - clock.monotonic_s())
        asked: Direct[Any] = Direct(kind, reply_type, node, lambda plan: request, left_s)
        self._ask(asked)
        if asked.reply is None:
            said = asked.trouble[node].reason if node in asked.trouble else "did not answer"
            raise UnverifiedError(f"{node}: {said}")
        return asked.reply


def holds(more: Rows, rows: Rows) -> bool:
    """Whether rows of a series are among others of it, or smaller values of theirs: joined in, they change nothing."""
    joined = join([more, rows])
    return len(joined[0]) == len(more[0]) and bool((joined[1].view(np.int64) == more[1].view(np.int64)).all())


def partitions_of(keys: Iterable[bytes], plan: Plan) -> Partitions:
    """The partitions of some series."""
    found = 0
    for key in keys:
        found |= 1 << partition_of(key, plan.ring.partitions)
    return found
