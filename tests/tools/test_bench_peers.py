"""Peers of the benchmarks: they hold what was sent, and their means are those of the points."""

import numpy as np
import pytest

from common.series import Series
from tools.bench import data, peers
from tools.bench.data import SECOND_NS, Rows

POINTS = data.made("a walk", 3, 1000, data.regular(10 * SECOND_NS, 5), of_plant=True)
KINDS = [
    pytest.param(
        kind, id=kind.name,
        marks=pytest.mark.skipif(not kind.installed(), reason=f"needs {kind.command} (Debian: {kind.package()})"),
    )
    for kind in peers.PEERS
]  # fmt: skip


def test_lines_carry_tags_shortest_values_and_milliseconds() -> None:
    prefixes = [peers.line_prefix(Series("d", "t")), peers.line_prefix(Series("e", "u", (("a", "b"),)))]
    times = np.array([1_700_000_000_123_000_000, 5_000_000], np.int64)
    rows = Rows(np.array([1, 0], np.uint32), times, np.array([0.1, 21.0]))
    assert peers.lines(prefixes, rows) == b"u,a=b,device=e value=0.1 1700000000123\nt,device=d value=21.0 5"


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_answers_with_the_means_of_what_was_sent(kind: type[peers.Peer]) -> None:
    with peers.running(kind) as peer:
        peer.write(POINTS)
        peer.flush()
        peer.merge()
        assert 1000 < peer.bytes_at_rest() < 1_000_000
        assert peer.cpu_s() > 0
        found = peer.buckets(peer.request("GET", peer.hourly_path(POINTS)))
    assert list(found) == [data.labels(each) for each in POINTS.series]
    hours = POINTS.rows.times[::3] // (3600 * SECOND_NS)
    for at, means in enumerate(found.values()):
        values = POINTS.rows.values[at::3]
        assert means == pytest.approx([values[hours == hour].mean() for hour in np.unique(hours)], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_leaves_neither_process_nor_files(kind: type[peers.Peer]) -> None:
    with peers.running(kind) as peer:
        directory, process = peer.directory, peer.process
    assert not directory.exists()
    assert process.poll() is not None
