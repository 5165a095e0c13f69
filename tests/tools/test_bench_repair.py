"""What `python -m tools.bench repair` compares: the same points in two directories, then a stretch less in one."""

from pathlib import Path

import numpy as np

from common import config, protocol
from tools.bench.repair_nodes import CLUSTER, NAMES, PARTITIONS, Pair
from workers.storage.exchange import Exchange
from workers.storage.store import Store

SERIES, STEPS = 10, 200
EVERYWHERE = protocol.bitmap(range(PARTITIONS), PARTITIONS)


def held(pair: Pair, name: str) -> tuple[bytes, int, bytes]:
    """The digests of a node's directory, how many points it has, and the id of the store."""
    store = Store.open(pair.directory(name), CLUSTER, name, PARTITIONS, config.Storage())
    try:
        reply = Exchange(store, lambda: EVERYWHERE).digests(protocol.DigestsRequest(0, EVERYWHERE))
        assert reply.cost.blocks_decoded == 0
        return reply.digests, int(np.frombuffer(reply.counts, "<i8").sum()), store.store_id
    finally:
        store.close()


def test_both_nodes_have_the_same_points_until_one_loses_a_stretch(tmp_path: Path) -> None:
    pair = Pair(tmp_path, SERIES, STEPS)
    (mine, points, my_id), (theirs, same, their_id) = (held(pair, name) for name in NAMES)
    assert (mine, points, same) == (theirs, SERIES * STEPS, SERIES * STEPS)
    assert my_id != their_id
    assert 0 < pair.stored_bytes < 16 * points
    lacking = pair.lose_a_stretch()
    assert lacking == STEPS // 10
    assert held(pair, NAMES[0])[:2] == (mine, points)
    assert held(pair, NAMES[1])[1] == points - lacking
