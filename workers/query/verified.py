"""Verified reads: all current owners of what is asked about compared, and joined where they differ.

Counts and digests of what matches are compared by partition, where they differ by series, and of long series by halves
of time. Of the series in which owners differ one owner's points are fetched, and from the others the stretches that
differ; joined by the identity rule they take the place of what a node would say of these series. All else is answered
by one owner, as ever. The owners are asked to repair what differed, but not again and again.

Most often owners hold the same, so the read travels with the comparison: each node answers its share of it when its
figures are known, not before, so what it reads is at least what it told of. Where all told the same, and all that was
read is there, that is the answer; else, also where it would take a node long, the read is asked for behind all of the
above.

What `verified` promises: the answer holds all that any current owner held when its comparison began. It need not be
what they hold at one instant: while points flow no two owners ever hold the same at the moment of asking. A row that
one of them lacks is either on its way there, and then asking later is enough, or lacking, and then it has to be
joined:

- Series that differ are compared again after a moment, each by itself. One is done with when all its owners have told
  the same figure, be it at different times: they only grow, so each holds by then what the others held at first
  (comparing.Heard), and whoever answers afterwards tells of it. One point more, on its way by now, is no matter.
- Points may come faster than that, so that no two looks ever find the same. What is older than FRESH_NS by the clock
  differs no more then; what is younger is fetched from all owners, twice. When each has at the second time what the
  others had at the first, it is as above.
- What is left is lacking somewhere: fetched and joined, as far as JOIN_POINTS goes. Beyond it the answer is one
  owner's, and not verified.

What may come between, and why `verified` is not wrong for it:
- The owners change, by a ring adopted between two comparisons, or between them and the read (`Plan.has_owners_of`):
  all is done again, TRIES times. A node that has just joined holds what its source held, but was not compared itself.
- A delete: figures of before and after it do not compare, and joined rows would bring points back. The same.
- A node dies, is fenced or falls behind after the first comparison: what it told is not told again, so the answer is
  not verified. It is complete all the same when another owner is current. After the last comparison: another one
  answers, which holds the same.
- Owners are repaired meanwhile: what is joined is what it was.
- A first point comes to a partition in which, by the first comparison, no owner had any: where few have, the read is
  put to those alone, and may lack it. It is younger than the comparison, of which the promise speaks. Where not all
  owners were compared, nothing is known of the partitions of the one that told nothing: all are asked.

Never fails an answer for lack of a comparison: where an owner cannot be asked, or too much differs, the answer says
that it is not verified, and why; comparing takes no more than SHARE of the time there is. Belongs to the HTTP thread
that asks; only `_asked_s` of Repairs is shared.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from common import clock, log, protocol
from common.errors import ProtocolError
from common.match import Match
from common.protocol import Limits, VerifyRequest
from workers.query.comparing import Agreement, Compare, Direct, Heard, UnverifiedError
from workers.query.coverage import Compared
from workers.query.fetching import FEW_SERIES, Fetcher, Told, holds, partitions_of
from workers.query.gather import Gather, Question
from workers.query.joining import NO_ROWS, Rows
from workers.query.plan import Partitions, Plan, flags, from_flags

SETTLE_S: Final = 0.05  # what is on its way to all owners has arrived
LOOKS: Final = 4  # at series that differ, as long as they change
FRESH_NS: Final = 10**9  # clocks of devices that are kept, and what lies between them and the store, are within it
JOIN_POINTS: Final = 1_000_000  # fetched from one owner and joined, some microseconds each, while a client waits
SHARE: Final = 0.5  # of the time for an answer: the rest is for the read
TRIES: Final = 3
FEW_PARTITIONS: Final = 64  # of more nearly all nodes are asked anyway, and they know what matches in all of theirs
REPAIR_AGAIN_S: Final = 30.0  # between requests for repair to one node
REPAIR_S: Final = 1.0  # for a node to take one

logger = log.get("query.verified")


class RingChangedError(Exception):
    """Owners changed, or points were deleted, since owners were compared first."""


@dataclass
class Verified:
    """What became of a comparison. rows: of the series in which owners differ, joined. plan: by which was compared.

    partitions: those that were compared. filled: those in which any owner had points, 0 where not all were compared.
    read: the read that was answered behind the comparison, whole, where owners hold the same; None otherwise.
    """

    owners: int = 0
    reason: str = ""
    rows: dict[bytes, Rows] = field(default_factory=dict)
    plan: Plan | None = None
    partitions: Partitions = 0
    filled: Partitions = 0
    read: Gather[Any] | None = None

    @property
    def compared(self) -> Compared:
        """For the answer."""
        return Compared(self.owners, len(self.rows), self.reason)

    @property
    def delete_number(self) -> int:
        """At which was compared."""
        return 0 if self.plan is None else self.plan.ring.delete_number

    def wanted(self, plan: Plan, matched: Match) -> Partitions:
        """The partitions to ask for the answer, by a plan: few that have points, or all that may hold a match.

        Not what was learned: a series may be new to one owner.
        """
        if 0 < self.filled.bit_count() <= FEW_PARTITIONS and self.holds_by(plan):
            return self.filled
        return plan.wanted_by(matched, learned=False)

    def holds_by(self, plan: Plan | None) -> bool:
        """Whether those whom a question was put to by a plan are the owners that were compared."""
        return self.plan is None or plan is None or plan.has_owners_of(self.plan, self.partitions)


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
        timeout_s: float,
        repairs: Repairs,
        read: Gather[Any] | None = None,
    ) -> None:
        """ask: has a question answered. timeout_s: for the whole answer. read: what will be asked when owners turn out
        to hold the same, as most often; it travels with the comparison, to save a way there and back.
        """
        self._ask = ask
        self._match = matched
        self._start_ns = start_ns
        self._end_ns = end_ns
        self._limits = limits
        self._deadline_s = clock.monotonic_s() + SHARE * timeout_s
        self._repairs = repairs
        self._read = read
        self._found = Verified()

    def run(self) -> Verified:
        """Compare, and join what differs."""
        try:
            self._try()
        except ProtocolError as error:
            self._found.reason, self._found.rows = str(error), {}
        return self._found

    def _try(self) -> None:
        for _ in range(TRIES):
            self._found = Verified()
            try:
                return self._run()
            except RingChangedError:
                continue
        raise UnverifiedError(f"the ring changed while owners were compared, {TRIES} times")

    def _run(self) -> None:
        read, self._read = self._read, None  # the first time only: a read is asked once
        first = self._ask_all(None, False, self._end_ns, read)
        if len(first.cutoffs) > 1:  # clocks differ: what only one has left is no difference
            kept = max(first.cutoffs)
            self._start_ns = kept if self._start_ns is None else max(kept, self._start_ns)
            first, read = self._ask_all(None, False, self._end_ns), None
        told = first.by_partition()
        self._judge(first, told)
        if differing := from_flags(told.differs):
            self._resolve(first, differing)
        elif read is not None and self._is_good(read):
            self._found.read = read

    def _is_good(self, read: Gather[Any]) -> bool:
        """Whether a read that was answered behind the comparison is whole, of those who were compared."""
        of_these = read.plan is not None and read.plan.ring is self._plan.ring
        return of_these and read.complete() and not self._found.reason and not self._found.filled & ~read.wanted

    def _ask_all(
        self, partitions: Partitions | None, by_series: bool, end_ns: int | None, read: Gather[Any] | None = None
    ) -> Compare:
        """partitions: None for all that may hold what matches."""

        def wanted(plan: Plan) -> Partitions:  # not what was learned: a series may be new to one owner
            return plan.wanted_by(self._match, learned=False) if partitions is None else partitions

        def request(bitmap: bytes, number: int) -> VerifyRequest:
            return VerifyRequest(bitmap, self._match, self._start_ns, end_ns, number, by_series, self._limits)

        compare = Compare(wanted, request, self._left_s(), by_series, read)
        self._ask(compare)
        if compare.plan is None or compare.error is not None:
            raise UnverifiedError(compare.error.message if compare.error is not None else "no ring yet")
        if not self._found.holds_by(compare.plan):
            raise RingChangedError
        self._found.plan, self._found.partitions = compare.plan, self._found.partitions | compare.wanted
        return compare

    def _judge(self, compare: Compare, told: Agreement) -> None:
        """Note how many owners were compared, and where there is anything."""
        owners = self._plan.owners
        wanted = flags(compare.wanted, len(owners))
        missing = told.told < owners
        self._found.owners = int(told.told[wanted].min(initial=self._plan.ring.width))
        if (missing & wanted).any() or not compare.complete():
            self._found.reason = f"not all owners could be compared: {_troubles(compare)}"
        else:
            self._found.filled = from_flags(told.most > 0)

    # What differs

    def _resolve(self, first: Compare, partitions: Partitions) -> None:
        """Look at series that differ until they are done with, or only what is lacking is left; and join that."""
        heard, is_moving = Heard(self._series(first, partitions)), True
        for look in range(1, LOOKS):
            if not heard.open or not is_moving:
                break
            time.sleep(min(SETTLE_S * look, self._left_s()))
            is_moving = heard.hear(self._series(first, partitions_of(heard.open, self._plan)))
        left: Told = heard.open
        if left and is_moving:
            left = self._unsettled(first, left)
        if left:
            self._join(left)

    def _series(self, first: Compare, partitions: Partitions, end_ns: int | None = None) -> Told:
        """What the owners that were compared first tell of each series. end_ns: None as in the question."""
        compare = self._ask_all(partitions, True, self._end_ns if end_ns is None else end_ns)
        for node, answered in first.answered.items():
            if answered & partitions & ~compare.answered.get(node, 0):
                raise UnverifiedError(f"not all owners could be compared again: {_troubles(compare)}")
        return compare.by_series()

    def _unsettled(self, first: Compare, told: Told) -> Told:
        """The series among those that change in which more differs than what is on its way."""
        cut_ns = clock.wall_ns() - FRESH_NS
        if self._end_ns is not None and self._end_ns <= cut_ns:
            return told
        begin_ns, settled = cut_ns + 1, set(told)
        if self._start_ns is not None and self._start_ns > cut_ns:
            begin_ns = self._start_ns
        else:
            settled -= Heard(self._series(first, partitions_of(told, self._plan), cut_ns)).open.keys()
        if not settled:
            return told
        fetcher = self._fetcher()
        young = {key: told[key] for key in settled}
        first_look = self._fresh(fetcher, young, begin_ns)
        time.sleep(min(SETTLE_S, self._left_s()))
        later_look = self._fresh(fetcher, young, begin_ns)
        done = {key for key, figures in young.items() if _caught_up(list(figures), key, first_look, later_look)}
        return {key: figures for key, figures in told.items() if key not in done}

    def _fresh(self, fetcher: Fetcher, told: Told, begin_ns: int) -> dict[str, dict[bytes, Rows]]:
        nodes = {node for figures in told.values() for node in figures}
        return {
            node: fetcher.rows(node, [key for key, figures in told.items() if node in figures], begin_ns, self._end_ns)
            for node in sorted(nodes)
        }

    def _join(self, told: Told) -> None:
        logger.warning("owners differ", series=len(told))
        self._repair(told)
        self._found.rows = self._fetcher().joined(told)

    def _fetcher(self) -> Fetcher:
        most = min(self._limits.points, JOIN_POINTS)
        return Fetcher(self._ask, self._match, self._start_ns, self._end_ns, self._plan, most, self._deadline_s)

    def _repair(self, told: Told) -> None:
        keys = list(told) if len(told) <= FEW_SERIES else []
        partitions = partitions_of(told, self._plan)

        def request(plan: Plan) -> protocol.RepairRequest:
            return protocol.RepairRequest(plan.bitmap(partitions), keys)

        for node in self._repairs.due(sorted({node for figures in told.values() for node in figures})):
            asked = Direct(protocol.REPAIR, protocol.JobsReply, node, request, min(REPAIR_S, self._left_s()))
            self._ask(asked)
            if asked.reply is None:
                logger.warning("repair not begun", node=node, reason=[each.reason for each in asked.trouble.values()])

    @property
    def _plan(self) -> Plan:
        assert self._found.plan is not None, "BUG: nothing was compared"
        return self._found.plan

    def _left_s(self) -> float:
        return max(0.001, self._deadline_s - clock.monotonic_s())


def _caught_up(
    nodes: list[str], key: bytes, first: dict[str, dict[bytes, Rows]], later: dict[str, dict[bytes, Rows]]
) -> bool:
    """Whether each owner has at the later look all that any had at the first."""
    return all(
        holds(later[mine].get(key, NO_ROWS), first[other].get(key, NO_ROWS))
        for mine in nodes
        for other in nodes
        if mine != other
    )


def _troubles(compare: Compare) -> str:
    """Why owners told nothing."""
    troubles = {node: trouble.reason for node, trouble in sorted(compare.trouble.items())}
    if compare.plan is not None:
        troubles |= {node: reason for node, (reason, _) in sorted(compare.plan.behind.items())}
    return "; ".join(f"{node}: {reason}" for node, reason in troubles.items()) or "they took too long"
