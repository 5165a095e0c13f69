"""A job of repair while it is worked on: the attempt under way, what it waits for, what came and is not taken in yet.

Owns the fields; repair.py fills them. Belongs to the repair thread.
"""

from collections import Counter
from typing import Any

from common.protocol import FetchReply
from common.ring import Node as RingNode
from workers.storage.converge import Ask, Fetch, Pause, Steps
from workers.storage.jobs import Job


class Run:
    """A job in work: the attempt under way, or when the next one is due (due_s, monotonic)."""

    def __init__(self, job: Job, hits: int) -> None:
        self.job = job
        self.hits = hits  # of what the node lacks, when this began
        self.peer: RingNode | None = None
        self.steps: Steps[None] | None = None
        self.fetched: list[FetchReply] = []  # not taken in yet
        self.fetched_bytes = 0
        self.step: Ask | Fetch | Pause | None = None  # to be sent when it is due, or in flight
        self.is_sent = False
        self.ours: Any = None  # this node's own answer to an Ask in flight
        self.due_s = 0.0
        self.connect_by_s = 0.0
        self.attempts = 0
        self.progress = -1
        self.failures: Counter[str] = Counter()  # of legs, by peer
