"""Verified reads: all current owners of what is asked about compared, and joined where they differ.

Counts and digests of what matches are compared by partition, where they differ by series, and of long series by halves
of time. Of the series in which owners differ one owner's points are fetched, and from the others the stretches that
differ; joined by the identity rule they take the place of what a node would say of these series. All else is answered
by one owner, as ever. The owners are asked to repair what differed, but not again and again.

What is on its way differs too: points that one owner has stored and the other is about to. So a difference counts when
it is still there a moment later.

Never fails an answer for lack of a comparison: where an owner cannot be asked, the answer says that it is not
verified, and why. Belongs to the HTTP thread that asks; only `_asked_s` of Repairs is shared.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from common import clock, log, match, protocol
from common.errors import ProtocolError
from common.match import Match
from common.points import PointBatch
from common.protocol import Limits, SamplesReply, VerifyRequest
from common.series import parse_key, partition_of
from common.timestamps import MAX_NS, MIN_NS
from workers.query.comparing import Compare, Direct, Figure
from workers.query.coverage import Compared
from workers.query.gather import Question
from workers.query.joining import Rows, join
from workers.query.plan import Partitions, Plan, from_bitmap
from workers.query.refusal import OverLimit

SETTLE_S: Final = 0.05  # what is on its way to all owners has arrived
PAGE_ROWS: Final = 65_536  # fetched at a time
WHOLE_ROWS: Final = 8192  # of a stretch that is fetched as it is
MANY_STRETCHES: Final = 1000  # of a series: then it is fetched whole
FEW_SERIES: Final = 64  # fetched one by one; more together, with all that matches in their partitions
REPAIR_AGAIN_S: Final = 30.0  # between requests for repair to one node
REPAIR_S: Final = 1.0  # for a node to take one

logger = log.get("query.verified")


class UnverifiedError(ProtocolError):
    """Owners that could not be compared, and why."""


@dataclass
class Verified:
    """What became of a comparison. rows: of the series in which owners differ, joined; delete_number: at which."""

    owners: int = 0
    reason: str = ""
    delete_number: int = 0
    rows: dict[bytes, Rows] = field(default_factory=dict)

    @property
    def compared(self) -> Compared:
        """For the answer."""
        return Compared(self.owners, len(self.rows), self.reason)


class Repairs:
    """Asks nodes for repair, each now and then. Any thread: a lost race costs a request that changes nothing."""

    def __init__(self) -> None:
        self._asked_s: dict[str, float] = {}

    def due(self, nodes: Iterable[str]) -> list[str]:
        """The nodes that have not been asked lately; they count as asked now."""
        now_s = clock.monotonic_s()
        found = [node for node in nodes if now_s - self._asked_s.get(node, float("-inf")) > REPAIR_AGAIN_S]
        self._asked_s.update(dict.fromkeys(found, now_s))
        return found


class Verifier:
    """Compares the owners of what one question is about. Use `run` once."""

    def __init__(
        self,
        ask: Callable[[Question], None],
        matched: Match,
        start_ns: int | None,
        end_ns: int | None,
        limits: Limits,
        deadline_s: float,
        repairs: Repairs,
    ) -> None:
        """ask: has a question answered. deadline_s: monotonic."""
        self._ask = ask
        self._match = matched
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._limits = limits
        self._deadline_s = deadline_s
        self._repairs = repairs
        self._left = limits.points  # that may still be fetched
        self._from_ns: int | None = None  # what the retention of all nodes has left
        self._plan: Plan | None = None
        self._found = Verified()

    def run(self) -> Verified:
        """Compare, and join what differs. Raises OverLimit where that is more than a question may read."""
        try:
            self._run()
        except UnverifiedError as error:
            self._found.reason, self._found.rows = str(error), {}
        return self._found

    def _run(self) -> None:
        compare = self._compare(self._wanted, False)
        if len(compare.cutoffs) > 1:
            self._from_ns = max(compare.cutoffs)  # clocks differ: what only one has left is no difference
            compare = self._compare(self._wanted, False)
        differing = self._judge(compare)
        if differing:
            time.sleep(min(SETTLE_S, self._left_s()))
            differing = _differing(self._compare(lambda plan: differing, False))
        if differing:
            self._join(differing)

    def _wanted(self, plan: Plan) -> Partitions:
        return plan.wanted_by(self._match, learned=False)  # a series may be new to one owner

    def _compare(self, wanted: Callable[[Plan], Partitions], by_series: bool) -> Compare:
        start = self._start_ns
        if self._from_ns is not None:
            start = self._from_ns if start is None else max(start, self._from_ns)

        def request(bitmap: bytes, number: int) -> VerifyRequest:
            return VerifyRequest(bitmap, self._match, start, self._end_ns, number, by_series, self._limits)

        compare = Compare(wanted, request, self._left_s())
        self._ask(compare)
        if compare.plan is None or compare.error is not None:
            raise UnverifiedError(compare.error.message if compare.error is not None else "no ring yet")
        self._plan, self._found.delete_number = compare.plan, compare.plan.ring.delete_number
        return compare

    def _judge(self, compare: Compare) -> Partitions:
        """Note how many owners were compared, and find the partitions in which they differ."""
        plan, told = compare.plan, compare.by_partition()
        assert plan is not None, "BUG: compared without a ring"
        owners = {p: len(plan.ring.owners(p)) for p in _members(compare.wanted)}
        self._found.owners = min((len(told.get(p, ())) for p in owners), default=0)
        alone = sum(len(told.get(p, ())) < min(2, count) for p, count in owners.items())
        if alone or not compare.complete():
            troubles = {node: trouble.reason for node, trouble in sorted(compare.trouble.items())}
            troubles |= {node: reason for node, (reason, _) in sorted(plan.behind.items())}
            reasons = "; ".join(f"{node}: {reason}" for node, reason in troubles.items())
            self._found.reason = f"not all owners could be compared: {reasons or 'they took too long'}"
        return _differing(compare)

    # What differs

    def _join(self, partitions: Partitions) -> None:
        compare = self._compare(lambda plan: partitions, True)
        series = {key: told for key, told in compare.by_series().items() if len(set(told.values())) > 1}
        logger.warning("owners differ", partitions=partitions.bit_count(), series=len(series))
        nodes = {node for told in series.values() for node in told}
        if len(series) > FEW_SERIES:
            self._found.rows = self._fetch_many(series, nodes)
        else:
            self._found.rows = {key: self._fetch_one(key, told) for key, told in series.items()}
        self._repair(series, nodes)

    def _fetch_many(self, series: Mapping[bytes, Mapping[str, Figure]], nodes: Iterable[str]) -> dict[bytes, Rows]:
        parts: dict[bytes, list[Rows]] = {key: [] for key in series}
        for node in sorted(nodes):
            partitions = self._partitions_of(key for key, told in series.items() if node in told)
            for key, rows in self._fetch(node, partitions, self._match, self._start_ns, self._end_ns).items():
                if key in parts:
                    parts[key].append(rows)
        return {key: join(found) if found else _NO_ROWS for key, found in parts.items()}

    def _fetch_one(self, key: bytes, told: Mapping[str, Figure]) -> Rows:
        """All that one owner has of a series, and of the others the stretches in which they differ."""
        base, *others = sorted(told, key=lambda node: (-told[node][0], node))
        parts = [self._fetch_series(base, key, self._start_ns, self._end_ns)]
        start = MIN_NS if self._start_ns is None else self._start_ns
        end = MAX_NS if self._end_ns is None else self._end_ns
        stretches = [(start, end)] if told[base][0] <= WHOLE_ROWS else self._narrowed(key, told, parts[0], start, end)
        for node in others:
            parts += [self._fetch_series(node, key, *stretch) for stretch in stretches]
        return join(parts)

    def _narrowed(
        self, key: bytes, nodes: Iterable[str], base: Rows, start: int, end: int
    ) -> list[tuple[int, int]]:
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
        def request(plan: Plan) -> protocol.RangeDigestsRequest:
            return protocol.RangeDigestsRequest(plan.ring.delete_number, ranges)

        reply = self._direct(protocol.RANGE_DIGESTS, protocol.RangeDigestsReply, node, request)
        counts, digests = np.frombuffer(reply.counts, "<i8"), np.frombuffer(reply.digests, "<u8")
        if not len(counts) == len(digests) == len(ranges):
            raise UnverifiedError(f"{node}: digests of {len(counts)} ranges, want {len(ranges)}")
        return list(zip(counts.tolist(), digests.tolist(), strict=True))

    def _fetch_series(self, node: str, key: bytes, start_ns: int | None, end_ns: int | None) -> Rows:
        series = parse_key(key)
        only = match.one(series.device_id, series.metric_name, dict(series.tags))
        return self._fetch(node, self._partitions_of([key]), only, start_ns, end_ns).get(key, _NO_ROWS)

    def _fetch(
        self, node: str, partitions: Partitions, matched: Match, start_ns: int | None, end_ns: int | None
    ) -> dict[bytes, Rows]:
        """The points of a node, page by page."""
        pieces: dict[bytes, list[Rows]] = {}
        after, more = (b"", 0), True
        while more:

            def request(plan: Plan, after: tuple[bytes, int] = after) -> protocol.SamplesRequest:
                bitmap = plan.bitmap(partitions)
                return protocol.SamplesRequest(bitmap, matched, start_ns, end_ns, *after, PAGE_ROWS)

            reply = self._direct(protocol.SAMPLES, SamplesReply, node, request)
            batch, more = PointBatch.decode(reply.batch), reply.more
            self._check(node, reply, partitions, batch)
            for number, key in enumerate(batch.keys):
                begin, end = batch.index.searchsorted(number), batch.index.searchsorted(number, "right")
                pieces.setdefault(key, []).append((batch.times[begin:end], batch.values[begin:end]))
                after = key, int(batch.times[end - 1])
        return {key: join(found) for key, found in pieces.items()}

    def _check(self, node: str, reply: SamplesReply, partitions: Partitions, batch: PointBatch) -> None:
        if from_bitmap(reply.partitions) != partitions or reply.delete_number != self._found.delete_number:
            raise UnverifiedError(f"{node}: the ring changed while points that differ were fetched")
        if reply.more and not len(batch):
            raise UnverifiedError(f"{node}: a page of samples that says more, and has none")
        self._left -= len(batch)
        if self._left < 0:
            most = self._limits.points
            raise OverLimit(
                "query.max_points", most, None,
                f"owners differ in series with more than {most} points (query.max_points), which would have to be "
                "fetched and joined: end the range some seconds ago, take a shorter one, or wait for repair",
            )  # fmt: skip

    def _direct(self, kind: bytes, reply_type: Any, node: str, request: Callable[[Plan], Any]) -> Any:
        asked: Direct[Any] = Direct(kind, reply_type, node, request, self._left_s())
        self._ask(asked)
        if asked.reply is None:
            said = asked.trouble[node].reason if node in asked.trouble else "did not answer"
            raise UnverifiedError(f"{node}: {said}")
        return asked.reply

    def _repair(self, series: Mapping[bytes, Any], nodes: Iterable[str]) -> None:
        keys = list(series)[:FEW_SERIES] if len(series) <= FEW_SERIES else []
        partitions = self._partitions_of(series)

        def request(plan: Plan) -> protocol.RepairRequest:
            return protocol.RepairRequest(plan.bitmap(partitions), keys)

        for node in self._repairs.due(sorted(nodes)):
            asked = Direct(protocol.REPAIR, protocol.JobsReply, node, request, min(REPAIR_S, self._left_s()))
            self._ask(asked)
            if asked.reply is None:
                logger.warning("repair not begun", node=node, reason=[each.reason for each in asked.trouble.values()])

    def _partitions_of(self, keys: Iterable[bytes]) -> Partitions:
        assert self._plan is not None, "BUG: nothing was compared"
        found = 0
        for key in keys:
            found |= 1 << partition_of(key, self._plan.ring.partitions)
        return found

    def _left_s(self) -> float:
        return max(0.001, self._deadline_s - clock.monotonic_s())


_NO_ROWS: Final[Rows] = (np.empty(0, np.int64), np.empty(0, np.float64))


def _differing(compare: Compare) -> Partitions:
    found = 0
    for partition, told in compare.by_partition().items():
        found |= (len(set(told.values())) > 1) << partition
    return found


def _members(partitions: Partitions) -> list[int]:
    return protocol.members(partitions.to_bytes((partitions.bit_length() + 7) // 8, "little"))
