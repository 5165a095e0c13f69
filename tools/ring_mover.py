"""Carries a ring to its target: lets nodes join, has them pull, fences who leaves, and makes the new owners.

Its only state is the ring. Everything is looked up anew at each step: what is to be done (ringmoves.steps), which moves
are under way, who answers, who bears a mark. So whoever runs a Mover goes on where another one ended, however it ended.
A step that fails changes nothing that the next one does not look up again.

One wave of partitions, each save being one epoch:

    begin    the targets join: from now on they get all points of their partitions, and count for PUBACK
    adopt    every owner and target answers at that epoch
    pull     each target gets the partition from a current owner, from the one that leaves if it is current
    fence    the ones that leave refuse points of it
    pull     once more, behind the fence: little, and then nothing is left that the target has not
    close    the ones that leave refuse questions of what is about to be saved, and are the same processes as before
    finish   the targets are owners, unless a mark names them, and the ones that left are not

What holds where this is cut short, and where others interfere:

- Killed anywhere: fences lapse, moves stay in the ring, targets keep what they have pulled and go on to take points.
  The next Mover pulls again, which costs comparing digests.
- Another epoch was saved meanwhile (a delete, another ringctl): the save fails by comparison of epochs, the ring is
  loaded again, and a partition is finished only if its move is the same one and its `since`, too: had the move been
  cancelled and begun again, its target had not got every point between.
- A fence lapsed before the finish (a slow pull, a slow ring store): its partitions wait for the next round. Fences are
  renewed while the last pull runs. The save begins with at least half of a fence's time left. Should it take longer
  than that, the old owner may answer again at the old epoch, for as long as it takes it to see the new one.
- A mark appeared at an owner after the look with which the wave began: a bridge may have relied on its spool under the
  ring of before. What was pulled from another owner may lack such a point, so that partition is pulled anew.
- An owner that is to go, and nobody comes: marks are looked at again behind its fence. Had the one that stays just lost
  its disk, there would be no co-owner left to refill it from.
- Two Movers at once: the later one's note in the ring store ends the earlier one at its next step. Until then both may
  do the same work; each save is compared, and a pull takes the place of the other's.

Thread: that of the caller; `ask` may use threads of its own.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from common import clock, log, protocol
from common.errors import MinitrueError, RingConflictError, RingStoreError
from common.protocol import FenceReply, JobState
from common.ring import Move, Ring
from common.ringmoves import Step, begin, dropped, finish, settled, steps
from common.ringstore import Mark, RingStore
from tools import ring_driver
from tools.ring_fences import Fences
from tools.ring_outlook import Outlook, sorted_out, spread

WAVE: Final = 512  # partitions at once, at most: what a wave takes besides copying is the same for few and for many
WAVE_POINTS: Final = 5_000_000  # at once: all of them are compared behind the fence, which should not last
WAVE_LEAST: Final = 16  # however many points they have: several disks and networks work at the same time
WAIT_S: Final = 0.5  # between looks while nothing can be done
ADOPT_S: Final = 0.02  # between looks while nodes take over a ring that was just saved
ADOPTED_S: Final = 1.0  # they have done so by then: who has not is waited for, and named
POLL_S: Final = 0.005, 0.1  # between looks at jobs, ever longer up to the second
FENCED_S: Final = 0.02  # the second behind a fence, where nearly all is there and PUBACKs wait
STALL_S: Final = 15.0  # a pull that has an error and brings nothing for so long is left to itself
DARK_S: Final = 5.0  # a target that tells nothing of its pull for so long is left to itself
DROPS: Final = 1024  # owners that go at once where nobody comes: a moment of refusing, nothing is copied
SAVES: Final = 5  # tries to save a ring that others change at the same time
NOTE_S: Final = 10.0  # between renewals of the note of who drives
WAITING: Final = "waiting"  # the phase in which nothing gets on

logger = log.get("ringctl")

T = TypeVar("T")


class MoverError(MinitrueError):
    """Moves that cannot be carried on by this process."""


class Asks(Protocol):
    """What is asked of nodes, see ring_ask.py. Every method may raise MinitrueError."""

    def statuses(self, ring: Ring, nodes: Sequence[str]) -> Mapping[str, dict[str, Any] | MinitrueError]: ...

    def pull(self, ring: Ring, node: str, partitions: Sequence[int], peer: str) -> JobState: ...

    def job(self, ring: Ring, node: str, number: int) -> JobState | None: ...

    def fence(self, ring: Ring, node: str, partitions: Sequence[int], reads: bool) -> FenceReply: ...

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]: ...


@dataclass
class Progress:
    """How far it is. total: changes of an owner there were to make; done: those made. points, blocks, bytes: pulled so
    far. copying_s: in which targets pulled before fences; fenced_s: from fences to saves.
    phase: what is being done; waits: why something does not get on; went_s: when something did last.
    """

    total: int = 0
    done: int = 0
    points: int = 0
    blocks: int = 0
    bytes: int = 0
    copying_s: float = 0.0
    fenced_s: float = 0.0
    epoch: int = 0
    phase: str = ""
    waits: list[str] = field(default_factory=list)
    begun_s: float = field(default_factory=clock.monotonic_s)
    went_s: float = field(default_factory=clock.monotonic_s)

    @property
    def seconds(self) -> float:
        return clock.monotonic_s() - self.begun_s

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes if it goes on like this; None while that is not known."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


class Mover:
    """See the module's text. told: called after each step, and while pulls run."""

    def __init__(
        self,
        store: RingStore,
        ask: Asks,
        told: Callable[[Progress], None] = lambda _: None,
        wave: int = WAVE,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.progress = Progress()
        self._store = store
        self._ask = ask
        self._told = told
        self._wave = wave
        self._pause = pause
        self._token = secrets.token_hex(4)
        self._noted_s = float("-inf")
        self._saved_s = float("-inf")
        self._partition_points = 0.0  # of those where most are

    def run(self, give_up_s: float = float("inf")) -> Progress:
        """Go on until the ring is at its target. give_up_s: without anything getting on.

        Raises MoverError when given up or when another ringctl took over, RingError for a ring that is not valid,
        RingStoreError where the ring store cannot be reached at the beginning.
        """
        self._note()
        self.progress.went_s = clock.monotonic_s()
        try:
            while (went := self._stepped()) is not None:
                if went:
                    self.progress.went_s = clock.monotonic_s()
                elif clock.monotonic_s() - self.progress.went_s > give_up_s:
                    raise MoverError(f"given up after {give_up_s:g} s: {'; '.join(self.progress.waits)}")
                else:
                    self._pause(ADOPT_S if self._is_fresh() else WAIT_S)
        finally:
            self._forget_note()
        return self.progress

    def _stepped(self) -> bool | None:
        """The same as `step`; a ring store that cannot be reached for a while is waited for."""
        try:
            return self.step()
        except RingStoreError as error:
            self._say(WAITING, [str(error)])
            return False

    def step(self) -> bool | None:
        """Do what can be done next: whether something was; None when nothing is left to do."""
        outlook = self.look()
        ring, left = outlook.ring, steps(outlook.ring)
        self._count(ring, left)
        self._keep_note()
        if outlook.returned:
            return self._unmark(outlook)
        ready, reasons = sorted_out(ring.moves, outlook.hindrance)
        went = bool(ready) and self._carry(outlook, [each for each in ready if isinstance(each, Move)])
        went = went or self._begin(outlook, left, reasons) or self._drop(outlook, left, reasons)
        went = went or self._settle(ring)
        if not went and not left and not ring.moves and settled(ring) is None:  # it is not where a delete came between
            return None
        if not went and not self._is_fresh():
            self._say(WAITING, reasons)
        return went

    def _is_fresh(self) -> bool:
        """Whether a ring was saved so lately that nodes may still be taking it over."""
        return clock.monotonic_s() - self._saved_s < ADOPTED_S

    def look(self) -> Outlook:
        """Ring and marks as stored, and who answers. Raises MoverError where there is no ring."""
        ring = self._store.load()
        if ring is None:
            raise MoverError(f"no ring in {self._store.url}")
        marks = self._store.marks()
        epochs, silent, bridges = {}, {}, dict[str, dict[str, Any]]()
        for node, answer in self._ask.statuses(ring, [each.id for each in ring.nodes]).items():
            if isinstance(answer, MinitrueError):
                silent[node] = str(answer)
            else:
                epochs[node] = int(answer.get("epoch", 0))
                each = answer.get("points", 0) / max(1, answer.get("partitions_owned", 0))
                self._partition_points = max(self._partition_points, each)
                for bridge, told in answer.get("bridges", {}).items():
                    if bridge not in bridges or told["age_s"] < bridges[bridge]["age_s"]:
                        bridges[bridge] = told
        return Outlook(ring, marks, epochs, silent, bridges)

    # One wave

    def _begin(self, outlook: Outlook, left: Sequence[Step], reasons: list[str]) -> bool:
        """Let more nodes join, as many as a wave has room for."""
        ring = outlook.ring
        room = self._most() - len(ring.moves)
        coming = [step for step in left if step.target is not None and step.partition not in ring.moving]
        if room <= 0 or not coming:
            return False
        free, why = sorted_out(coming, outlook.hindrance)
        chosen = spread([each for each in free if isinstance(each, Step)], room)
        reasons += [each for each in why if each not in reasons]
        if not chosen:
            return False
        self._say(f"{len(chosen)} partitions begin to move")
        return self._save(begin(ring, chosen))

    def _most(self) -> int:
        """How many partitions a wave has: by what is in them."""
        fitting = int(WAVE_POINTS / max(1.0, self._partition_points))
        return min(self._wave, max(fitting, WAVE_LEAST))

    def _carry(self, outlook: Outlook, moves: Sequence[Move]) -> bool:
        """Bring some moves to their end: whether any got there."""
        self._say(f"{len(moves)} partitions are copied")
        begun_s = clock.monotonic_s()
        proven = self._pulled(outlook, moves, None)
        self.progress.copying_s += clock.monotonic_s() - begun_s
        copied = [each for each in moves if each.partition in proven or outlook.is_given_up(each.partition)]
        leaving = [each for each in copied if each.source is not None and not outlook.is_lost(each.source)]
        fences = Fences(self._store, self._ask)
        self._say(f"{len(leaving)} partitions are fenced")
        fenced_s = clock.monotonic_s()
        fences.put(outlook.ring, leaving)
        behind = [each for each in leaving if fences.holds(each)]
        checked = self._pulled(outlook, behind, fences) if behind else set()
        done = [each for each in copied if each not in leaving or each.partition in checked]
        went = self._finish(outlook, done, fences)
        self.progress.fenced_s += clock.monotonic_s() - fenced_s if leaving else 0.0
        return went

    def _finish(self, outlook: Outlook, moves: Sequence[Move], fences: Fences) -> bool:
        """Make targets owners: whether any became one."""
        for _ in range(SAVES):
            ring = self._loaded()
            marks = self._store.marks()
            ready = [each for each in moves if self._may_end(outlook, ring, each, marks, fences)]
            fences.close(ring, ready)
            chosen = [each for each in ready if self._is_left(outlook, each, fences)]
            if not chosen:
                return False
            self._say(f"{len(chosen)} partitions change hands")
            if self._save(finish(ring, [each.partition for each in chosen])):
                return True
        return False

    @staticmethod
    def _may_end(outlook: Outlook, ring: Ring, move: Move, marks: frozenset[Mark], fences: Fences) -> bool:
        """Whether what was proven of a move holds for this ring and these marks."""
        partition, source, target = move
        marked = {mark.node for mark in marks}
        same = ring.move(partition) == move and ring.since[partition] == outlook.ring.since[partition]
        if not same or target in marked:
            return False
        if any(node.id in marked - outlook.marked for node in ring.owners(partition)):
            return False
        if outlook.is_given_up(partition) and outlook.undelivered(partition, marks):
            return False
        if source is None:
            return True
        return source in marked if outlook.is_lost(source) else fences.holds(move)

    @staticmethod
    def _is_left(outlook: Outlook, move: Move | Step, fences: Fences) -> bool:
        """Whether the source of a move answers no more, or there is none."""
        return move.source is None or outlook.is_lost(move.source) or fences.is_closed(move)

    def _pulled(self, outlook: Outlook, moves: Sequence[Move], fences: Fences | None) -> set[int]:
        """Have targets pull: the partitions of which they have everything that their peer had when that began.

        Behind a fence nothing comes to the peer any more, and then it must be proven that they have everything.
        """
        groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for partition, source, target in moves:
            peer = outlook.peer(partition, source)
            if peer is not None:
                groups[target, peer].append(partition)
        fenced = {each.partition for each in moves if fences is not None and outlook.peer(*each[:2]) == each.source}
        return Pulls(self, outlook.ring, groups).run(self._ask, fences, fenced)

    def _drop(self, outlook: Outlook, left: Sequence[Step], reasons: list[str]) -> bool:
        """Let owners go that nobody replaces: whether any went."""
        coming = {step.partition for step in left if step.target is not None}
        going = [step for step in left if step.target is None and step.partition not in coming]
        free, why = sorted_out([each for each in going if each.partition not in outlook.ring.moving], outlook.hindrance)
        reasons += [each for each in why if each not in reasons]
        chosen: dict[int, Step] = {}
        for step in free[:DROPS]:
            if isinstance(step, Step):
                chosen.setdefault(step.partition, step)
        if not chosen:
            return False
        fences = Fences(self._store, self._ask)
        fences.put(outlook.ring, [step for step in chosen.values() if not outlook.is_lost(str(step.source))])
        now = replace(outlook, marks=self._store.marks())
        ready, why = sorted_out(chosen.values(), now.hindrance)
        reasons += [each for each in why if each not in reasons]
        fences.close(outlook.ring, ready)
        done = [step for step in ready if self._is_left(now, step, fences)]
        self._say(f"{len(done)} partitions lose an owner")
        return bool(done) and self._save(dropped(outlook.ring, [step for step in done if isinstance(step, Step)]))

    def _settle(self, ring: Ring) -> bool:
        """Let drained nodes leave the ring."""
        after = settled(ring)
        if after is None:
            return False
        gone = sorted({node.id for node in ring.nodes} - {node.id for node in after.nodes})
        self._say(f"{', '.join(gone)} leaves the ring")
        return self._save(after)

    # The ring store

    def _loaded(self) -> Ring:
        ring = self._store.load()
        if ring is None:
            raise MoverError(f"no ring in {self._store.url} any more")
        return ring

    def _save(self, ring: Ring) -> bool:
        """Save the next epoch: whether it is certain that it was. Otherwise the next step sees what there is."""
        try:
            self._store.save(ring, ring.epoch - 1)
        except RingConflictError:
            return False
        except RingStoreError as error:
            self._say("saving", [str(error)])
            return False
        self.progress.epoch, self._saved_s = ring.epoch, clock.monotonic_s()
        return True

    def _unmark(self, outlook: Outlook) -> bool:
        """Take back that nodes are lost: they answer, or are out of the ring."""
        for mark in outlook.returned:
            self._store.remove_mark(mark)
        return True

    def _note(self) -> None:
        self._store.note_driver(ring_driver.note(self._token))
        self._noted_s = clock.monotonic_s()

    def _keep_note(self) -> None:
        """Renew the note now and then. Raises MoverError where somebody else has taken over."""
        note = self._store.driver()
        if note and not note.endswith(self._token):
            raise MoverError(f"another ringctl took over: {note}")
        if not note or clock.monotonic_s() - self._noted_s > NOTE_S:
            self._note()

    def _forget_note(self) -> None:
        try:
            if self._store.driver().endswith(self._token):
                self._store.note_driver("")
        except RingStoreError as error:
            logger.warning("note of who drives moves stays", detail=str(error))

    # What is told

    def _count(self, ring: Ring, left: Sequence[Step]) -> None:
        remaining = len(left) + len(ring.moves)
        self.progress.total = max(self.progress.total, self.progress.done + remaining)
        self.progress.done = self.progress.total - remaining
        self.progress.epoch = ring.epoch

    def _say(self, phase: str, waits: Iterable[str] = ()) -> None:
        self.progress.phase, self.progress.waits = phase, list(waits)
        self._told(self.progress)

    def tell(self) -> None:
        """Tell how far it is."""
        self._told(self.progress)

    def pause(self, seconds: float) -> None:
        """Wait."""
        self._pause(seconds)


class Pulls:
    """The pulls of one wave, each of one target from one peer, at the same time."""

    def __init__(self, mover: Mover, ring: Ring, groups: Mapping[tuple[str, str], list[int]]) -> None:
        self._mover = mover
        self._ring = ring
        self._groups = groups
        self._open: dict[str, list[_Pull]] = {}

    def run(self, ask: Asks, fences: Fences | None, fenced: set[int]) -> set[int]:
        """Begin them, wait for them: the partitions that are through. fenced: of which everything must be proven."""
        proven: set[int] = set()
        pause_s, most_s = POLL_S if fences is None else (POLL_S[0], FENCED_S)
        begun = ask.together([partial(self._begun, ask, *pair, each) for pair, each in self._groups.items()])
        pulls = [pull for pull in begun if pull is not None]
        while pulls:
            told = ask.together([partial(self._asked, ask, pull) for pull in pulls])
            for pull, answer in zip(list(pulls), told, strict=True):
                state = self._look(pull, answer)
                if state is None or state.state in ("failed", "cancelled"):
                    pulls.remove(pull)
                elif state.state == "done":
                    pulls.remove(pull)
                    proven |= set(pull.partitions) - (set(protocol.members(state.unproven)) & fenced)
            self._mover.tell()
            if pulls:
                self._mover.pause(pause_s)
                pause_s = min(1.5 * pause_s, most_s)
            if fences is not None:
                fences.renew()
        return proven

    def _begun(self, ask: Asks, target: str, peer: str, partitions: list[int]) -> "_Pull | None":
        try:
            return _Pull(target, partitions, ask.pull(self._ring, target, partitions, peer))
        except MinitrueError as error:
            self._mover.progress.waits = [str(error)]
            return None

    def _asked(self, ask: Asks, pull: "_Pull") -> JobState | MinitrueError | None:
        try:
            return ask.job(self._ring, pull.target, pull.state.job)
        except MinitrueError as error:
            return error

    def _look(self, pull: "_Pull", state: JobState | MinitrueError | None) -> JobState | None:
        """How it gets on, by the answer of its node; None when nothing more is to be expected of it."""
        now, progress = clock.monotonic_s(), self._mover.progress
        if isinstance(state, MinitrueError):
            progress.waits = [str(state)]
            return pull.state if now - pull.heard_s < DARK_S else None
        if state is None:
            return None  # the node has begun anew
        progress.points += state.points - pull.state.points
        progress.blocks += state.blocks - pull.state.blocks
        progress.bytes += state.bytes - pull.state.bytes
        progress.waits = [f"{pull.target}: {state.error}"] if state.error else []
        if (state.done, state.bytes) != (pull.state.done, pull.state.bytes) or not state.error:
            pull.went_s = now
        pull.state, pull.heard_s = state, now
        return state if now - pull.went_s < STALL_S else None


@dataclass
class _Pull:
    target: str
    partitions: list[int]
    state: JobState
    heard_s: float = field(default_factory=clock.monotonic_s)
    went_s: float = field(default_factory=clock.monotonic_s)
