"""The questions about points and series that a node answers, by kind: in its reader threads, but for short ones.

Owns the table alone: each kind has a module of its own. A handler takes the request, the bitmap of the partitions that
the node answers for, and a Cancel that it asks between two pieces of its work.
"""

from collections.abc import Callable, Mapping
from functools import partial

from msgspec import structs

from common import protocol
from common.errors import ProtocolError
from common.protocol import VerifyReply, VerifyRequest
from workers.storage import groups, verifying
from workers.storage.describing import Describing
from workers.storage.sampling import Sampling
from workers.storage.store import Store
from workers.storage.work import Cancel, Handler, Work, pooled


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
    """A comparison and the read behind it. Raises ProtocolError.

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
        return structs.replace(figures, read=protocol.encode_body(reader.begin(request).run(cancel)))

    # An aggregate reads no more than was compared; groups may be of many buckets.
    return Work(run, short=compare.short and asked.read_kind == protocol.AGGREGATE)
