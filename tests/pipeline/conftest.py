"""Fixtures of the pipeline tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.flow import Flow
from tests.ringed import RingCluster
from tests.support import Children, require_part


@pytest.fixture
def make_cluster(children: Children, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters whose workers the test starts and hurts; closed when it is over."""
    require_part("mosquitto")
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(children, tmp_path / f"c{len(made)}", **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def make_ring(children: Children, tmp_path: Path) -> Iterator[Callable[..., RingCluster]]:
    """Makes clusters that run, whose ring the test changes; closed when it is over."""
    require_part("mosquitto")
    made: list[RingCluster] = []

    def make(**options: Any) -> RingCluster:
        made.append(RingCluster(children, tmp_path / f"c{len(made)}", **options))
        made[-1].start()
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def make_flow() -> Iterator[Callable[..., Flow]]:
    """Makes flows of numbered messages through a cluster's proxy for publishers."""
    made: list[Flow] = []

    def make(cluster: Cluster, **options: Any) -> Flow:
        made.append(Flow(cluster.publishers.port, **options))
        return made[-1]

    yield make
    for flow in made:
        flow.close()
