"""How a ring becomes the next one: placement (which nodes should own which partitions), and deletes.

The only code that decides placement; no worker uses more of this than `with_delete`.

Two questions are answered. How many partitions each node should own: its share by weight, within one, as far as
zones allow. And which: owners of a partition lie in as many zones as there can be (always on distinct nodes), and
a change of nodes, weights, zones or replication moves hardly more than it must.

Why exact counts can always be met: with count[i] <= partitions, and zone totals that respect the zones, giving
each node its count of consecutive cells on a line, zone after zone, and cell c to partition c mod partitions (the
wrap-around rule of McNaughton, "Scheduling with deadlines and loss functions", 1959), puts no node twice into a
partition and spreads zones as evenly as whole numbers can.

Pure and deterministic: the same input and seed give the same table on every machine and numpy version (only the
raw stream of PCG64 is used, which numpy promises never to change).
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import RingError
from common.ring import NOBODY, DeleteRecord, Node, Ring, node_faults, size_faults
from common.selector import Selector

DEFAULT_SEED: Final = 0  # the table is stored, so every cluster may use the same seed: same nodes, same table
MIX_ROUNDS: Final = 8  # per owner: after that, co-owners of a node are spread evenly to within chance
SNAP: Final = 1e-6  # shares this close to a whole number are that number: bisection leaves about 1e-9
FEW_PER_ZONE: Final = 16  # nodes of a zone tried as links of a chain before all of them are
RELEASE_PARTS: Final = 8  # a node gives an eighth of what it has too many in one go: about as good as one by one
FREE_FAILURES: Final = 8  # searches for ways that move nothing, before others are taken: each costs what it looks at
CHUNK_ROWS: Final = 2048  # rows looked at in one go when a node pulls partitions: bounds the work of small pulls

Ints = NDArray[np.int64]
Table = NDArray[np.int32]
Flags = NDArray[np.bool_]


class _Demand(NamedTuple):
    """What placement has to meet. zone: index of each node's zone. spread: zones that each partition must reach."""

    partitions: int
    replication: int
    weight: NDArray[np.float64]
    zone: Ints
    spread: int

    @classmethod
    def of(cls, nodes: Sequence[Node], partitions: int, replication: int) -> "_Demand":
        for fault in itertools.chain(size_faults(partitions, replication, nodes), node_faults(nodes)):
            raise RingError(fault)
        weight = np.array([node.weight for node in nodes], dtype=np.float64)
        names, zone = np.unique([node.zone for node in nodes], return_inverse=True)
        return cls(partitions, replication, weight, zone.astype(np.int64), min(replication, len(names)))


class _Random:
    """Draws that stay the same over numpy versions."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def permutation(self, count: int) -> Ints:
        return np.argsort(self._bits.random_raw(count), kind="stable")

    def below(self, limit: int, count: int) -> Ints:
        """`count` numbers from 0 to limit - 1. The bias of this scaling is below limit / 2**32."""
        return ((self._bits.random_raw(count) >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


def by_id(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes in the ring's order."""
    return tuple(sorted(nodes, key=lambda node: node.id))


def first_ring(
    cluster: str, nodes: Sequence[Node], partitions: int, replication: int, seed: int = DEFAULT_SEED
) -> Ring:
    """The ring of a new cluster, epoch 1. Raises RingError where the nodes or sizes are not valid."""
    nodes = by_id(nodes)
    table = place(nodes, partitions, replication, seed)
    return Ring(cluster, 1, partitions, replication, nodes, table, np.ones(partitions, dtype=np.int64))


def with_delete(ring: Ring, selector: Selector, start_ns: int, end_ns: int) -> Ring:
    """The next epoch of a ring, which commits a delete of that number. start_ns, end_ns: inclusive.

    Raises RingError where the ring cannot hold it.
    """
    number = ring.epoch + 1
    record = DeleteRecord(number, selector.device_id, selector.metric_name, selector.tags, start_ns, end_ns)
    return dataclasses.replace(ring, epoch=number, deletes=(*ring.deletes, record))


def place(nodes: Sequence[Node], partitions: int, replication: int, seed: int = DEFAULT_SEED) -> Table:
    """Owners for a cluster without history: int32 (partitions, replication), indexes into nodes.

    Each node's count is its ideal (see `ideal_counts`) rounded down or up.
    """
    demand = _Demand.of(nodes, partitions, replication)
    counts = _whole_counts(demand, np.zeros(len(nodes), dtype=np.int64))
    random = _Random(seed)
    table = _wrap_around(demand, counts)[random.permutation(partitions)]
    if replication > 1:
        for _ in range(MIX_ROUNDS * replication):
            _mix(demand, table, random)
        table = np.take_along_axis(table, _column_orders(random, table.shape), axis=1)
    return table


def rebalance(ring: Ring, nodes: Sequence[Node], replication: int, seed: int = DEFAULT_SEED) -> Table:
    """Owners after a change: as `place`, but keeping as many of the ring's present owners as it can.

    nodes: those that may own partitions from now on, ascending by id; they are matched with the ring's by id.
    """
    demand = _Demand.of(nodes, ring.partitions, replication)
    table = _carried_over(ring, nodes)
    targets = _whole_counts(demand, _loads(table, len(nodes)))
    return _Rebalancing(demand, table, targets, _Random(seed)).run()


# How many


def ideal_counts(nodes: Sequence[Node], partitions: int, replication: int) -> NDArray[np.float64]:
    """How many partitions each node should own, as fractions: proportional to weight as far as possible.

    No node can own more than every partition. With no more owners than zones, no zone can hold two owners of one
    partition; with more, each zone holds at least one of each. Where weights ask for more or less than that, the
    limit holds and the rest is shared by weight.
    """
    return _shares(_Demand.of(nodes, partitions, replication))


def _shares(demand: _Demand) -> NDArray[np.float64]:
    low, high = _zone_limits(demand)
    groups = [np.flatnonzero(demand.zone == zone) for zone in range(len(low))]
    cap = float(demand.partitions)

    def zone_totals(scale: float) -> NDArray[np.float64]:
        filled = np.minimum(cap, scale * demand.weight)
        return np.asarray(np.clip(np.bincount(demand.zone, filled, len(low)), low, high))

    total = demand.partitions * demand.replication
    totals = zone_totals(_scale_for(total, lambda scale: float(zone_totals(scale).sum()), demand))
    shares = np.zeros(len(demand.weight))
    for group, total in zip(groups, totals, strict=True):
        shares[group] = _filled(demand, group, total)
    nearest = np.rint(shares)
    return np.where(np.abs(shares - nearest) < SNAP, nearest, shares)


def _zone_limits(demand: _Demand) -> tuple[Ints, Ints]:
    """The least and the most owners that each zone can hold, summed over all partitions."""
    sizes = np.bincount(demand.zone)
    if demand.replication <= len(sizes):
        return np.zeros_like(sizes), np.full_like(sizes, demand.partitions)
    return np.full_like(sizes, demand.partitions), sizes * demand.partitions


def _filled(demand: _Demand, group: Ints, total: float) -> NDArray[np.float64]:
    """`total` shared by weight over a group of nodes, none getting more than every partition."""

    def fill(scale: float) -> NDArray[np.float64]:
        return np.minimum(float(demand.partitions), scale * demand.weight[group])

    return fill(_scale_for(total, lambda scale: float(fill(scale).sum()), demand))


def _scale_for(total: float, amount: Callable[[float], float], demand: _Demand) -> float:
    """The scale at which `amount`, which rises with it, reaches `total`: by bisection."""
    low, high = 0.0, float(demand.partitions / demand.weight.min())
    for _ in range(200):
        middle = (low + high) / 2
        if amount(middle) < total:
            low = middle
        else:
            high = middle
    return high


def _whole_counts(demand: _Demand, present: Ints) -> Ints:
    """The shares rounded down or up to whole numbers with the right sum, within the limits of each zone.

    Nodes that own more than the lower number at present are rounded up first: it saves a move. As far as that
    allows, no zone gets more than its own share rounded up.
    """
    shares = _shares(demand)
    low, high = _zone_limits(demand)
    zone_shares = np.bincount(demand.zone, shares, len(low))
    rounding = _Rounding(demand, shares)
    order = np.argsort(np.floor(shares) - shares, kind="stable")
    keepers = order[(present > rounding.counts)[order]]
    rounding.up(order, low)
    rounding.up(keepers, high)
    rounding.up(order, np.ceil(zone_shares - SNAP))
    rounding.up(order, high)
    if rounding.spare:
        raise RingError(f"BUG: {rounding.spare} partitions could not be shared out")
    return rounding.counts


class _Rounding:
    """Shares on their way to whole numbers: all rounded down at first, then some of them up.

    counts: the whole numbers; spare: how many more have to be rounded up.
    """

    def __init__(self, demand: _Demand, shares: NDArray[np.float64]) -> None:
        self.counts: Ints = np.floor(shares).astype(np.int64)
        self.spare = demand.partitions * demand.replication - int(self.counts.sum())
        self._shares = shares
        self._zone = demand.zone
        self._totals = np.bincount(demand.zone, self.counts)

    def up(self, nodes: Ints, zone_limit: NDArray[Any]) -> None:
        """Round up in this order while some are to spare, no zone beyond its limit."""
        for node in nodes.tolist():
            zone = self._zone[node]
            if self.spare and self.counts[node] < self._shares[node] and self._totals[zone] < zone_limit[zone]:
                self.counts[node] += 1
                self._totals[zone] += 1
                self.spare -= 1


# Which, from nothing


def _wrap_around(demand: _Demand, counts: Ints) -> Table:
    order = np.argsort(demand.zone, kind="stable")
    cells = np.repeat(order, counts[order]).astype(np.int32)
    return np.ascontiguousarray(cells.reshape(demand.replication, demand.partitions).T)


def _mix(demand: _Demand, table: Table, random: _Random) -> None:
    """Swap owners between random pairs of partitions wherever that breaks nothing.

    The wrap-around rule makes the same nodes co-own many partitions; after mixing, the load of a lost node falls
    on all others.
    """
    half = demand.partitions // 2
    order = random.permutation(demand.partitions)
    rows, others = order[:half], order[half : 2 * half]
    at, other_at = random.below(demand.replication, half), random.below(demand.replication, half)
    given, taken = table[rows, at], table[others, other_at]
    fits = _takes(demand, table[rows], given, taken) & _takes(demand, table[others], taken, given)
    table[rows[fits], at[fits]] = taken[fits]
    table[others[fits], other_at[fits]] = given[fits]


def _takes(demand: _Demand, rows: Table, given: Table, taken: Table) -> Flags:
    """Whether each row may give one owner for another, keeping its spread over zones as even as it is."""
    new: Flags = ~(rows == taken[:, None]).any(axis=1)
    keeps: Flags = demand.zone[given] == demand.zone[taken]
    if demand.spread == demand.replication:
        keeps |= ~(demand.zone[rows] == demand.zone[taken][:, None]).any(axis=1)
    return new & keeps


def _column_orders(random: _Random, shape: tuple[int, ...]) -> Ints:
    """A random order of each row's columns, so that each node is first owner of its fair part."""
    rows, columns = shape
    return np.argsort(random.permutation(rows * columns).reshape(rows, columns), axis=1)


# Which, after a change


def _loads(table: Table, nodes: int) -> Ints:
    """How many partitions each node has in a table."""
    return np.bincount(table[table != NOBODY], minlength=nodes).astype(np.int64)


def _carried_over(ring: Ring, nodes: Sequence[Node]) -> Table:
    """The ring's table in terms of other nodes; NOBODY where an owner is not among them."""
    index = {node.id: at for at, node in enumerate(nodes)}
    new = np.array([index.get(node.id, NOBODY) for node in ring.nodes] + [NOBODY], dtype=np.int32)
    return new[ring.owner_table]


class _Rebalancing:
    """A table on its way to given counts. Slots are (partition, column); an open slot holds NOBODY.

    missing: how many partitions each node has to get, less than 0 where it has to give. before: the table as it was.
    zones: of the table's nodes. alone: whether no other owner of the partition is in the same zone. reach: how many
    zones each partition reaches.
    Kept true from the end of `_release` on: a partition's zones plus its open slots are at least `spread`.
    """

    def __init__(self, demand: _Demand, table: Table, targets: Ints, random: _Random) -> None:
        self.demand = demand
        self.random = random
        self.table = self._fitted(table)
        self.before = self.table.copy()
        self.missing = np.append(targets - _loads(self.table, len(targets)), 0)  # [NOBODY] is the last: never read
        self.zone = np.append(demand.zone, NOBODY)  # NOBODY is in no zone
        self._look_at_zones()

    def run(self) -> Table:
        """The finished table."""
        self._release()
        self._take_back()
        self._pull_all()
        while len(needy := self._needy()):
            self._push_through(int(needy[0]))
        return self.table

    def _fitted(self, table: Table) -> Table:
        """Open slots last, and added where there are fewer columns than owners wanted."""
        order = np.argsort(table == NOBODY, axis=1, kind="stable")
        table = np.take_along_axis(table, order, axis=1)
        more = self.demand.replication - table.shape[1]
        return np.pad(table, ((0, 0), (0, max(0, more))), constant_values=NOBODY)

    def _needy(self) -> Ints:
        return np.flatnonzero(self.missing[:-1] > 0)

    def _look_at_zones(self) -> None:
        self.zones = self.zone[self.table]
        self.alone = np.empty(self.table.shape, dtype=np.bool_)
        self.reach = np.empty(len(self.table), dtype=np.int64)
        self._renew(np.arange(len(self.table)))

    def _renew(self, rows: Ints) -> None:
        """Look at the zones of some partitions again, as their owners have changed."""
        zones = self.zone[self.table[rows]]
        alike = (zones[:, :, None] == zones[:, None, :]).sum(axis=2)
        self.zones[rows] = zones
        self.alone[rows] = alike == 1
        ordered = np.sort(zones, axis=1)
        self.reach[rows] = (ordered[:, :1] != NOBODY).sum(axis=1) + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)

    # Giving

    def _release(self) -> None:
        """Take owners away where a partition has too many, or too many in one zone; one of each per round."""
        rows = self.random.permutation(self.demand.partitions)
        while len(rows := rows[self._crowded(rows)]):
            for begin in range(0, len(rows), CHUNK_ROWS):
                self._release_from(rows[begin : begin + CHUNK_ROWS])
        if self.table.shape[1] > self.demand.replication:
            order = np.argsort(self.table == NOBODY, axis=1, kind="stable")
            self.table = np.take_along_axis(self.table, order, axis=1)[:, : self.demand.replication].copy()
            self._look_at_zones()

    def _release_from(self, rows: Ints) -> None:
        columns = self._to_release(rows)
        nodes = self.table[rows, columns]
        chosen = _rank_among_equals(nodes) < self._most_to_release(len(rows))[nodes]
        np.add.at(self.missing, nodes[chosen], 1)
        self.table[rows[chosen], columns[chosen]] = NOBODY
        self._renew(rows[chosen])

    def _crowded(self, rows: Ints) -> Flags:
        held = (self.table[rows] != NOBODY).sum(axis=1)
        open_ = np.maximum(0, self.demand.replication - held)
        crowded: Flags = (held > self.demand.replication) | (self.reach[rows] + open_ < self.demand.spread)
        return crowded

    def _to_release(self, rows: Ints) -> Ints:
        """One column of each row: of a doubled zone first (that never costs spread), the most overloaded node.

        Of equals the last one, so that first owners stay.
        """
        held = self.table[rows] != NOBODY
        doubled = held & ~self.alone[rows]
        eligible = np.where(doubled.any(axis=1)[:, None], doubled, held)
        lack = np.where(eligible, self.missing[self.table[rows]], np.iinfo(np.int64).max)
        columns: Ints = lack.shape[1] - 1 - lack[:, ::-1].argmin(axis=1)
        return columns

    def _most_to_release(self, rows: int) -> Ints:
        """How often each node may be released in one go: in small parts, so that the next looks at other nodes.

        An eighth of what a node has too many; where nodes have not, an eighth of what would be their part.
        """
        part = np.where(self.missing < 0, -self.missing, rows // len(self.missing))
        most: Ints = np.maximum(1, part // RELEASE_PARTS)
        return most

    # Taking

    def _take_back(self) -> None:
        """Let nodes that miss partitions have again what was released, directly or by chains: it moves nothing."""
        rows = self.random.permutation(self.demand.partitions)
        left = rows[self._has_left(rows).any(axis=1)]
        owned = _rows_by_node(self.before[left], len(self.zone)) if len(left) else []
        failures = 0
        for node in self._needy().tolist() if len(left) else ():
            self._pull(node, left[owned[node]])
            while self.missing[node] > 0 and failures < FREE_FAILURES:
                to_give = left[self._to_give(left).any(axis=1)]
                if not self._chains(
                    _Search(node, left[:CHUNK_ROWS], to_give, FEW_PER_ZONE, free_links=True, free_ends=True)
                ):
                    failures += 1
                    break

    def _pull_all(self) -> None:
        """Give every node the partitions that it misses, as far as that goes without chains."""
        rows = self.random.permutation(self.demand.partitions)
        rows = rows[self._to_give(rows).any(axis=1)]
        begins = self.random.below(len(rows), len(self.missing))
        round_and_round = np.concatenate([rows, rows])
        for node in self._needy().tolist():
            self._pull(node, round_and_round[begins[node] : begins[node] + len(rows)])

    def _pull(self, node: int, rows: Ints) -> None:
        """Give a node partitions out of `rows`, from open slots and from nodes that have too many."""
        begin, size = 0, 64 + 4 * int(self.missing[node])  # mostly enough
        while begin < len(rows) and self.missing[node]:
            chunk = rows[begin : begin + min(size, CHUNK_ROWS)]
            begin, size = begin + len(chunk), CHUNK_ROWS
            chunk = chunk[self._to_give(chunk).any(axis=1)]
            self._take(node, *self._givers(node, chunk, int(self.missing[node])))

    def _givers(self, node: int, rows: Ints, most: int, free_only: bool = False) -> tuple[Ints, Ints]:
        """Slots of different rows that a node may take from open ones and nodes with too many: rows and columns.

        Some of them where there are any; of large numbers of rows not all are looked at.
        """
        for begin in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[begin : begin + CHUNK_ROWS]
            slots = self._to_give(chunk) & self._legal(chunk, node)
            if free_only:
                slots &= self._free(chunk, node)
            found, columns = _first_of_each(chunk, slots)
            if len(found):
                givers = self.table[found, columns]
                allowed = np.where(givers == NOBODY, len(found), -self.missing[givers])
                chosen = np.flatnonzero(_rank_among_equals(givers) < allowed)[:most]
                return found[chosen], columns[chosen]
        return rows[:0], rows[:0]

    def _take(self, node: int, rows: Ints, columns: Ints) -> None:
        """Make a node the owner of slots in different rows."""
        givers = self.table[rows, columns]
        np.add.at(self.missing, givers[givers != NOBODY], 1)
        self.missing[node] -= len(rows)
        self.table[rows, columns] = node
        self._renew(rows)

    def _to_give(self, rows: Ints) -> Flags:
        """The slots that are open or whose owner has too many."""
        table = self.table[rows]
        to_give: Flags = (table == NOBODY) | (self.missing[table] < 0)
        return to_give

    def _legal(self, rows: Ints, node: int) -> Flags:
        """The slots of some partitions that a node might take: it is new there, and the spread stays possible."""
        table = self.table[rows]
        is_open = table == NOBODY
        same = self.zones[rows] == self.zone[node]
        loses = is_open | (self.alone[rows] & ~same)  # an open slot might bring a zone, which it does not then
        after = (self.reach[rows] + ~same.any(axis=1) + is_open.sum(axis=1))[:, None] - loses
        legal: Flags = (after >= self.demand.spread) & ~(table == node).any(axis=1)[:, None]
        return legal

    # Chains

    def _push_through(self, needy: int) -> None:
        """Bring a node nearer to its count by chains: it replaces another, that one a third, ... up to givers.

        Looked for first among slots that cost nothing, then in a random part of the table, last in all of it.
        """
        everywhere = self.random.permutation(self.demand.partitions)
        moved = everywhere[self._has_left(everywhere).any(axis=1) | self._has_come(everywhere).any(axis=1)]
        to_give = everywhere[self._to_give(everywhere).any(axis=1)]
        few, all_ = FEW_PER_ZONE, len(self.zone)
        for search in (
            _Search(needy, moved[:CHUNK_ROWS], to_give, few, free_links=True),
            _Search(needy, everywhere[:CHUNK_ROWS], to_give, few),
            _Search(needy, everywhere, to_give, few),
            _Search(needy, everywhere, to_give, all_),
        ):
            if self._chains(search):
                return
        raise RingError(f"BUG: no way to give node {needy} the {self.missing[needy]} partitions that it misses")

    def _chains(self, search: "_Search") -> bool:
        """Find the shortest chains, breadth first, and follow them. Whether there are any."""
        came_from: dict[int, int] = {}
        tried: Counter[int] = Counter()
        level, found = [search.needy], False
        while level and not found:
            for node in level:
                found |= bool(self.missing[search.needy]) and self._follow(node, came_from, search)
            after = []
            for node in () if found else level:
                for other in self._replaceable(node, search):
                    zone = int(self.zone[other])
                    if other != search.needy and other not in came_from and tried[zone] < search.per_zone:
                        tried[zone] += 1
                        came_from[other] = node
                        after.append(other)
            level = after
        return found

    def _replaceable(self, node: int, search: "_Search") -> list[int]:
        """The nodes that a node might replace, those in free slots first."""
        legal, free = self._legal(search.rows, node), self._free(search.rows, node)
        nodes: list[int] = []
        for slots in (legal & free,) if search.free_links else (legal & free, legal & ~free):
            nodes += np.flatnonzero(np.bincount(self.table[search.rows][slots], minlength=len(self.zone))).tolist()
        return nodes

    def _follow(self, last: int, came_from: dict[int, int], search: "_Search") -> bool:
        """Carry out a chain whose last node takes from givers, as often as each link allows; False where one does not.

        Each row is used once, so that no link makes another one illegal.
        """
        most = int(self.missing[search.needy])
        links = [(last, *self._givers(last, search.to_give, most, search.free_ends))]
        node = last
        while node in came_from and len(links[-1][1]):
            replaced, node = node, came_from[node]
            used = np.concatenate([each[1] for each in links])
            unused = search.rows[~np.isin(search.rows, used)]
            links.append((node, *self._slots_of(replaced, node, unused, search.free_links)))
        times = min(len(in_rows) for _, in_rows, _ in links)
        for taker, in_rows, columns in links if times else ():
            self._take(taker, in_rows[:times], columns[:times])
        return bool(times)

    def _slots_of(self, replaced: int, node: int, rows: Ints, free_only: bool) -> tuple[Ints, Ints]:
        """Slots of different rows in which a node might replace another: rows and columns.

        Free ones, or others where none is free.
        """
        rows = rows[(self.table[rows] == replaced).any(axis=1)]
        rows, columns = _first_of_each(rows, self._legal(rows, node) & (self.table[rows] == replaced))
        free = self._free(rows, node)[np.arange(len(rows)), columns]
        chosen = free if free_only or free.any() else ~free
        return rows[chosen], columns[chosen]

    def _free(self, rows: Ints, node: int) -> Flags:
        """The slots of some rows that a node takes without moving more: it was an owner, or the present one was not."""
        was_owner = (self.before[rows] == node).any(axis=1)[:, None]
        free: Flags = was_owner | self._has_come(rows)
        return free

    def _has_come(self, rows: Ints) -> Flags:
        """The slots of some rows whose owners were none before, and open ones that were not."""
        come: Flags = (self.table[rows][:, :, None] != self.before[rows][:, None, :]).all(axis=2)
        return come

    def _has_left(self, rows: Ints) -> Flags:
        """The former owners of some rows that are none now."""
        before = self.before[rows]
        left: Flags = (before != NOBODY) & (before[:, :, None] != self.table[rows][:, None, :]).all(axis=2)
        return left


class _Search(NamedTuple):
    """Where chains are looked for. rows: of their links; to_give: of their ends. per_zone: how many nodes of a zone to
    try, as those of one zone mostly can take the same slots. free_links, free_ends: whether these are to be free slots.
    """

    needy: int
    rows: Ints
    to_give: Ints
    per_zone: int
    free_links: bool = False
    free_ends: bool = False


def _rows_by_node(table: Table, nodes: int) -> list[Ints]:
    """For each node the rows that name it, ascending."""
    order = np.argsort(table, axis=None, kind="stable")
    begins = np.searchsorted(table.ravel()[order], np.arange(nodes + 1))
    return [order[begin:end] // table.shape[1] for begin, end in itertools.pairwise(begins.tolist())]


def _first_of_each(rows: Ints, slots: Flags) -> tuple[Ints, Ints]:
    """The first slot of each row that has any: rows and columns."""
    has = slots.any(axis=1)
    return rows[has], slots[has].argmax(axis=1)


def _rank_among_equals(values: Table) -> Ints:
    """For each element, how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values)) - first
    return rank
