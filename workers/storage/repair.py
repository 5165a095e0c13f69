"""The repair of a node: the thread that gets from other nodes what this one lacks.

Owns the connections to the peers, the jobs in work and when they begin. Which peers serve a job is serving.py's; what
is asked, and what is proven by the answers, converge.py's; what is stored, and how, the store's. Never writes to
another node: each pulls for itself.

    pull     rows of partitions that move here, from the node that ringctl names
    refill   of a node that is behind: from one current co-owner of each partition; then it is behind no more
    repair   asked for: compare with every co-owner that is current
    round    the same in the background, every storage.repair_interval_s

Repairs and rounds look at what is older than storage.repair_settle_s only: newer points may be on their way; and twice
at what differs, a moment apart, for points of any time may (converge.py). No job
uses a node that has a mark: it may lack acknowledged points, and a refill from it would prove nothing. (That is looked
up when a leg begins. A mark put later speaks of points acknowledged later, and those have gone to this node, too, or
lie in a spool for it, which has a mark of its own. Only what this node had taken before it lost its disk may have been
on its way to the peer until then, and lie in a spool for that one now: so a refill looks again before it counts.) A
node that is damaged while it refills begins again with what it had compared before: `Behind.hits` tells.

Exchanges are at one delete number, the node's when an attempt begins. A delete that comes into force on either side
ends the attempt; the next one begins with the partitions that are not done. So does everything else that fails: a
connection that breaks, a peer that is behind, a full disk. Between attempts a job waits ever longer, and tells why.

Thread: everything in Repair but `handlers` and `status` belongs to the repair thread. It answers the questions about
this node itself, while the peer works on the same ones; a job that pulls fast is bounded by storage.repair_rate_bytes,
and jobs take turns step by step.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from common import bus, clock, config, log, metrics, protocol
from common.errors import MinitrueError, ProtocolError
from common.protocol import ErrorReply, FetchReply, Message, PullRequest, RepairRequest
from common.ringstore import Mark
from common.series import partition_of
from common.wake import Wake
from workers.storage import jobs
from workers.storage.behind import Behind
from workers.storage.converge import Ask, Converge, Fetch, Fetched, Flush, Pause, Taken, Tally
from workers.storage.jobs import Job, Jobs, Leg
from workers.storage.node import Node, partitions_of
from workers.storage.peers import TIMEOUT_S, Peers
from workers.storage.runs import Run
from workers.storage.serving import HopelessError, Serving, TryAgainError
from workers.storage.work import Handler, RefusedError, at_once

TICK_S: Final = 0.1  # between looks at connections, deadlines and what is due
CONNECT_S: Final = 3.0  # for a connection to come up; a node that restarts is back by then
RESEND_S: Final = 0.05  # between tries to send, meanwhile
OPENING_S: Final = 0.5  # between questions to a peer that opens its store
RETRY_S: Final = 0.2  # before the second attempt, doubled up to
RETRY_MAX_S: Final = 10.0
FETCH_BYTES: Final = 8 << 20  # of one reply: what a few of them take in memory is little, and a segment is not tiny
DOUBT_S: Final = 1.0  # in which a batch that reached one owner reaches the others, unless one of them gets a mark
RECENT_S: Final = 2.0  # before a pull: what differs behind a fence was on its way when that was put
AT_ONCE: Final = {jobs.PULL: 8, jobs.REFILL: 1, jobs.REPAIR: 1, jobs.ROUND: 1}  # jobs of a kind in work
ATTEMPTS: Final = {
    jobs.REPAIR: 8,
    jobs.ROUND: 3,
}  # in a row that bring nothing; the others are wanted until they are done

_COUNTED: Final = {
    "points": "Points pulled from other nodes because this one lacked them.",
    "blocks": "Blocks pulled that were taken as they are.",
    "bytes": "Bytes of points that other nodes sent to this one, in blocks and rows.",
    "summarized": "Blocks compared by their summaries, here and by peers.",
    "decoded": "Blocks decoded to compare what is in them, here and by peers.",
    "failures": "Attempts at pulls and repairs that failed; all but the last one of a job are made again.",
}
_REPLIES: Final[Mapping[bytes, Any]] = {
    protocol.DIGESTS: protocol.DigestsReply,
    protocol.SERIES_DIGESTS: protocol.SeriesDigestsReply,
    protocol.RANGE_DIGESTS: protocol.RangeDigestsReply,
    protocol.FETCH: FetchReply,
    protocol.FETCH_PARTITION: FetchReply,
}

logger = log.get("storage.repair")


class Here(Protocol):
    """What repair needs of the node's own store. Methods may raise StorageError and RefusedError."""

    @property
    def delete_number(self) -> int: ...

    def answer(self, kind: bytes, body: Any) -> Any:
        """The reply to a question about what this node holds, whatever it answers to others."""

    def take(self, replies: Sequence[FetchReply]) -> Taken:
        """Take in what this node lacks of replies."""


class Repair:
    """See the module's text. counts: by what happened, written by the repair thread, read by any."""

    def __init__(
        self,
        sockets: bus.Bus,
        node: Node,
        here: Here,
        marks: Callable[[], frozenset[Mark]],
        settings: config.Storage,
        behind: Behind | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._wake = Wake()
        self._jobs = Jobs(self._wake.set)
        self._node = node
        self._here = here
        self._serving = Serving(node, marks)
        self._settings = settings
        self._behind = behind
        self._poller = bus.Poller([self._wake])
        self._peers: Peers[Run] = Peers(sockets, node, self._poller)
        self._runs: dict[int, Run] = {}
        self._free_s = 0.0  # when what all of them pulled is no more than their rates allow
        self._next_tick_s = 0.0
        self._next_refill_s = 0.0
        self._next_round_s = clock.monotonic_s() + self._interval_s()

    # Any thread

    def handlers(self) -> dict[bytes, Handler]:
        """How the kinds about jobs are answered, by kind."""
        return {
            protocol.PULL: at_once(PullRequest, self._pull),
            protocol.REPAIR: at_once(RepairRequest, self._repair),
            protocol.JOBS: at_once(protocol.JobsRequest, self._jobs.shown),
            protocol.CANCEL_JOB: at_once(protocol.JobsRequest, self._jobs.give_up),
        }

    def status(self) -> dict[str, Any]:
        """For people."""
        now_s = clock.monotonic_s()
        shown = [job.shown() for job in self._jobs.open()]
        return {
            "jobs": [
                {name: getattr(job, name) for name in job.__struct_fields__ if name != "unproven"} for job in shown
            ],
            "next_round_s": max(0.0, self._next_round_s - now_s),
            **self.counts,
        }

    def export_metrics(self) -> None:
        """Show what happened as metrics of this process. Once per process."""
        metrics.gauge_from(
            "minitrue_repair_jobs", "Pulls and repairs that have not ended, by kind.",
            lambda: {(kind,): sum(job.kind == kind for job in self._jobs.open()) for kind in AT_ONCE}, labels=("kind",),
        )  # fmt: skip
        metrics.counter_from(
            "minitrue_repair_partitions_total",
            "Partitions compared with a peer, by what was found.",
            lambda: {(outcome,): count for outcome, count in list(self.outcomes.items())},
            labels=("outcome",),
        )
        for name, help_ in _COUNTED.items():
            metrics.counter_from(f"minitrue_repair_{name}_total", help_, partial(self.counts.__getitem__, name))

    def _pull(self, asked: PullRequest) -> protocol.JobsReply:
        view = self._node.view
        wanted = partitions_of(asked.partitions, view.ring.partitions)
        if (wanted & ~view.written).any():
            foreign = int(np.flatnonzero(wanted & ~view.written)[0])
            raise RefusedError(
                protocol.ERR_NOT_MINE, f"partition {foreign} is neither owned nor joined at epoch {view.ring.epoch}"
            )
        if asked.peer == self._node.node_id or not view.ring.has(asked.peer):
            raise ProtocolError(f"peer {asked.peer!r}, want another node of the ring")
        partitions = np.flatnonzero(wanted).tolist()
        return self._begun(jobs.PULL, partitions, asked.rate_bytes, peer=asked.peer)

    def _repair(self, asked: RepairRequest) -> protocol.JobsReply:
        view = self._node.view
        wanted = partitions_of(asked.partitions, view.ring.partitions) & view.owned
        keys = asked.series or None
        if keys is not None:
            named = {partition_of(key, view.ring.partitions) for key in keys}
            wanted = wanted & np.isin(np.arange(len(wanted)), list(named))
        return self._begun(jobs.REPAIR, np.flatnonzero(wanted).tolist(), asked.rate_bytes, keys=keys)

    def _begun(
        self,
        kind: str,
        partitions: Sequence[int],
        rate: int | None,
        peer: str = "",
        keys: Sequence[bytes] | None = None,
    ) -> protocol.JobsReply:
        rate = self._settings.repair_rate_bytes if rate is None else rate
        if rate < 0:
            raise ProtocolError(f"rate of {rate} bytes a second, want 0 or more")
        job = self._jobs.begin(kind, partitions, self._node.view.ring.partitions, peer, keys, rate)
        logger.info("job begun", job=job.number, kind=kind, partitions=len(partitions), peer=peer)
        return protocol.JobsReply([job.shown()])

    # The repair thread

    def run(self, stop: bus.Pollable) -> None:
        """Work until `stop` becomes readable. What jobs have brought stays; nobody knows of the jobs any more."""
        self._poller.register(stop)
        try:
            while stop not in (ready := self._poller.poll(self._wait_s())):
                for source in ready:
                    if source is self._wake:
                        self._wake.clear()
                    else:
                        self._take_replies(source)
                self._look()
                for run in list(self._runs.values()):
                    self._go_on(run)
        finally:
            self._peers.close()

    def _wait_s(self) -> float:
        due_s = min([run.due_s for run in self._runs.values() if not run.is_sent], default=float("inf"))
        return max(0.0, min(due_s, self._next_tick_s) - clock.monotonic_s())

    def _look(self) -> None:
        """Look at the clocks, and for jobs that are to begin or to be given up."""
        now_s = clock.monotonic_s()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + TICK_S
            for run, why in self._peers.lost():
                self._put_off(run, why)
            self._refill(now_s)
            self._begin_round(now_s)
        waiting = self._jobs.open()
        for job in waiting:
            if job.is_given_up:
                self._end(job, jobs.CANCELLED)
        for job in waiting:
            in_work = sum(run.job.kind == job.kind for run in self._runs.values())
            if not job.has_ended and job.number not in self._runs and in_work < AT_ONCE[job.kind]:
                self._runs[job.number] = Run(job, self._hits())

    def _refill(self, now_s: float) -> None:
        """Begin to refill a node that is behind, unless that is under way or was just given up."""
        lacking = np.flatnonzero(self._node.view.behind & self._node.view.written).tolist()
        if lacking and now_s >= self._next_refill_s and not self._is_open(jobs.REFILL):
            self._next_refill_s = now_s + RETRY_MAX_S
            self._begun(jobs.REFILL, lacking, None)

    def _begin_round(self, now_s: float) -> None:
        """Compare with the co-owners when it is time to, unless that is under way, or the node lacks something that
        is on its way already, by refill or from a spool.
        """
        if now_s < self._next_round_s:
            return
        self._next_round_s = now_s + self._interval_s()
        owned = np.flatnonzero(self._node.view.owned).tolist()
        try:
            is_behind = bool(self._node.view.behind.any()) or self._node.node_id in self._serving.marked()
        except TryAgainError as error:
            logger.warning("no round of repair this time", reason=str(error))
            return
        if owned and not is_behind and not self._is_open(jobs.ROUND):
            self._begun(jobs.ROUND, owned, None)

    def _is_open(self, kind: str) -> bool:
        return any(job.kind == kind for job in self._jobs.open())

    def _interval_s(self) -> float:
        """Until the next round: nodes that were started together do not all compare at once."""
        return float(self._settings.repair_interval_s * random.uniform(0.75, 1.0))

    # One job

    def _go_on(self, run: Run) -> None:
        """Do what is due."""
        if run.is_sent or run.job.has_ended or clock.monotonic_s() < run.due_s:
            return
        try:
            if run.steps is None:
                self._begin(run)
            else:
                self._send(run)
        except Exception as error:
            self._fail(run, error)

    def _begin(self, run: Run) -> None:
        """Begin an attempt at a leg, or find that all is done."""
        job = run.job
        if job.at == len(job.legs):
            job.legs = [*job.legs, *self._serving.next_legs(job, run.failures)]
            if job.at == len(job.legs):
                self._end(job, jobs.FAILED if run.failures and job.kind in ATTEMPTS else jobs.DONE, job.note)
                return
        leg = job.legs[job.at]
        run.peer = self._serving.peer(job, leg)
        run.hits = self._hits()
        job.state = jobs.RUNNING
        settled_ns = clock.wall_ns() - int(self._settings.repair_settle_s * 1e9)
        whole = job.kind in (jobs.PULL, jobs.REFILL)
        run.steps = Converge(
            leg.partitions,
            job.count,
            self._here.delete_number,
            leg.tally,
            end_ns=None if whole else settled_ns,
            settled_ns=settled_ns if job.kind == jobs.REFILL else None,
            keys=job.keys,
            fetch_bytes=self._fetch_bytes(job),
            doubt_s=0.0 if whole else min(DOUBT_S, self._settings.repair_settle_s),
            recent_ns=clock.wall_ns() - int(RECENT_S * 1e9) if job.kind == jobs.PULL else None,
        ).run()
        logger.debug("leg begun", job=job.number, peer=leg.peer, partitions=len(leg.partitions))
        self._advance(run, None)

    def _hits(self) -> int:
        return self._behind.hits if self._behind is not None else 0

    def _advance(self, run: Run, result: Any) -> None:
        """Take the result of a step, and find the next one."""
        assert run.steps is not None
        leg = run.job.legs[run.job.at]
        try:
            step = run.steps.send(result)
            while isinstance(step, Flush):
                step = run.steps.send(self._take(run))
        except StopIteration:
            self._end_leg(run, leg)
        else:
            run.step = step
            run.due_s = self._due_s(run, step)
            run.connect_by_s = max(clock.monotonic_s(), run.due_s) + CONNECT_S
        if run.job.kind == jobs.REFILL:
            self._clear(run, leg)
        progress = run.job.at + leg.tally.done + leg.tally.points
        if progress > run.progress:
            run.progress, run.attempts, run.job.error = progress, 0, ""

    def _due_s(self, run: Run, step: Ask | Fetch | Pause) -> float:
        """When to carry a step out."""
        if isinstance(step, Pause):
            return clock.monotonic_s() + step.seconds
        return self._free_s if isinstance(step, Fetch) and run.job.rate_bytes else 0.0

    def _end_leg(self, run: Run, leg: Leg) -> None:
        run.steps = run.step = None
        run.job.at += 1
        run.due_s = 0.0
        for outcome in ("equal", "proven", "moving"):
            self.outcomes[outcome] += len(getattr(leg.tally, outcome))

    def _clear(self, run: Run, leg: Leg) -> None:
        """Let the node answer for what is proven to be here, unless it was damaged after the comparison began."""
        if self._behind is None:
            return
        if run.hits != self._hits():
            leg.tally = Tally()
            raise TryAgainError("damage was found meanwhile")
        proven = [each for each in leg.tally.equal | leg.tally.proven if self._behind.partitions[each]]
        if proven:
            self._serving.check_current(leg.peer)
            self._behind.clear(proven, run.hits)
        if leg.tally.moving:
            raise TryAgainError(f"points of long ago go on to arrive in {len(leg.tally.moving)} partitions")

    def _send(self, run: Run) -> None:
        """Ask the peer, and meanwhile this node; go on when a pause is over."""
        assert run.step is not None
        assert run.peer is not None
        if isinstance(run.step, Pause):
            self._advance(run, None)
            return
        peer = run.peer
        if not self._peers.ask(peer, run.step.kind, run.step.body, run):
            run.due_s = clock.monotonic_s() + RESEND_S
            if run.due_s > run.connect_by_s:
                raise TryAgainError(self._peers.why_not(peer))
            return
        run.is_sent = True
        if isinstance(run.step, Ask):
            run.ours = self._here.answer(run.step.kind, run.step.body)

    def _take_replies(self, source: object) -> None:
        for run, message in self._peers.replies(source):
            self._node.told_epoch = max(self._node.told_epoch, message.header.epoch)
            run.is_sent = False
            try:
                self._take_reply(run, message)
            except Exception as error:
                self._fail(run, error)

    def _take_reply(self, run: Run, message: Message) -> None:
        step = run.step
        assert isinstance(step, Ask | Fetch) and run.steps is not None
        if message.kind == protocol.ERROR:
            error = protocol.decode_body(message.body, ErrorReply)
            if error.error == protocol.ERR_OPENING and self._waits_for_opening(run):
                run.due_s = clock.monotonic_s() + OPENING_S
                run.job.error = f"{message.header.sender}: {error.error}: {error.message}"
                return
            raise TryAgainError(f"{message.header.sender}: {error.error}: {error.message}")
        if message.kind != protocol.REPLY:
            raise ProtocolError(f"{message.header.sender} answered {step.kind.decode()} with {message.kind.decode()}")
        reply = protocol.decode_body(message.body, _REPLIES[step.kind])
        if isinstance(step, Ask):
            ours, run.ours = run.ours, None
            for cost in (reply.cost, ours.cost):
                self.counts.update(summarized=cost.blocks_summarized, decoded=cost.blocks_decoded)
            self._advance(run, (reply, ours))
        else:
            self._advance(run, self._fetched(run, reply, len(message.body)))

    @staticmethod
    def _waits_for_opening(run: Run) -> bool:
        """Whether to ask again, and not count that as an attempt: for as long as an answer is waited for. Jobs whose
        attempts are not counted begin anew, and may find another peer.
        """
        return run.job.kind in ATTEMPTS and clock.monotonic_s() < run.connect_by_s - CONNECT_S + TIMEOUT_S

    def _fetched(self, run: Run, reply: FetchReply, size: int) -> Fetched:
        """Keep what was fetched until it is worth to be taken in, and see what the rate allows next."""
        if reply.delete_number != self._here.delete_number:
            raise TryAgainError(f"delete {self._here.delete_number} came into force, rows are of {reply.delete_number}")
        run.fetched.append(reply)
        run.fetched_bytes += size
        taken = self._take(run) if run.fetched_bytes >= self._fetch_bytes(run.job) else Taken()
        self.counts["bytes"] += size
        if run.job.rate_bytes:
            self._free_s = max(self._free_s, clock.monotonic_s()) + size / run.job.rate_bytes
        return Fetched(reply, size, taken)

    def _take(self, run: Run) -> Taken:
        """Take in what was fetched."""
        taken = self._here.take(run.fetched) if run.fetched else Taken()
        run.fetched, run.fetched_bytes = [], 0
        self.counts.update(points=taken.rows, blocks=taken.blocks)
        return taken

    def _fetch_bytes(self, job: Job) -> int:
        """How much a job fetches at once, and takes in at once: of a slow one what comes in a second."""
        return min(FETCH_BYTES, job.rate_bytes or FETCH_BYTES)

    def _fail(self, run: Run, error: Exception) -> None:
        """What to do about an error of a job; one job never ends the node."""
        if isinstance(error, HopelessError):
            self._end(run.job, jobs.FAILED, str(error))
        elif isinstance(error, MinitrueError):
            self._put_off(run, str(error))
        else:
            logger.exception("BUG: job failed", job=run.job.number)
            self._end(run.job, jobs.FAILED, f"BUG: {type(error).__name__}: {error}")

    def _put_off(self, run: Run, why: str) -> None:
        """End an attempt. The next one begins later, with the partitions that are not done."""
        job = run.job
        if job.has_ended:
            return
        self._leave(run)
        self.counts["failures"] += 1
        run.attempts += 1
        leg = job.legs[job.at] if job.at < len(job.legs) else None
        if job.kind == jobs.REFILL:  # others may be those to ask by then
            run.failures.update([leg.peer] if leg is not None else [])
            job.legs = [Leg(each.peer, _done(each.tally), each.tally) for each in job.legs if each.tally.done]
            job.at = len(job.legs)
        if run.attempts >= ATTEMPTS.get(job.kind, run.attempts + 1):
            if leg is None:
                self._end(job, jobs.FAILED, why)
                return
            run.failures[leg.peer] += 1  # the others are compared with all the same
            run.attempts = 0
            job.at += 1
            job.note = why
        job.state, job.error = jobs.WAITING, why
        run.due_s = clock.monotonic_s() + min(RETRY_S * 2 ** min(run.attempts - 1, 10), RETRY_MAX_S)
        if logger.limited(f"put off {job.kind}", 10.0):
            logger.warning("job waits", job=job.number, kind=job.kind, reason=why, attempts=run.attempts)

    def _leave(self, run: Run) -> None:
        """Let an attempt be."""
        if run.steps is not None:
            run.steps.close()
        self._peers.forget(run)
        run.steps = run.step = run.ours = None
        run.fetched, run.fetched_bytes = [], 0
        run.is_sent = False

    def _end(self, job: Job, state: str, why: str = "") -> None:
        """The end of a job."""
        run = self._runs.pop(job.number, None)
        if run is not None:
            self._leave(run)
        job.end(state, why)
        self.counts[f"jobs_{state}"] += 1
        shown = job.shown()
        say = logger.warning if state == jobs.FAILED else logger.info
        say(
            "job ended", job=job.number, kind=job.kind, state=state, equal=shown.equal, proven=shown.proven,
            moving=shown.moving, points=shown.points, bytes=shown.bytes, seconds=round(shown.seconds, 3), reason=why,
        )  # fmt: skip


def _done(tally: Tally) -> list[int]:
    return sorted(tally.equal | tally.proven | tally.moving)
