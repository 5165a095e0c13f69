"""The questions about points and series that a node answers, by kind: in its reader threads, but for short ones.

Owns the table alone: each kind has a module of its own. A handler takes the request, the bitmap of the partitions that
the node answers for, and a Cancel that it asks between two pieces of its work.
"""

from collections.abc import Callable
from functools import partial

from common import protocol
from workers.storage import groups, verifying
from workers.storage.describing import Describing
from workers.storage.sampling import Sampling
from workers.storage.store import Store
from workers.storage.work import Handler, pooled


def handlers(store: Store, cover: Callable[[bytes], bytes]) -> dict[bytes, Handler]:
    """By kind. cover: which partitions of those asked the node answers for; raises ProtocolError."""
    sampling = Sampling(store)
    describing = Describing(store, sampling)
    return {
        protocol.DESCRIBE: pooled(protocol.DescribeRequest, cover, describing.describe),
        protocol.GAPS: pooled(protocol.GapsRequest, cover, describing.gaps),
        protocol.GROUPS: Handler(
            protocol.GroupsRequest, lambda asked: groups.begin(store, asked, cover(asked.partitions))
        ),
        protocol.VERIFY: Handler(
            protocol.VerifyRequest, lambda asked: verifying.begin(store, asked, cover(asked.partitions))
        ),
        protocol.TAGS: pooled(protocol.TagsRequest, cover, partial(groups.tags, store)),
        protocol.SAMPLES: Handler(
            protocol.SamplesRequest, lambda asked: sampling.begin(asked, cover(asked.partitions))
        ),
    }
