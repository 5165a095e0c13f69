"""The questions about points and series that a node answers, by kind: in its reader threads, but for short ones.

Owns the table, and what reads behind a comparison: each kind has a module of its own. A handler takes the request, the
bitmap of the partitions that the node answers for, and a Cancel that it asks between two pieces of its work.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from msgspec import structs

from common import clock, protocol
from common.errors import MinitrueError, ProtocolError
from common.protocol import VerifyReply, VerifyRequest
from workers.storage import groups, verifying
from workers.storage.describing import Describing
from workers.storage.sampling import Sampling
from workers.storage.store import Store
from workers.storage.work import Cancel, CancelledError, Handler, Work, pooled

READ_S: Final = 0.25  # for a read behind a comparison: to ask again costs a millisecond, and the figures are waited for


def handlers(store: Store, cover: Callable[[bytes], bytes], aggregate: Handler) -> dict[bytes, Handler]:
    """By kind. cover: which partitions of those asked the node answers for; raises ProtocolError. aggregate: what
    answers AGGREGATE.
    """
    sampling = Sampling(store)
    describing = Describing(store, sampling)
    answered_groups = Handler(
        protocol.GroupsRequest, lambda asked: groups.begin(store, asked, cover(asked.partitions))
    )
    reads = {protocol.AGGREGATE: aggregate, protocol.GROUPS: answered_groups}
    return {
        protocol.AGGREGATE: aggregate,
        protocol.DESCRIBE: pooled(protocol.DescribeRequest, cover, describing.describe),
        protocol.GAPS: pooled(protocol.GapsRequest, cover, describing.gaps),
        protocol.GROUPS: answered_groups,
        protocol.VERIFY: Handler(
            VerifyRequest, lambda asked: _verify(asked, verifying.begin(store, asked, cover(asked.partitions)), reads)
        ),
        protocol.TAGS: pooled(protocol.TagsRequest, cover, partial(groups.tags, store)),
        protocol.SAMPLES: Handler(
            protocol.SamplesRequest, lambda asked: sampling.begin(asked, cover(asked.partitions))
        ),
    }


def _verify(asked: VerifyRequest, compare: Work, reads: Mapping[bytes, Handler]) -> Work:
    """A comparison, and the read behind it if that is soon done. Raises ProtocolError.

    The read begins when the figures are known, not before: what it finds is at least what they tell of.
    """
    if not asked.read_kind:
        return compare
    if asked.read_kind not in reads:
        kinds = ", ".join(sorted(kind.decode() for kind in reads))
        raise ProtocolError(f"{asked.read_kind.decode(errors='replace')} behind a comparison, want one of {kinds}")
    reader = reads[asked.read_kind]
    request = protocol.decode_body(asked.read, reader.request)

    def run(cancel: Cancel) -> VerifyReply:
        figures: VerifyReply = compare.run(cancel)
        try:
            work = reader.begin(request)
            if compare.short and not work.short:  # this is the server thread
                return figures
            found = work.run(_Hurried(cancel, clock.monotonic_s() + READ_S))
        except MinitrueError:  # the asker asks for it by itself, and hears of the error then
            cancel.check()
            return figures
        return structs.replace(figures, read=protocol.encode_body(found))

    return Work(run, short=compare.short)


class _Hurried(Cancel):
    """Gives up when another does, or at a time (monotonic)."""

    def __init__(self, other: Cancel, until_s: float) -> None:
        super().__init__()
        self._other = other
        self._until_s = until_s

    def __call__(self) -> bool:
        return self._other() or clock.monotonic_s() > self._until_s

    def check(self) -> None:
        if self():
            raise CancelledError("a read behind a comparison took too long, or nobody waits for it")
