"""Fences: partitions that this node still owns, or joins, and takes no points of, because they are about to move.

Owns until when each holds. Belongs to the writer thread.

Whoever drives a move fences the old owner before he makes it final. From then on the old owner acknowledges no point of
the partition, so what it holds can be compared with what the new owner holds. While it does not, nobody does: a point
is acknowledged when all that are to take it have it. So the old owner still has every acknowledged point, and answers,
until the fence is *closed*: right before the move is made final, for then new points go to the new owner alone. From
closing on it answers no question either.

Who joins is fenced after the old owner, so that both stop at nearly the same points and have the same to compare. That
proves nothing, and nothing is lost where it fails.

A fence ends when the ring changes there. Should its driver die, it lapses: after its time, once the ring store was seen
(after that time) to hold the ring in force. While that cannot be read it stays: the partition may have been given away.
At a node that joins, time alone ends it: it gives nothing away, and who leaves refuses for as long as he has to.
A fence that is closed is not opened again before that: another driver may be about to save.
"""

import numpy as np
import numpy.typing as npt

from common import clock, log
from common.ring import Ring

logger = log.get("storage.fences")


class Fences:
    """seconds: how long a fence holds at least. fenced, and of these closed: bool by partition, replaced whole."""

    def __init__(self, partitions: int, seconds: float) -> None:
        self.seconds = seconds
        self.fenced = np.zeros(partitions, np.bool_)
        self.closed = np.zeros(partitions, np.bool_)
        self._until_s = np.zeros(partitions)
        self._epoch = np.zeros(partitions, np.int64)  # of the ring in force when it was fenced

    def put(self, partitions: npt.NDArray[np.bool_], ring: Ring, reads: bool = True) -> None:
        """Fence some partitions, or do it anew. reads: close these fences, too."""
        self._until_s[partitions] = clock.monotonic_s() + self.seconds
        self._epoch[partitions] = ring.epoch
        self.fenced = self.fenced | partitions
        if reads:
            self.closed = self.closed | partitions
        logger.info("fenced", partitions=int(partitions.sum()), epoch=ring.epoch, reads=reads)

    def follow(self, ring: Ring) -> None:
        """Let go what has changed with a newer ring."""
        self.fenced = self.fenced & (ring.since <= self._epoch)
        self.closed = self.closed & self.fenced

    def due(self) -> bool:
        """Whether the time of a fence is over: then the ring store is to be looked at."""
        return bool((self.fenced & (self._until_s <= clock.monotonic_s())).any())

    def lapse(self, confirmed_s: float, joined: npt.NDArray[np.bool_]) -> bool:
        """Let go what has had its time; whether anything did.

        confirmed_s: monotonic, when the ring store was last known to hold the ring in force. joined: of which this
        node is no owner.
        """
        now_s = clock.monotonic_s()
        over = self.fenced & (self._until_s <= np.where(joined, now_s, min(confirmed_s, now_s)))
        if not over.any():
            return False
        self.fenced, self.closed = self.fenced & ~over, self.closed & ~over
        logger.warning("fence lapsed: nobody moved the partitions", partitions=int(over.sum()))
        return True
