"""What matches, as counts and digests by partition or by series: how owners are compared for a verified read.

Only for partitions that this node answers for, unlike what stores ask each other. Owns nothing. Any reader thread.
"""

import time

import numpy as np

from common import protocol
from common.protocol import VerifyReply, VerifyRequest
from workers.storage.digests import Held, Span, held
from workers.storage.fold import Cost
from workers.storage.groups import check_series
from workers.storage.segment import EARLIEST, LATEST
from workers.storage.store import Store
from workers.storage.work import Cancel, RefusedError


def verify(store: Store, asked: VerifyRequest, covered: bytes, cancel: Cancel) -> VerifyReply:
    """Counts and digests of what matches in the partitions covered.

    Raises RefusedError at another delete number, LimitError for too many series, ProtocolError, StorageError,
    CancelledError.
    """
    began_ns, view = time.perf_counter_ns(), store.view
    if view.deletes.number != asked.delete_number:
        raise RefusedError(
            protocol.ERR_DELETES, f"asked at delete number {asked.delete_number}, this node is at {view.deletes.number}"
        )
    series = store.select(asked.match, covered, cancel.check)
    check_series(len(series.ids), asked.limits)
    kept = store.first_kept(asked.start_ns)
    span = Span(EARLIEST if kept is None else kept, LATEST if asked.end_ns is None else asked.end_ns)
    partitions = np.array(protocol.members(covered), np.int64)
    total, cost, keys = Held.nothing(0 if asked.by_series else len(partitions)), Cost(), list[bytes]()
    counts, digests = [total.counts], [total.digests]
    with store.watching_damage():
        for part, found, spent in held(view, series, span, store.pool.watching(cancel)):
            cost = cost.plus(spent)
            if asked.by_series:
                filled = np.flatnonzero(found.counts)
                keys += [store.key_of(each) for each in part.ids[filled].tolist()]
                counts.append(found.counts[filled])
                digests.append(found.digests[filled])
            else:
                places = partitions.searchsorted(store.partitions_of_hashes(part.hashes))
                total.add(places, found.counts, found.digests)
    return VerifyReply(
        covered, asked.delete_number, store.cutoff, keys, np.concatenate(counts).astype("<i8").tobytes(),
        np.concatenate(digests).astype("<u8").tobytes(),
        protocol.Cost(*cost, spent_ns=time.perf_counter_ns() - began_ns),
    )  # fmt: skip
