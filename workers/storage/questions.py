"""The questions about points and series that a node answers in its reader threads, by kind.

Owns the table alone: each kind has a module of its own. A handler takes the request, the bitmap of the partitions that
the node answers for, and a Cancel that it asks between two pieces of its work.
"""

from collections.abc import Callable

from common import protocol
from common.protocol import GroupsReply, GroupsRequest, TagsReply, TagsRequest
from workers.storage import groups
from workers.storage.sampling import Sampling
from workers.storage.store import Store
from workers.storage.work import Cancel, Handler, pooled


def handlers(store: Store, cover: Callable[[bytes], bytes]) -> dict[bytes, Handler]:
    """By kind. cover: which partitions of those asked the node answers for; raises ProtocolError."""
    sampling = Sampling(store)

    def answer_groups(request: GroupsRequest, covered: bytes, cancel: Cancel) -> GroupsReply:
        return groups.answer(store, request, covered, store.pool.watching(cancel))

    def answer_tags(request: TagsRequest, covered: bytes, cancel: Cancel) -> TagsReply:
        return groups.tags(store, request, covered)

    return {
        protocol.GROUPS: pooled(GroupsRequest, cover, answer_groups),
        protocol.TAGS: pooled(TagsRequest, cover, answer_tags),
        protocol.SAMPLES: Handler(
            protocol.SamplesRequest, lambda asked: sampling.begin(asked, cover(asked.partitions))
        ),
    }
