"""The least number of moves to a ring's target, exactly: a flow of least cost. Slow and plain, for small rings only.

Each partition sends as many units as it is to have owners, through a zone to a node, one to a node at most. With no
more owners than zones a zone takes one unit of a partition at most; with more it takes one at least. Each node takes
its share of partitions by weight, rounded down or up. A unit costs 1 where the node is no owner yet. The cheapest flow
is whole, so it is a table, and no table that keeps those rules moves less. Lower limits are edges whose first unit is
so cheap that it is used before everything else; ways are found one by one (Bellman-Ford, a queue).
"""

import math
from collections import deque

FORCED = -1_000_000


class Flow:
    def __init__(self, nodes):
        self.out = [[] for _ in range(nodes)]
        self.to, self.room, self.cost = [], [], []

    def edge(self, begin, end, room, cost=0):
        for source, target, free, price in ((begin, end, room, cost), (end, begin, 0, -cost)):
            self.out[source].append(len(self.to))
            self.to.append(target)
            self.room.append(free)
            self.cost.append(price)

    def limited(self, begin, end, least, most, cost=0):
        if least:
            self.edge(begin, end, least, FORCED + cost)
        if most > least:
            self.edge(begin, end, most - least, cost)

    def cheapest(self, source, sink):
        """What the most flow costs at the least, and how much that is."""
        paid = sent = 0
        while (way := self._way(source, sink)) is not None:
            for edge in way:
                self.room[edge] -= 1
                self.room[edge ^ 1] += 1
                paid += self.cost[edge]
            sent += 1
        return paid, sent

    def _way(self, source, sink):
        far, by = [math.inf] * len(self.out), [-1] * len(self.out)
        far[source], queue, queued = 0, deque([source]), {source}
        while queue:
            node = queue.popleft()
            queued.discard(node)
            for edge in self.out[node]:
                target = self.to[edge]
                if self.room[edge] and far[node] + self.cost[edge] < far[target]:
                    far[target], by[target] = far[node] + self.cost[edge], edge
                    if target not in queued:
                        queued.add(target)
                        queue.append(target)
        if by[sink] < 0:
            return None
        way, node = [], sink
        while node != source:
            way.append(by[node])
            node = self.to[by[node] ^ 1]
        return way


def least_moves(owners, zones, shares, replication):
    """owners: for each partition the set of its present owners, as indexes of nodes. zones, shares: of the nodes."""
    partitions, names = len(owners), sorted(set(zones))
    first_zone = 1 + partitions
    first_node = first_zone + partitions * len(names)
    sink = first_node + len(zones)
    flow = Flow(sink + 1)
    one_each = replication <= len(names)
    forced = 0
    for partition, present in enumerate(owners):
        flow.edge(0, 1 + partition, replication)
        for at, zone in enumerate(names):
            place = first_zone + partition * len(names) + at
            forced += not one_each
            flow.limited(1 + partition, place, *((0, 1) if one_each else (1, replication)))
            for node in (each for each, its in enumerate(zones) if its == zone):
                flow.edge(place, first_node + node, 1, int(node not in present))
    for node, share in enumerate(shares):
        low, high = math.floor(share + 1e-6), math.ceil(share - 1e-6)
        forced += low
        flow.limited(first_node + node, sink, low, high)
    paid, sent = flow.cheapest(0, sink)
    moved = paid - forced * FORCED
    assert sent == partitions * replication and 0 <= moved <= sent, "no table keeps the rules"
    return moved
