"""The jobs by which a node gets rows from others: asked for, looked at and given up by any thread, worked on by one.

Owns the list of jobs and their numbers. Knows nothing of how they are worked on (repair.py).

Threads: `_lock` guards the list. What a job is about is constant; how it gets on is written by the thread that works on
it alone, and read by any; `is_given_up` is set by any.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from common import clock, protocol
from common.protocol import JobsReply, JobsRequest, JobState
from workers.storage.converge import Tally

PULL, REPAIR, ROUND, REFILL = "pull", "repair", "round", "refill"
WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
KEPT: Final = 100  # jobs that have ended, for those who look seldom; and the last repair, however old
_ENDED: Final = frozenset((DONE, FAILED, CANCELLED))


@dataclass
class Leg:
    """The part of a job that one peer can serve."""

    peer: str
    partitions: Sequence[int]
    tally: Tally = field(default_factory=Tally)


@dataclass
class Job:
    """One of them. peer: that is asked for, "" for whoever has the rows. rate_bytes: a second, 0: no limit.

    legs: replaced whole, none before it is known who serves; ended_s: monotonic.
    """

    number: int
    kind: str
    partitions: Sequence[int]
    count: int  # partitions of the ring
    peer: str = ""
    keys: Sequence[bytes] | None = None
    rate_bytes: int = 0
    legs: Sequence[Leg] = ()
    at: int = 0  # the leg in work
    state: str = WAITING
    error: str = ""
    note: str = ""  # of what was left out
    is_given_up: bool = False
    begun_s: float = field(default_factory=clock.monotonic_s)
    ended_s: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in _ENDED

    def end(self, state: str, error: str = "") -> None:
        """The last word on it."""
        self.ended_s = clock.monotonic_s()
        self.state, self.error = state, error

    def shown(self) -> JobState:
        """How it gets on."""
        ended_s, now_s = self.ended_s, clock.monotonic_s()
        legs = self.legs
        tallies = [leg.tally for leg in legs]
        proven = [leg.tally.equal | leg.tally.proven for leg in legs]
        asked = [leg.partitions for leg in legs] or [self.partitions]
        unproven = {each for of_leg in asked for each in of_leg}
        if legs:
            unproven = {
                each for leg, done in zip(legs, proven, strict=True) for each in leg.partitions if each not in done
            }
        return JobState(
            job=self.number,
            kind=self.kind,
            state=self.state,
            peer=legs[min(self.at, len(legs) - 1)].peer if legs else self.peer,
            partitions=sum(map(len, asked)),
            done=sum(each.done for each in tallies),
            equal=sum(len(each.equal) for each in tallies),
            proven=sum(len(each.proven) for each in tallies),
            moving=sum(len(each.moving) for each in tallies),
            unproven=protocol.bitmap(sorted(unproven), self.count),
            points=sum(each.points for each in tallies),
            blocks=sum(each.blocks for each in tallies),
            bytes=sum(each.bytes for each in tallies),
            seconds=(now_s if ended_s is None else ended_s) - self.begun_s,
            error=self.error,
            ended_s_ago=None if ended_s is None else now_s - ended_s,
        )


class Jobs:
    """All jobs of a node. woken: called when there is something to do."""

    def __init__(self, woken: Callable[[], None]) -> None:
        self._woken = woken
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._next = secrets.randbits(40) << 12  # numbers of an earlier process name no job of this one

    def begin(
        self,
        kind: str,
        partitions: Sequence[int],
        count: int,
        peer: str = "",
        keys: Sequence[bytes] | None = None,
        rate_bytes: int = 0,
    ) -> Job:
        """A new job. A pull takes the place of those under way that pull any of its partitions.

        For what a pull proves is proven from when it was asked for on: whoever has fenced a partition has to know
        that comparing began behind the fence.
        """
        with self._lock:
            job = Job(self._next, kind, partitions, count, peer, keys, rate_bytes)
            self._next += 1
            if kind == PULL:
                asked = set(partitions)
                for other in self._jobs.values():
                    if other.kind == PULL and not other.has_ended and not asked.isdisjoint(other.partitions):
                        other.is_given_up = True
            self._jobs[job.number] = job
            self._forget()
        self._woken()
        return job

    def open(self) -> list[Job]:
        """Those that have not ended, in the order in which they were asked for."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.has_ended]

    def shown(self, asked: JobsRequest) -> JobsReply:
        """How some get on."""
        return JobsReply([job.shown() for job in self._chosen(asked.jobs)])

    def give_up(self, asked: JobsRequest) -> JobsReply:
        """Let some end where they are. What they have brought stays."""
        chosen = self._chosen(asked.jobs)
        for job in chosen:
            job.is_given_up = True
        self._woken()
        return JobsReply([job.shown() for job in chosen])

    def _chosen(self, numbers: Iterable[int]) -> list[Job]:
        with self._lock:
            wanted = set(numbers)
            return [job for job in self._jobs.values() if not wanted or job.number in wanted]

    def _forget(self) -> None:
        ended = [number for number, job in self._jobs.items() if job.has_ended]
        repairs = [number for number in ended if self._jobs[number].kind != PULL]
        for number in ended[:-KEPT]:
            if number not in repairs[-1:]:  # when it was repaired last is wanted after many moves, too
                del self._jobs[number]
