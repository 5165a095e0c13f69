"""The ring: which nodes own which partition. A lookup table, immutable; see ringbuild.py for placement.

The hash space is cut into a fixed number of equal partitions, and the ring is an explicit table from partition
to ordered owners (strategy 3 of DeCandia et al., "Dynamo", SOSP 2007, section 6.2). It also holds the delete records,
whose order its epochs are. Only ringctl and DELETE change it, by saving a document with a higher epoch.

Document, format version 2, JSON with sorted keys, no spaces and a line feed at the end (same state, same bytes):

    version      2
    cluster      id of the cluster, drawn by `ringctl init`
    epoch        1 upwards, one more with every change
    partitions   power of two, fixed for the life of the cluster
    replication  owners that each partition should have; while that changes, some have more or fewer
    nodes        [{id, store_id, endpoint, zone, weight, state}], ascending by id
    owners       per partition the list of its owners, as indexes into nodes
    since        per partition the epoch at which its owners, or the node that joins them, last changed
    moves        partitions on their way, [[partition, source, target]], ascending by partition, one of each at most
    deletes      delete records [{number, device_id, metric_name, tags, start_ns, end_ns}], ascending by number

A *move* brings a partition to its target, a node that *joins* the owners: it takes all writes, and answers nothing
until it is an owner. source is the owner that leaves then, -1 where none does; both are indexes into nodes.

Version 1 had no moves, but empty lists of that name and of `joining`; it is read, and never written. A program that
knows version 1 alone refuses this one, because it would lose points if it ignored moves.

Invariants: those of `Ring.validate`. Pure: no I/O, no state, any thread.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from common import protocol
from common.errors import RingError
from common.selector import Selector
from common.timestamps import MAX_NS, MIN_NS

VERSION: Final = 2
_BEFORE_MOVES: Final = 1
MAX_PARTITIONS: Final = 1 << 16  # 65 per node on the largest cluster: finer buys no balance, costs document size
MAX_REPLICATION: Final = 5  # survives four losses; more copies only cost
MAX_NODES: Final = 1000  # what placement is tested with
MIN_WEIGHT: Final = 0.001  # weights are meant as disk sizes or the like; beyond these bounds they are mistakes
MAX_WEIGHT: Final = 1e6
PORTS: Final = 3  # of a node: ingest, requests, live feed
MAX_DELETES: Final = 10_000  # every worker reads them all: 1.5 MB of document, 30 ms
MAX_DELETE_BYTES: Final = 4 << 20  # of ids and tags in all delete records, for the same reason
HASH_BYTES: Final = 8
ACTIVE: Final = "active"  # owns what the table gives it, and what is to come
DRAINING: Final = "draining"  # is to own nothing; leaves the document when it does
STATES: Final = (ACTIVE, DRAINING)
NOBODY: Final = -1  # fills the table's rows where a partition has fewer owners than the replication factor

_ID: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}")  # also names of folders
_ID_WANTED: Final = "1 to 64 letters, digits, '_', '.' or '-', and neither '.' nor '..'"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A storage node.

    store_id: random id of its data directory, "" until known. endpoint: tcp://HOST:PORT, the first of three
    consecutive ports. zone: what fails together (a machine, a rack). weight: its share relative to the others.
    """

    id: str
    store_id: str
    endpoint: str
    zone: str
    weight: float
    state: str

    @property
    def ingest_endpoint(self) -> str:
        """Where batches and beats are pushed."""
        return self.endpoint

    @property
    def request_endpoint(self) -> str:
        """Where requests are asked."""
        return self._at(1)

    @property
    def live_endpoint(self) -> str:
        """Where the live feed is published."""
        return self._at(2)

    def _at(self, offset: int) -> str:
        base, _, port = self.endpoint.rpartition(":")
        return f"{base}:{int(port) + offset}"


class DeleteRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Points that are deleted: those of one device, one metric of it or all, any tags or exactly given ones, with
    start_ns <= time <= end_ns (MIN_NS and MAX_NS where open), that were taken in before epoch `number`.
    """

    number: int
    device_id: str
    metric_name: str | None
    tags: dict[str, str] | None
    start_ns: int
    end_ns: int

    @property
    def selector(self) -> Selector:
        """The series meant."""
        return Selector(self.device_id, self.metric_name, self.tags)


class Move(NamedTuple):
    """A partition on its way. source: id of the owner that leaves, None where none does; target: of who joins."""

    partition: int
    source: str | None
    target: str


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document as JSON has it; see the module's text."""

    version: int
    cluster: str
    epoch: int
    partitions: int
    replication: int
    nodes: list[Node]
    owners: list[list[int]]
    since: list[int]
    moves: list[tuple[int, int, int]]
    deletes: list[DeleteRecord]


@dataclass(frozen=True, eq=False)
class Ring:
    """One epoch of the ring. Constant after construction, its arrays are read-only; compare by `hash`.

    nodes: ascending by id. owner_table: int32 (partitions, width), indexes into nodes, the first owner first, NOBODY
    behind the last. since: int64 (partitions,), epochs. deletes: ascending by number. moves: ascending by partition.
    """

    cluster: str
    epoch: int
    partitions: int
    replication: int
    nodes: tuple[Node, ...]
    owner_table: NDArray[np.int32]
    since: NDArray[np.int64]
    deletes: tuple[DeleteRecord, ...] = ()
    moves: tuple[Move, ...] = ()

    def __post_init__(self) -> None:
        """Raises RingError where an invariant is broken."""
        self.owner_table.setflags(write=False)
        self.since.setflags(write=False)
        self.validate()

    # Documents

    @classmethod
    def from_document(cls, document: Any) -> "Ring":
        """The ring that a parsed JSON document describes. Raises RingError for anything but a valid one."""
        try:
            parsed = msgspec.convert(_current(document), _Document)
        except msgspec.ValidationError as error:
            raise RingError(f"ring document: {error}") from error
        for fault in size_faults(parsed.partitions, parsed.replication, parsed.nodes):
            raise RingError(f"ring document: {fault}")
        return cls(
            parsed.cluster,
            parsed.epoch,
            parsed.partitions,
            parsed.replication,
            tuple(parsed.nodes),
            _table(parsed),
            _int64(parsed.since),
            tuple(parsed.deletes),
            tuple(_move(each, parsed.nodes) for each in parsed.moves),
        )

    @classmethod
    def loads(cls, data: bytes) -> "Ring":
        """The ring in the bytes of a document. Raises RingError."""
        try:
            document = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RingError(f"ring document is not JSON: {error}") from error
        return cls.from_document(document)

    def document(self) -> dict[str, Any]:
        """The document, as JSON types."""
        return {
            "version": VERSION,
            "cluster": self.cluster,
            "epoch": self.epoch,
            "partitions": self.partitions,
            "replication": self.replication,
            "nodes": [msgspec.structs.asdict(node) for node in self.nodes],
            "owners": [[node for node in row if node != NOBODY] for row in self.owner_table.tolist()],
            "since": self.since.tolist(),
            "moves": [[each.partition, self._place(each.source), self._place(each.target)] for each in self.moves],
            "deletes": [msgspec.structs.asdict(record) for record in self.deletes],
        }

    def dumps(self) -> bytes:
        """The document's canonical bytes: equal rings give equal bytes."""
        return msgspec.json.encode(self.document(), order="sorted") + b"\n"

    @cached_property
    def hash(self) -> str:
        """blake2b (8 bytes, hex) of the canonical bytes: 16 characters that name this ring."""
        return hashlib.blake2b(self.dumps(), digest_size=HASH_BYTES).hexdigest()

    @property
    def delete_number(self) -> int:
        """The highest delete in force, 0 where there is none."""
        return self.deletes[-1].number if self.deletes else 0

    @property
    def width(self) -> int:
        """How many owners a row of the table has room for."""
        return int(self.owner_table.shape[1])

    # Lookups

    def partition_of_hash(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The partitions of series hashes (see series.series_hash), element by element."""
        return (hashes >> self._shift).view(np.int64)

    def owners(self, partition: int) -> tuple[Node, ...]:
        """The owners of a partition, the first owner first."""
        return tuple(self.nodes[index] for index in self.owner_table[partition] if index != NOBODY)

    def node(self, node_id: str) -> Node:
        """The node of that id. Raises RingError where there is none."""
        index = self._index.get(node_id)
        if index is None:
            raise RingError(f"no node {node_id!r} in the ring of epoch {self.epoch}; it has {self._node_list}")
        return self.nodes[index]

    def has(self, node_id: str) -> bool:
        """Whether a node of that id is in the ring."""
        return node_id in self._index

    def owned_partitions(self, node_id: str) -> NDArray[np.int64]:
        """The partitions that a node owns, ascending; none where the ring has no such node."""
        return self._owned.get(node_id, _NONE)

    def owned_bitmap(self, node_id: str) -> bytes:
        """The partitions that a node owns, as a bitmap of the bus protocol."""
        return self._bitmaps.get(node_id, protocol.bitmap((), self.partitions))

    @property
    def active_nodes(self) -> tuple[Node, ...]:
        """The nodes that are to own something."""
        return tuple(node for node in self.nodes if node.state == ACTIVE)

    def move(self, partition: int) -> Move | None:
        """The move of a partition, None where it does not move."""
        return self._moves.get(partition)

    @property
    def moving(self) -> Set[int]:
        """The partitions on their way."""
        return self._moves.keys()

    def joined_partitions(self, node_id: str) -> NDArray[np.int64]:
        """The partitions that a node joins, ascending."""
        return self._joined.get(node_id, _NONE)

    def written_partitions(self, node_id: str) -> NDArray[np.int64]:
        """The partitions whose points a node takes: those that it owns or joins, ascending."""
        if node_id not in self._joined:
            return self.owned_partitions(node_id)
        return np.sort(np.concatenate([self.owned_partitions(node_id), self._joined[node_id]]))

    def written_bitmap(self, node_id: str) -> bytes:
        """The partitions whose points a node takes, as a bitmap of the bus protocol."""
        if node_id not in self._joined:
            return self.owned_bitmap(node_id)
        return protocol.bitmap(self.written_partitions(node_id).tolist(), self.partitions)

    def writers(self, partition: int) -> tuple[Node, ...]:
        """Who takes the points of a partition: its owners, and behind them the node that joins."""
        move = self._moves.get(partition)
        return self.owners(partition) + (() if move is None else (self.node(move.target),))

    def _place(self, node_id: str | None) -> int:
        return NOBODY if node_id is None else self._index[node_id]

    @cached_property
    def _moves(self) -> dict[int, Move]:
        return {each.partition: each for each in self.moves}

    @cached_property
    def _joined(self) -> dict[str, NDArray[np.int64]]:
        found: dict[str, list[int]] = {}
        for each in self.moves:
            found.setdefault(each.target, []).append(each.partition)
        joined = {node_id: np.array(partitions, dtype=np.int64) for node_id, partitions in found.items()}
        for partitions in joined.values():
            partitions.setflags(write=False)
        return joined

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - self.partitions.bit_length() + 1)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {node.id: index for index, node in enumerate(self.nodes)}

    @cached_property
    def _node_list(self) -> str:
        return listed([node.id for node in self.nodes])

    @cached_property
    def _owned(self) -> dict[str, NDArray[np.int64]]:
        order = np.argsort(self.owner_table, axis=None, kind="stable")
        begins = np.searchsorted(self.owner_table.ravel()[order], np.arange(len(self.nodes) + 1))
        owned = {}
        for index, node in enumerate(self.nodes):
            partitions = order[begins[index] : begins[index + 1]] // self.width
            partitions.setflags(write=False)
            owned[node.id] = partitions
        return owned

    @cached_property
    def _bitmaps(self) -> dict[str, bytes]:
        return {id_: protocol.bitmap(owned.tolist(), self.partitions) for id_, owned in self._owned.items()}

    # Invariants

    def validate(self) -> None:
        """Restate every invariant of the ring; raises RingError naming the first that is broken."""
        for fault in self._faults():
            raise RingError(f"ring of epoch {self.epoch}: {fault}")

    def _faults(self) -> Iterator[str]:
        yield from _number_faults(self)
        yield from node_faults(self.nodes)
        yield from self._table_faults()
        yield from self._since_faults()
        yield from self._move_faults()
        yield from _delete_faults(self.deletes, self.epoch)

    def _table_faults(self) -> Iterator[str]:
        table, nodes = self.owner_table, len(self.nodes)
        if table.ndim != 2 or len(table) != self.partitions or not 1 <= table.shape[1] <= MAX_REPLICATION:
            yield f"owners is a table of {table.shape}, want {self.partitions} rows of 1 to {MAX_REPLICATION}"
            return
        for partition in _where((table < NOBODY) | (table >= nodes)):
            yield f"partition {partition} has an owner {_outside(table[partition], nodes)}, want 0 to {nodes - 1}"
        for partition in _where(table[:, :1] == NOBODY):
            yield f"partition {partition} has no owner, want 1 or more"
        for partition in _where((table[:, :-1] == NOBODY) & (table[:, 1:] != NOBODY)):
            yield f"partition {partition} has a gap in its owners {table[partition].tolist()}"
        ordered = np.sort(table, axis=1)
        for partition in _where((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOBODY)):
            yield f"partition {partition} names an owner twice: {table[partition].tolist()}"

    def _move_faults(self) -> Iterator[str]:
        before = NOBODY
        for partition, source, target in self.moves:
            if not before < partition < self.partitions:
                wanted = f"{before + 1} to {self.partitions - 1}"
                yield f"move of partition {partition}, want {wanted} (ascending, each once)"
                return
            before = partition
            owners = [node.id for node in self.owners(partition)]
            if source is not None and source not in owners:
                yield f"partition {partition} moves from {source}, its owners are {', '.join(owners)}"
            if not self.has(target) or target in owners:
                yield f"partition {partition} moves to {target}, want a node that is not one of {', '.join(owners)}"
            elif self.node(target).state != ACTIVE:
                yield f"partition {partition} moves to {target}, which is {self.node(target).state}"
            if source is None and len(owners) == MAX_REPLICATION:
                yield f"partition {partition} gets {target} beside {len(owners)} owners, want at most {MAX_REPLICATION}"

    def _since_faults(self) -> Iterator[str]:
        if self.since.shape != (self.partitions,):
            yield f"since has {self.since.size} entries, want one for each of {self.partitions} partitions"
            return
        for partition in _where((self.since[:, None] < 1) | (self.since[:, None] > self.epoch)):
            yield f"since of partition {partition} is {self.since[partition]}, want 1 to {self.epoch} (the epoch)"


_NONE: Final = np.zeros(0, dtype=np.int64)
_NONE.setflags(write=False)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names for an error text, cut short where there are many."""
    all_names = list(names)
    rest = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {rest} more" if rest > 0 else "")


def endpoint_fault(endpoint: str) -> str | None:
    """Why an endpoint cannot be a node's, or None."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"endpoint {endpoint!r}: {error}, want tcp://HOST:PORT"
    if not host or host == "*" or not port or endpoint != f"tcp://{parts.netloc}" or parts.username is not None:
        return f"endpoint {endpoint!r}: want tcp://HOST:PORT"
    if port + PORTS - 1 > 65535:
        return f"endpoint {endpoint}: port must be at most {65536 - PORTS} (a node takes {PORTS} ports)"
    return None


def _current(document: Any) -> dict[str, Any]:
    """The fields of a document of any version that is known, as this one has them. Raises RingError for another."""
    if not isinstance(document, dict):
        raise RingError(f"ring document is a {type(document).__name__}, want a JSON object")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise RingError(f"ring document has format version {version}, this program reads up to {VERSION}: upgrade it")
    if version not in (_BEFORE_MOVES, VERSION) or isinstance(version, bool):
        raise RingError(f"ring document has format version {version!r}, want {_BEFORE_MOVES} or {VERSION}")
    if version == VERSION:
        return document
    for key in ("joining", "moves"):
        if document.get(key):
            raise RingError(f"ring document of version {version} has {key}, which that version never had")
    return {name: value for name, value in document.items() if name != "joining"}


def _move(move: tuple[int, int, int], nodes: Sequence[Node]) -> Move:
    partition, source, target = move
    if not (NOBODY <= source < len(nodes) and 0 <= target < len(nodes)):
        raise RingError(f"move of partition {partition} from {source} to {target}, want indexes of {len(nodes)} nodes")
    return Move(partition, None if source == NOBODY else nodes[source].id, nodes[target].id)


def _table(document: _Document) -> NDArray[np.int32]:
    """The owners as a table, refused here where its rows would not fit."""
    wanted, found = document.partitions, len(document.owners)
    if found != wanted:
        raise RingError(f"ring document has owners of {found} partitions, want {wanted}")
    for partition, row in enumerate(document.owners):
        if not 1 <= len(row) <= MAX_REPLICATION:
            raise RingError(f"partition {partition} has {len(row)} owners, want 1 to {MAX_REPLICATION}")
        if min(row) < 0 or max(row) >= len(document.nodes):
            raise RingError(f"partition {partition} has owners {row}, want indexes 0 to {len(document.nodes) - 1}")
    width = max(map(len, document.owners))
    rows = [row + [NOBODY] * (width - len(row)) for row in document.owners]
    return np.array(rows, dtype=np.int32)


def _int64(numbers: list[int]) -> NDArray[np.int64]:
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError as error:
        raise RingError("ring document: since holds a number beyond 64 bits") from error


def _number_faults(ring: Ring) -> Iterator[str]:
    if not _ID.fullmatch(ring.cluster):
        yield f"cluster is {ring.cluster!r}, want {_ID_WANTED}"
    if not 1 <= ring.epoch < 1 << 63:
        yield f"epoch is {ring.epoch}, want 1 or more"
    yield from size_faults(ring.partitions, ring.replication, ring.nodes)


def size_faults(partitions: int, replication: int, nodes: Sequence[Node]) -> Iterator[str]:
    """What is wrong with the sizes of a ring, limit and value in each text."""
    if not 1 <= partitions <= MAX_PARTITIONS or partitions & (partitions - 1):
        yield f"partitions must be a power of two from 1 to {MAX_PARTITIONS} (was {partitions})"
    if not 1 <= len(nodes) <= MAX_NODES:
        yield f"nodes must number 1 to {MAX_NODES} (were {len(nodes)})"
    if not 1 <= replication <= MAX_REPLICATION:
        yield f"replication must be 1 to {MAX_REPLICATION} (was {replication})"
    active = sum(node.state != DRAINING for node in nodes)
    if replication > active:
        yield f"replication must be at most the number of nodes that are not draining, {active} (was {replication})"


def node_faults(nodes: Sequence[Node]) -> Iterator[str]:
    """What is wrong with the nodes of a ring, one by one and among each other."""
    for node in nodes:
        yield from _one_node_faults(node)
    for before, after in itertools.pairwise(nodes):
        if before.id >= after.id:
            yield f"nodes must ascend by id ({before.id} before {after.id})"
    yield from _shared(nodes, "store_id", lambda node: [node.store_id] if node.store_id else [])
    yield from _shared(nodes, "port", _ports)


def _one_node_faults(node: Node) -> Iterator[str]:
    if not _ID.fullmatch(node.id):
        yield f"node id {node.id!r}: want {_ID_WANTED}"
    if node.store_id and not _ID.fullmatch(node.store_id):
        yield f"node {node.id}: store_id {node.store_id!r}, want {_ID_WANTED}, or nothing"
    if not _ID.fullmatch(node.zone):
        yield f"node {node.id}: zone {node.zone!r}, want {_ID_WANTED}"
    if not MIN_WEIGHT <= node.weight <= MAX_WEIGHT:
        yield f"node {node.id}: weight must be {MIN_WEIGHT:g} to {MAX_WEIGHT:.0f} (was {node.weight:g})"
    if node.state not in STATES:
        yield f"node {node.id}: state {node.state!r}, want one of {', '.join(STATES)}"
    fault = endpoint_fault(node.endpoint)
    if fault:
        yield f"node {node.id}: {fault}"


def _ports(node: Node) -> list[str]:
    base, _, port = node.endpoint.lower().rpartition(":")
    return [f"{base}:{int(port) + offset}" for offset in range(PORTS)]


def _shared(nodes: Iterable[Node], what: str, of: Callable[[Node], list[str]]) -> Iterator[str]:
    """Two nodes that claim the same thing."""
    seen: dict[str, str] = {}
    for node in nodes:
        for value in of(node):
            first = seen.setdefault(value, node.id)
            if first != node.id:
                yield f"nodes {first} and {node.id} both take {what} {value}"


def _delete_faults(deletes: Sequence[DeleteRecord], epoch: int) -> Iterator[str]:
    if len(deletes) > MAX_DELETES:
        yield f"deletes must number at most {MAX_DELETES} (were {len(deletes)})"
    size = sum(map(_text_bytes, deletes))
    if size > MAX_DELETE_BYTES:
        yield f"ids and tags of deletes must have at most {MAX_DELETE_BYTES} bytes (had {size})"
    before = 0
    for record in deletes:
        if not before < record.number <= epoch:
            yield f"delete has number {record.number}, want {before + 1} to {epoch} (ascending, up to the epoch)"
        if not record.device_id or record.metric_name == "":
            yield f"delete {record.number} has an empty device_id or metric_name"
        if not MIN_NS <= record.start_ns <= record.end_ns <= MAX_NS:
            times = f"{record.start_ns} to {record.end_ns} ns"
            yield f"delete {record.number} is from {times}, want int64 and in this order"
        before = record.number


def _text_bytes(record: DeleteRecord) -> int:
    texts = [record.device_id, record.metric_name or "", *(record.tags or {}), *(record.tags or {}).values()]
    return sum(len(text.encode()) for text in texts)


def _where(broken: NDArray[np.bool_]) -> list[int]:
    """The first partition with a broken entry, if any: one is enough to refuse the ring."""
    rows = broken.any(axis=1)
    return [int(rows.argmax())] if rows.any() else []


def _outside(row: NDArray[np.int32], nodes: int) -> int:
    return int(next(index for index in row if not NOBODY <= index < nodes))
