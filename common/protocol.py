"""The bus protocol: message kinds, header, pack and unpack, versions. Constants and names, no socket.

A message is three frames: kind, header (msgpack map), body (msgpack, its shape set by the kind). Every header
names cluster, destination and sender, so a frame that reaches the wrong process says so itself (frames queued
for a dead process do reach the next one on that port). Received bytes never meet an assert: they raise
ProtocolError, are counted and ignored. Format and examples: docs/bus-protocol.md.
Pure: no I/O, no state.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from common.errors import MSGSPEC_ERRORS, ProtocolError
from common.match import Match

VERSION: Final = 1

# Kinds. Points and their acks travel over PUSH/PULL, requests and replies over DEALER or REQ to ROUTER.
BATCH: Final = b"batch"  # bridge -> storage: a PointBatch
ACK: Final = b"ack"  # storage -> bridge: Ack
BEAT: Final = b"beat"  # bridge -> storage: Beat, "I am here, are you?"
BEAT_ACK: Final = b"beat-ack"  # storage -> bridge: empty map; the header carries the node's incarnation
AGGREGATE: Final = b"aggregate"  # AggregateRequest -> AggregateReply
AGGREGATES: Final = b"aggregates"  # AggregatesRequest -> AggregatesReply: several at once, under load
GROUPS: Final = b"groups"  # GroupsRequest -> GroupsReply: any selection, by group and bucket
CATALOG: Final = b"catalog"  # empty map -> CatalogReply: whether there are new series
SERIES: Final = b"series"  # SeriesRequest -> SeriesReply
DESCRIBE: Final = b"describe"  # DescribeRequest -> DescribeReply: what series hold
TAGS: Final = b"tags"  # TagsRequest -> TagsReply: the names of tags
SAMPLES: Final = b"samples"  # SamplesRequest -> SamplesReply: points, a page at a time
GAPS: Final = b"gaps"  # GapsRequest -> GapsReply: silences
DIGESTS: Final = b"digests"  # DigestsRequest -> DigestsReply: between stores, what partitions hold
SERIES_DIGESTS: Final = b"series-digests"  # SeriesDigestsRequest -> SeriesDigestsReply: the same by series
RANGE_DIGESTS: Final = b"range-digests"  # RangeDigestsRequest -> RangeDigestsReply: the same by range of a series
VERIFY: Final = b"verify"  # VerifyRequest -> VerifyReply: what matches of partitions or series, as counts and digests
FETCH: Final = b"fetch"  # FetchRequest -> FetchReply: points of ranges, blocks as they are stored
FETCH_PARTITION: Final = b"fetch-partition"  # FetchPartitionRequest -> FetchReply: points of a whole partition
CANCEL: Final = b"cancel"  # no body, no reply: nobody waits for the answer to `re` any more
PULL: Final = b"pull"  # PullRequest -> JobsReply: get partitions from another node, for a move
REPAIR: Final = b"repair"  # RepairRequest -> JobsReply: get from the co-owners what this node lacks
JOBS: Final = b"jobs"  # JobsRequest -> JobsReply: how pulls and repairs get on
CANCEL_JOB: Final = b"cancel-job"  # JobsRequest -> JobsReply: give some up
FENCE: Final = b"fence"  # FenceRequest -> FenceReply: neither take nor answer for partitions, for a moment
ACCEPT_LOSS: Final = b"accept-loss"  # AcceptLossRequest -> AcceptLossReply: answer again, whatever is missing
LIVE: Final = b"live"  # storage -> query, published: a PointBatch that is durable
STATUS: Final = b"status"  # empty map -> a map for people, see docs
METRICS: Final = b"metrics"  # empty map -> MetricsReply
DEAD_LETTERS: Final = b"dead-letters"  # empty map -> DeadLettersReply: what bridges refused
RING: Final = b"ring"  # empty map -> RingReply: the ring in force, where the ring store has lost it
REPLY: Final = b"reply"  # body by the request's kind
ERROR: Final = b"error"  # ErrorReply

KINDS: Final = frozenset(
    (
        BATCH, ACK, BEAT, BEAT_ACK, AGGREGATE, AGGREGATES, CATALOG, GROUPS, SERIES, DESCRIBE, TAGS, SAMPLES, GAPS,
        DIGESTS, SERIES_DIGESTS, RANGE_DIGESTS, FETCH, FETCH_PARTITION, VERIFY,
        CANCEL, PULL, REPAIR, JOBS, CANCEL_JOB, FENCE, ACCEPT_LOSS, LIVE,
        STATUS, METRICS, DEAD_LETTERS, RING, REPLY, ERROR,
    )
)  # fmt: skip
EXCHANGES: Final = frozenset((DIGESTS, SERIES_DIGESTS, RANGE_DIGESTS, FETCH, FETCH_PARTITION))  # between stores

ANY: Final = ""  # as destination or cluster of a status request: a caller that does not know the names yet
_OF_ANYBODY: Final = (STATUS, RING)  # answered to who knows neither cluster nor node yet


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who speaks to whom, and with which ring in mind.

    version: of this protocol. cluster: id from the ring document. destination, sender: node, bridge or query
    worker ids. incarnation: random u64 drawn by each process of the sender. sequence: counts the sender's
    messages of this incarnation. epoch, ring_hash: the sender's ring, 0 and "" when it has none.
    to_incarnation: the receiving process that is meant, 0 for whichever lives. born: on batches, the epoch at
    which the bridge took the points in. reply_to: on batches and beats, the endpoint that takes the acks.
    re: on replies, the sequence of the request (or batch) answered; re_incarnation: that sender's incarnation.
    """

    version: int
    cluster: str
    destination: str
    sender: str
    incarnation: int
    sequence: int
    epoch: int
    ring_hash: str
    to_incarnation: int = 0
    born: int = 0
    reply_to: str = ""
    re: int = 0
    re_incarnation: int = 0


class Ack(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fate of a batch, whose identity is in the header (re, re_incarnation); the sender is the owner.

    rows: points now durable and visible. refused: pairs (row, reason) that will never be stored.
    error: "" or the reason why nothing of the batch was applied, one of the ERR_ codes; detail: in words.
    """

    rows: int
    refused: list[tuple[int, str]] = []
    error: str = ""
    detail: str = ""


ERR_STALE_EPOCH: Final = "stale-epoch"  # epoch older than `since` of a partition, or newer than the node's: resend
ERR_NOT_MINE: Final = "not-mine"  # this node owns no such partition: reload, resend
ERR_MOVING: Final = "moving"  # the partition is fenced, its owners are about to change: reload, ask or send again
ERR_BEHIND: Final = "behind"  # this node may lack points of the partition: ask another owner
ERR_OPENING: Final = "opening"  # this node opens its store, and answers nothing yet: ask another owner, or again
ERR_BAD_BATCH: Final = "bad-batch"  # the body cannot be decoded; resending will not help
ERR_DISK: Final = "disk"  # the disk fails, nothing can be written now: back off, resend
ERR_DISK_FLOOR: Final = "disk-floor"  # the disk is nearly full, no points are taken: back off, resend
ERR_DELETES: Final = "deletes"  # stores exchange at equal delete numbers only: hurry, ask again
ERR_BAD_REQUEST: Final = "bad-request"  # a request that cannot be understood
ERR_LIMIT: Final = "limit"  # a question that would need more than a limit allows
ERR_INTERNAL: Final = "internal"  # a bug; the text says more


class MetricFamily(msgspec.Struct, frozen=True, array_like=True):
    """One metric of one process. type: counter, gauge or histogram. samples: (sample name, labels, value)."""

    name: str
    type: str
    help: str
    samples: list[tuple[str, dict[str, str], float]]


class DeadLetterSample(msgspec.Struct, frozen=True):
    """One dead letter, for people. time_ns: arrival. topic, payload, detail: text, cut short; what is no UTF-8 is
    U+FFFD. payload_bytes: of the whole. detail: why it was refused. device: its id, "" where it is not known.
    """

    time_ns: int
    topic: str
    payload: str
    payload_bytes: int
    detail: str
    device: str


class DeadLetters(msgspec.Struct, frozen=True):
    """What a bridge keeps because it cannot be stored. Bounded: some 20 KB, three times that where it is no text.

    counts: records in files, by the code of the refusal; uncounted_bytes: of files that were there at its start and
    too much to read then. samples: the last ones by code, the newest first. bytes: of all files; limit_bytes: what
    they may have. waiting: records that could not be written yet; error: why, "" where none waits.
    """

    counts: dict[str, int]
    samples: dict[str, list[DeadLetterSample]]
    uncounted_bytes: int
    bytes: int
    limit_bytes: int
    waiting: int
    error: str


class Beat(msgspec.Struct, frozen=True):
    """A bridge's sign of life, and what it wants known of itself. started_s: wall clock seconds. dead_letters: None
    from bridges that do not tell.
    """

    started_s: float
    status: dict[str, Any]
    metrics: list[MetricFamily]
    dead_letters: DeadLetters | None = None


class AggregateRequest(msgspec.Struct, frozen=True):
    """Aggregate every series that matches, within the partitions named.

    partitions: bitmap, partition p is bit (p & 7) of byte p >> 3. tags: None matches any tags, a map (also an
    empty one) exactly those. start_ns, end_ns: inclusive; None is open.
    """

    partitions: bytes
    device_id: str
    metric_name: str
    tags: dict[str, str] | None
    start_ns: int | None
    end_ns: int | None


class AggregateReply(msgspec.Struct, frozen=True):
    """Partial aggregate over what one node covered.

    partitions: bitmap of those it answers for, a subset of those asked; delete_number: deletes applied. series: how
    many matched, with points in the range or not.
    sum is the unevaluated pair sum_hi + sum_lo; sum_hi is infinite or NaN when the sum left the range of float64.
    m2 is the sum of squared distances from the mean, for variances; infinite or NaN when it left that range, NaN
    from a node too old to know it.
    With count 0 the other figures mean nothing and are 0.
    blocks_summarized, blocks_decoded, rows_decoded: what the answer cost. catalog, places: as in CatalogReply and
    GroupsReply.
    """

    partitions: bytes
    delete_number: int
    series: int
    count: int
    sum_hi: float
    sum_lo: float
    min: float
    max: float
    first_time: int
    first: float
    last_time: int
    last: float
    blocks_summarized: int
    blocks_decoded: int
    rows_decoded: int
    m2: float = math.nan
    catalog: int = 0
    places: list[int] | None = None


class CatalogReply(msgspec.Struct, frozen=True):
    """catalog: a stamp that changes with every series that is new to the node, and with its incarnation; never 0."""

    catalog: int


class ErrorReply(msgspec.Struct, frozen=True):
    """A request that failed. error: one of the ERR_ codes; message: in words, with limit and value.

    setting: of a limit, such as "query.max_points"; "" for what has none. limit: what it allows; value: what the
    question would need, at least.
    """

    error: str
    message: str
    setting: str = ""
    limit: int = 0
    value: int = 0


class AggregatesRequest(msgspec.Struct, frozen=True):
    """Aggregate requests that came together: one message instead of many."""

    requests: list[AggregateRequest]


class AggregateOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one of them: a reply, or an error; neither when it would keep the others waiting: ask it alone."""

    reply: AggregateReply | None
    error: ErrorReply | None


class AggregatesReply(msgspec.Struct, frozen=True):
    """outcomes: one for each request, in their order."""

    outcomes: list[AggregateOutcome]


class SeriesRequest(msgspec.Struct, frozen=True):
    """List series keys above `after` (b"" begins), in ascending byte order, at most `limit` of them.

    device_id, metric_name: None, or the one that must match.
    """

    partitions: bytes
    after: bytes
    limit: int
    device_id: str | None = None
    metric_name: str | None = None


class SeriesReply(msgspec.Struct, frozen=True):
    """keys: ascending; more: whether further keys follow the last one."""

    partitions: bytes
    keys: list[bytes]
    more: bool


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """A part of a range, start_ns <= time <= end_ns, and the buckets in it, ns.

    A time t lies in the bucket that starts at offset_ns + interval_ns * floor((t - offset_ns) / interval_ns).
    interval_ns 0: one bucket, which starts at offset_ns.
    """

    start_ns: int
    end_ns: int
    interval_ns: int
    offset_ns: int


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What one node may spend on a question.

    series: matched. points: decoded. rows: of the answer, empty buckets between the first and the last of a group
    counted. values: distinct ones, where all are asked for.
    """

    series: int
    points: int
    rows: int
    values: int


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What an answer took in one node. bytes: of the blocks decoded, as they are stored. spent_ns: of wall time."""

    blocks_summarized: int = 0
    windows_read: int = 0
    blocks_decoded: int = 0
    rows_decoded: int = 0
    bytes: int = 0
    spent_ns: int = 0


class GroupsRequest(msgspec.Struct, frozen=True):
    """Aggregate every series that matches, by group and bucket.

    start_ns, end_ns: inclusive, None is open. stretches: ascending, disjoint, within the range; empty: one bucket, the
    whole range, its start is start_ns (0 where open). group_by: of "device_id", "metric_name", "tags.NAME", or the
    single "series"; empty: all series together. wants: of common.figures.WANTS. without: keys of series to leave out.
    """

    partitions: bytes
    match: Match
    start_ns: int | None
    end_ns: int | None
    stretches: list[Stretch]
    group_by: list[str]
    wants: list[str]
    limits: Limits
    without: list[bytes] = []


class GroupsReply(msgspec.Struct, frozen=True):
    """Partial aggregates over what one node covered, one row by group and bucket that has points.

    groups: the values of group_by, in its order, None for a tag that the series do not have; for "series" the single
    series key. group_series: how many series each has, with points in the range or not. columns: common.figures.
    catalog: the stamp of CatalogReply, from before series were looked for, 0 where it is not told; places: the
    partitions in which matching series lie, None where they are many.
    """

    partitions: bytes
    delete_number: int
    series: int
    groups: list[list[Any]]  # text, bytes, None: msgspec knows no union of the first two
    group_series: list[int]
    columns: dict[str, bytes]
    cost: Cost
    catalog: int = 0
    places: list[int] | None = None


class VerifyRequest(msgspec.Struct, frozen=True):
    """What the partitions named hold of the series that match, with start_ns <= time <= end_ns, None is open.

    delete_number: the asker's, as in all comparisons. by_series: of each series by itself, limits.series at most. read:
    the body of a request of kind read_kind (AGGREGATE, GROUPS), to be answered behind the comparison; b"" for none.
    """

    partitions: bytes
    match: Match
    start_ns: int | None
    end_ns: int | None
    delete_number: int
    by_series: bool
    limits: Limits
    read_kind: bytes = b""
    read: bytes = b""


class VerifyReply(msgspec.Struct, frozen=True):
    """counts (i64), digests (u64), little-endian: one for each partition in the bitmap `partitions`, ascending; by
    series one for each of `keys`, those that have points in the range. cutoff_ns: as of DigestsReply. read: the body of
    the reply to the request's `read`, of what was there when the figures were known; b"" for none.
    """

    partitions: bytes
    delete_number: int
    cutoff_ns: int
    keys: list[bytes]
    counts: bytes
    digests: bytes
    cost: Cost
    read: bytes = b""


class DescribeRequest(msgspec.Struct, frozen=True):
    """Tell of each series that matches, with keys above `after`, at most `limit` of them, what it holds in the range.

    intervals: whether to tell the usual interval too, which takes decoding.
    """

    partitions: bytes
    match: Match
    start_ns: int | None
    end_ns: int | None
    after: bytes
    limit: int
    intervals: bool


class DescribeReply(msgspec.Struct, frozen=True):
    """keys: ascending, with points in the range or not; more: whether further keys follow.

    columns (common.figures), a row for each key: count, first_time, first, last_time, last (0 without points);
    usual_ns: the usual interval, 0 where it is not known or not asked.
    """

    partitions: bytes
    delete_number: int
    keys: list[bytes]
    columns: dict[str, bytes]
    more: bool
    cost: Cost


class TagsRequest(msgspec.Struct, frozen=True):
    """The tags of all series that match."""

    partitions: bytes
    match: Match
    limits: Limits


class TagsReply(msgspec.Struct, frozen=True):
    """tags: name to value to the number of series that have it."""

    partitions: bytes
    delete_number: int
    tags: dict[str, dict[str, int]]


class SamplesRequest(msgspec.Struct, frozen=True):
    """Points of every series that matches, in order of series key and then time: at most `limit` of them.

    after_key, after_ns: those behind this place only; after_key b"" begins.
    """

    partitions: bytes
    match: Match
    start_ns: int | None
    end_ns: int | None
    after_key: bytes
    after_ns: int
    limit: int


class SamplesReply(msgspec.Struct, frozen=True):
    """batch: an encoded PointBatch, its rows ordered by key and time; more: whether further points follow.

    catalog, places: as of GroupsReply; of all series that match, with points in the page or not.
    """

    partitions: bytes
    delete_number: int
    batch: bytes
    more: bool
    cost: Cost
    catalog: int = 0
    places: list[int] | None = None


class GapsRequest(msgspec.Struct, frozen=True):
    """Silences of each series that matches, with keys above `after`, at most `limit` series.

    A silence is a time between two samples in the range that is longer than factor times the series' usual interval,
    and than least_ns. end_ns: not open; the time from the last sample to it counts too.
    """

    partitions: bytes
    match: Match
    start_ns: int | None
    end_ns: int
    factor: float
    least_ns: int
    after: bytes
    limit: int
    limits: Limits


class GapsReply(msgspec.Struct, frozen=True):
    """keys: of the series looked at, ascending; more: whether further ones follow.

    columns (common.figures): group (index into keys), start, end (ns; start where the silence goes on), usual_ns.
    """

    partitions: bytes
    delete_number: int
    keys: list[bytes]
    columns: dict[str, bytes]
    more: bool
    cost: Cost


class PullRequest(msgspec.Struct, frozen=True):
    """Get every row that `peer` holds of some partitions, which the node asked owns or joins.

    Another one under way for any of these is given up: what this one proves is proven from now on. rate_bytes: a
    second, at most; 0: no limit, None: storage.repair_rate_bytes.
    """

    partitions: bytes
    peer: str
    rate_bytes: int | None = None


class RepairRequest(msgspec.Struct, frozen=True):
    """Compare partitions with every co-owner that is current, and get what this node lacks.

    series: keys, only these are looked at; none: all. rate_bytes: as of PullRequest.
    """

    partitions: bytes
    series: list[bytes] = []
    rate_bytes: int | None = None


class JobsRequest(msgspec.Struct, frozen=True):
    """The jobs of some numbers, none: all that the node knows of. Those that have ended are known for a while."""

    jobs: list[int] = []


class JobState(msgspec.Struct, frozen=True):
    """How one pull or repair gets on. A job is forgotten when its node ends: ask for it anew.

    kind: "pull", "repair" (asked for), "round" (in the background), "refill" (of a node that is behind).
    state: "waiting", "running", "done", "failed", "cancelled". peer: the node that rows come from now.
    partitions: of the job (for each co-owner once), done: how many of them have been compared: `equal` (digests),
    `proven` (this node holds every row of the peer, and others) or `moving` (every row that the peer held when the
    last comparison began is here; points went on to arrive). unproven: bitmap of those neither equal nor proven.
    points, blocks, bytes: pulled, because this node lacked them. seconds: since it began. error: why it failed, or
    waits; of one that is done, what was left out. ended_s_ago: None for one that has not ended.
    """

    job: int
    kind: str
    state: str
    peer: str
    partitions: int
    done: int
    equal: int
    proven: int
    moving: int
    unproven: bytes
    points: int
    blocks: int
    bytes: int
    seconds: float
    error: str
    ended_s_ago: float | None = None


class JobsReply(msgspec.Struct, frozen=True):
    """jobs: ascending by number, which begins at random with each process. For `pull` and `repair` the one begun."""

    jobs: list[JobState]


class FenceRequest(msgspec.Struct, frozen=True):
    """Refuse points of some partitions, which the node owns, until the ring of `epoch` changes there; with `reads`,
    refuse questions of them, too.

    The same again begins the time anew for which that holds (storage.fence_s). What is refused already stays so.
    """

    partitions: bytes
    epoch: int
    reads: bool = True


class FenceReply(msgspec.Struct, frozen=True):
    """epoch: of the node's ring; partitions: bitmap of those asked that are fenced now; seconds: for how long.

    What was acknowledged of them before is in the node's store; nothing is acknowledged from then on. incarnation: of
    the node: a fence is in its memory, so another incarnation has none of those before.
    """

    epoch: int
    partitions: bytes
    seconds: float
    incarnation: int


class AcceptLossRequest(msgspec.Struct, frozen=True):
    """Let a node that is behind answer for some partitions again, without what it lacks of them."""

    partitions: bytes


class AcceptLossReply(msgspec.Struct, frozen=True):
    """released: bitmap of those asked of which the node was behind; behind: of all of which it still is."""

    released: bytes
    behind: bytes


class DigestsRequest(msgspec.Struct, frozen=True):
    """What each partition holds with start_ns <= time <= end_ns, None is open.

    delete_number: the asker's; the answer is the error ERR_DELETES where the node's is another. So in all exchanges.
    """

    delete_number: int
    partitions: bytes
    start_ns: int | None = None
    end_ns: int | None = None


class DigestsReply(msgspec.Struct, frozen=True):
    """counts (i64), digests (u64): little-endian, one for each partition in the bitmap `partitions`, ascending.

    Of the points that a reader sees: settled, without what deletes and the retention have taken. cutoff_ns: of the
    node's retention: no point before it was looked at; -2^63 where there is none. Nodes whose clocks differ may have
    different ones for a moment: compare from the later of both on.
    """

    partitions: bytes
    delete_number: int
    cutoff_ns: int
    counts: bytes
    digests: bytes
    cost: Cost


class SeriesDigestsRequest(msgspec.Struct, frozen=True):
    """The series of a partition that have points in the range, in order of (hash, key), behind the key `after`.

    after: b"" begins; limit: at most so many series. partitions: a bitmap of several that are one in this order,
    b"": `partition` alone.
    """

    delete_number: int
    partition: int
    after: bytes
    limit: int
    start_ns: int | None = None
    end_ns: int | None = None
    partitions: bytes = b""


class SeriesDigestsReply(msgspec.Struct, frozen=True):
    """By key, little-endian: counts (i64), digests (u64), low, high (i64, ns): all points of the range lie between.

    more: whether further keys follow the last one. low and high are first and last point or a little outside.
    """

    delete_number: int
    cutoff_ns: int
    keys: list[bytes]
    counts: bytes
    digests: bytes
    low: bytes
    high: bytes
    more: bool
    cost: Cost


class Range(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of one series, start_ns <= time <= end_ns, both int64."""

    key: bytes
    start_ns: int
    end_ns: int


class RangeDigestsRequest(msgspec.Struct, frozen=True):
    """What stretches of series hold, at most MAX_RANGES of them."""

    delete_number: int
    ranges: list[Range]


class RangeDigestsReply(msgspec.Struct, frozen=True):
    """counts (i64), digests (u64): by range. A series that the node does not know has none."""

    delete_number: int
    cutoff_ns: int
    counts: bytes
    digests: bytes
    cost: Cost


MAX_RANGES: Final = 16_384  # of one request


class FetchRequest(msgspec.Struct, frozen=True):
    """The points of stretches of series, at most MAX_RANGES: from range `item` on, of that those from from_ns on.

    item 0 and from_ns None begin. max_bytes: of points in the reply, about; one block or row always comes.
    """

    delete_number: int
    ranges: list[Range]
    max_bytes: int
    item: int = 0
    from_ns: int | None = None


class FetchPartitionRequest(msgspec.Struct, frozen=True):
    """The points of a partition in order of (hash, key) and time: from series `key` on, of that those from from_ns on.

    partitions: bitmap, the points of all these instead; b"": of the one. key b"" and from_ns None begin. start_ns,
    end_ns: None is open. max_bytes: as of FetchRequest.
    """

    delete_number: int
    partition: int
    max_bytes: int
    key: bytes = b""
    from_ns: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    partitions: bytes = b""


class StoredBlocks(msgspec.Struct, frozen=True, array_like=True):
    """At most 1024 blocks as they are stored, in the order asked for (docs/file-formats.md, "Segments").

    keys: of their series; series: u32 by block, which key; index: an index page; windows: those of the page; data: the
    blocks one behind the other, the CRC of each is in the index; crc: CRC32C of keys, series, index, windows, in turn.
    """

    keys: list[bytes]
    series: bytes
    index: bytes
    windows: bytes
    data: bytes
    crc: int


class FetchReply(msgspec.Struct, frozen=True):
    """Points of one store: those of `blocks` and of `rows` (an encoded PointBatch, b"" for none), which may overlap.

    All that lies before the place where the next request goes on is in this reply or was in one before. store_id: of
    the store, 16 bytes. more: whether there is such a place: next_item (FETCH) or next_key (FETCH_PARTITION) and
    next_ns, which the next request has as item or key and from_ns. points: in blocks and rows; a point that is in
    both counts twice.
    """

    delete_number: int
    cutoff_ns: int
    store_id: bytes
    blocks: list[StoredBlocks]
    rows: bytes
    points: int
    more: bool
    cost: Cost
    next_item: int = 0
    next_key: bytes = b""
    next_ns: int | None = None


class ProcessMetrics(msgspec.Struct, frozen=True):
    """The metrics of one process. age_s: how old this picture is."""

    worker: str
    incarnation: int
    age_s: float
    families: list[MetricFamily]


class MetricsReply(msgspec.Struct, frozen=True):
    """The node's own metrics, and those of the bridges it has heard lately."""

    processes: list[ProcessMetrics]


class BridgeLetters(msgspec.Struct, frozen=True):
    """The dead letters of one bridge, as it told them last, age_s ago."""

    bridge: str
    age_s: float
    letters: DeadLetters


class DeadLettersReply(msgspec.Struct, frozen=True):
    """Those of the bridges that the node has heard lately."""

    bridges: list[BridgeLetters]


class RingReply(msgspec.Struct, frozen=True):
    """The bytes of the ring document in force at a node."""

    document: bytes


class Message(NamedTuple):
    """A message received: its header decoded, its body still bytes."""

    kind: bytes
    header: Header
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(Header)
T = TypeVar("T")


def pack(kind: bytes, header: Header, body: Any) -> list[bytes]:
    """The three frames of a message. body: bytes that are packed already, or what msgpack can carry."""
    return [kind, _encoder.encode(header), body if isinstance(body, bytes) else encode_body(body)]


def encode_body(body: Any) -> bytes:
    """A body as it travels."""
    return _encoder.encode(body)


def unpack(frames: Sequence[bytes]) -> Message:
    """The message in three frames. Raises ProtocolError for anything else, with what is wrong."""
    if len(frames) != 3:
        raise ProtocolError(f"message of {len(frames)} frames, want 3")
    kind = bytes(frames[0])
    if kind not in KINDS:
        raise ProtocolError(f"unknown message kind {kind[:16]!r}")
    try:
        header = _header_decoder.decode(frames[1])
    except MSGSPEC_ERRORS as error:
        raise ProtocolError(f"{kind.decode()} header: {error}") from error
    if header.version != VERSION:
        raise ProtocolError(f"{kind.decode()} has protocol version {header.version}, this process speaks {VERSION}")
    return Message(kind, header, frames[2])


def decode_body(body: bytes, type_: type[T]) -> T:
    """The body as the type that its kind calls for. Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except MSGSPEC_ERRORS as error:
        raise ProtocolError(f"{type_.__name__}: {error}") from error


def mismatch(header: Header, cluster: str, me: str, incarnation: int) -> str | None:
    """Why a message is not for this process: "cluster", "destination" or "incarnation"; None when it is."""
    if header.cluster != cluster:
        return "cluster"
    if header.destination != me:
        return "destination"
    if header.to_incarnation not in (0, incarnation):
        return "incarnation"
    return None


def misaddressed(message: Message, cluster: str, me: str, incarnation: int) -> str | None:
    """The same of a request: some kinds may be asked by who knows neither cluster nor node yet."""
    header = message.header
    if message.kind in _OF_ANYBODY and (header.cluster, header.destination) == (ANY, ANY):
        return None
    return mismatch(header, cluster, me, incarnation)


def bitmap(partitions: Sequence[int] | range, count: int) -> bytes:
    """The bitmap of some of `count` partitions, ceil(count / 8) bytes."""
    bits = bytearray((count + 7) // 8)
    for partition in partitions:
        bits[partition >> 3] |= 1 << (partition & 7)
    return bytes(bits)


def members(bits: bytes) -> list[int]:
    """The partitions in a bitmap, ascending."""
    return [8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
